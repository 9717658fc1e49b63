"""Which spans of a demo are kept: scored, drawn, or by their delimiters; apart from one another, and cut by rank.

The candidate policy is about a span's anchor alone: its first token, or its middle one. What lies between may be an answer.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.data import Demo
from fvcore.experiments.select_kv.errors import SelectionError

Span = tuple[int, int]
Offer = tuple[Span, int, float]
"""A span [start, end), its anchor and its score (NaN where nothing is scored), in the order in which spans are tried."""

AS_MODE = 1_000_000
"""The trial that a random selection as the select mode is drawn by; random baselines are trials 0, 1, ..."""

MANY_DRAWS = 50
"""Orders that are tried: spans that lie badly leave no room for as many as the selection beside them has."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen spans [start, end) of a demo in the order of positions, and the tokens that are kept of them."""

    mode: str
    spans: tuple[Span, ...]
    ranks: tuple[int, ...]  # of each span; 0 was chosen first
    scores: tuple[float, ...]  # of each span; none where nothing is scored
    anchors: tuple[int, ...]
    indices: tuple[int, ...]  # kept demo tokens, in the order of positions
    truncated: bool
    fewer: bool  # fewer spans than the budget


def candidates(settings: Phase2, demo: Demo) -> list[Span]:
    """All spans whose anchor may be chosen; these are what `causal_drop_span` scores, in this order."""
    length, n = settings.select.span_len, len(demo.ids)
    spans = [(start, start + length) for start in range(n - length + 1)] or ([(0, n)] if n else [])
    allowed = allowed_anchors(settings, demo)
    return [span for span in spans if allowed[anchor_of(settings, span)]]


def allowed_anchors(settings: Phase2, demo: Demo) -> list[bool]:
    """Token -> whether a span may be anchored there."""
    every = settings.select.candidate_policy == "all"
    return [every or role != "value" for role in demo.roles]


def anchor_of(settings: Phase2, span: Span) -> int:
    start, end = span
    return start + ((end - start - 1) // 2 if settings.select.center_policy == "center" else 0)


def select(
    settings: Phase2,
    demo: Demo,
    scores: Tensor | None = None,
    drop_scores: Tensor | None = None,
    *,
    trial: int = -1,
    index: int = 0,
    mode: str | None = None,
    budget: int | None = None,
) -> Selection:
    """The spans of a sample.

    scores: of each token (token,)     drop_scores: of each of `candidates` (candidate,)     index: of the sample
    trial: of a random baseline     mode, budget: in place of the settings'
    Raises SelectionError where nothing may be chosen while the prefix holds something.
    """
    how, most = mode or settings.select.mode, settings.select.span_budget if budget is None else budget
    if how == "random_span":
        chosen = _drawn(settings, candidates(settings, demo), trial, index, most)
    else:
        by_delimiters = how == "delimiter_span"
        offers = (
            _by_delimiters(settings, demo, most) if by_delimiters else _scored(settings, demo, how, scores, drop_scores)
        )
        chosen = _apart(offers, most, settings.select.min_span_distance)
    if not chosen and settings.prefix_len and most:
        raise SelectionError(
            f"no span of the demo may be chosen: of {len(demo.ids)} tokens none can be an anchor under "
            f"select.mode {how} and candidate_policy {settings.select.candidate_policy}; take another mode or policy"
        )
    return _selection(how, chosen, settings.prefix_len, most)


def recent(demo: Demo, k: int) -> Selection:
    """The last k tokens."""
    n = len(demo.ids)
    span = (max(0, n - k), n)
    chosen: list[Offer] = [(span, span[0], math.nan)] if span[0] < n else []
    return _selection("recent", chosen, k, len(chosen))


def _scored(settings: Phase2, demo: Demo, mode: str, scores: Tensor | None, drop_scores: Tensor | None) -> list[Offer]:
    """Candidates by their score, the best first; of equals the first in the demo."""
    spans = candidates(settings, demo)
    if mode == "causal_drop_span":
        numbers = _given(drop_scores, len(spans), "drop_scores, one of each candidate").tolist()
    else:
        tokens = _given(scores, len(demo.ids), "scores, one of each token of the demo")
        numbers = [float(tokens[start:end].mean()) for start, end in spans]
    offers = [(span, anchor_of(settings, span), number) for span, number in zip(spans, numbers, strict=True)]
    return sorted(offers, key=lambda offer: (-offer[2], offer[0][0]))


def _given(scores: Tensor | None, n: int, what: str) -> Tensor:
    if scores is None or tuple(scores.shape) != (n,):
        raise SelectionError(f"expected {n} {what}; found {'none' if scores is None else tuple(scores.shape)}")
    if not bool(scores.isfinite().all()):
        raise SelectionError(f"expected finite {what}; found NaN or infinity, which no order of spans can stand on")
    return scores.double()


def _drawn(settings: Phase2, spans: Sequence[Span], trial: int, index: int, budget: int) -> list[Offer]:
    """Candidates in the first order with room for the budget; seed, trial and sample fix it, whatever was drawn before.

    Where no order has room, the most that one had.
    """
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, 2, AS_MODE if trial < 0 else trial, index]))
    most: list[Offer] = []
    for _ in range(MANY_DRAWS):
        order = ((spans[at], anchor_of(settings, spans[at]), math.nan) for at in rng.permutation(len(spans)))
        most = max(most, _apart(order, budget, settings.select.min_span_distance), key=len)
        if len(most) == budget:
            break
    return most


def _by_delimiters(settings: Phase2, demo: Demo, budget: int) -> Iterator[Offer]:
    """Spans around the arrows, or the newlines of a demo without arrows: evenly spread ones first, then all in order."""
    allowed, length = allowed_anchors(settings, demo), min(settings.select.span_len, len(demo.ids))
    found = ([at for at, one in enumerate(demo.roles) if one == role and allowed[at]] for role in ("arrow", "newline"))
    anchors = next((each for each in found if each), [])
    n = len(anchors)
    spread = [anchors[math.floor((i + 0.5) * n / budget)] for i in range(budget)] if n > budget else anchors
    before = anchor_of(settings, (0, length))
    for anchor in [*spread, *(at for at in anchors if at not in spread)]:
        start = min(max(0, anchor - before), len(demo.ids) - length)
        yield (start, start + length), anchor, math.nan


def _apart(offers: Iterable[Offer], budget: int, distance: int) -> list[Offer]:
    """The first offers that overlap none taken before and leave `distance` tokens between, until there are `budget`."""
    taken: list[Offer] = []
    for offer in offers:
        if len(taken) == budget:
            break
        (start, end), *_ = offer
        if all(start - other[1] >= distance or other[0] - end >= distance for other, *_ in taken):
            taken.append(offer)
    return taken


def _selection(mode: str, chosen: Sequence[Offer], prefix_len: int, budget: int) -> Selection:
    """Offers in rank order -> spans in the order of positions, and the tokens for which there is room by rank."""
    by_rank = [at for (start, end), *_ in chosen for at in range(start, end)]
    order = sorted(range(len(chosen)), key=lambda rank: chosen[rank][0])
    scores = tuple(chosen[rank][2] for rank in order)
    return Selection(
        mode=mode,
        spans=tuple(chosen[rank][0] for rank in order),
        ranks=tuple(order),
        scores=() if any(map(math.isnan, scores)) else scores,
        anchors=tuple(chosen[rank][1] for rank in order),
        indices=tuple(sorted(by_rank[:prefix_len])),
        truncated=len(by_rank) > prefix_len,
        fewer=len(chosen) < budget,
    )
