"""Which pathways count: an effect that neither a random direction nor a random feature has, large enough, of one sign.

Everything is computed from the rows that discovery left, so other thresholds need no pass.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, sqrt
from statistics import fmean
from typing import Any

import numpy as np

from fvcore.experiments.sae.attribution import short
from fvcore.experiments.sae.config import Discover
from fvcore.experiments.sae.pathways import (
    Candidate,
    Node,
    NullRow,
    Pathway,
    PathwaysSummary,
    ReplayRow,
    Status,
    TargetRow,
)
from fvcore.experiments.sae.replay import ZERO
from fvcore.experiments.sae.schemas import Context
from fvcore.experiments.statistics import adjusted, bootstrap_interval


def judge(
    targets: Iterable[TargetRow],
    replays: Iterable[ReplayRow],
    nulls: Iterable[NullRow],
    contexts: Sequence[Context],
    settings: Discover,
) -> list[Pathway]:
    """A pathway for every candidate, in the order of the targets; one whose replay failed has no numbers."""
    of_target = list(targets)
    replayed = {(row.source, row.target): row for row in replays}
    features = Features(nulls, of_target)
    order = {context.id: at for at, context in enumerate(contexts)}
    kinds = [context.prompt_type for context in contexts]
    found = [
        _measured(one, candidate, replayed.get((candidate.source, one.target)), features, kinds, order, settings)
        for one in of_target
        for candidate in one.candidates
    ]
    corrected = _corrected(found, settings)
    return [_judged(one, q, settings) for one, q in zip(found, corrected, strict=True)]


class Features:
    """The second null: per layer and target, what random active features do that are no candidates of the target."""

    def __init__(self, nulls: Iterable[NullRow], targets: Sequence[TargetRow]) -> None:
        self.rows: dict[int, list[NullRow]] = {}
        for row in nulls:
            self.rows.setdefault(Node.of(row.source).layer, []).append(row)
        self.candidates = {one.target: {candidate.source for candidate in one.candidates} for one in targets}
        self.known: dict[tuple[int, str], tuple[float, int]] = {}

    def of(self, layer: int, target: str, n: int) -> tuple[float, int]:
        """Root mean square of the change per length, and of how many features, at most `n`."""
        if (layer, target) not in self.known:
            others = [row for row in self.rows.get(layer, []) if row.source not in self.candidates[target]]
            squares = [row.effects[target] for row in others[:n]]
            self.known[layer, target] = (sqrt(fmean(squares)) if squares else 0.0, len(squares))
        return self.known[layer, target]


def _measured(
    target: TargetRow,
    candidate: Candidate,
    row: ReplayRow | None,
    features: Features,
    kinds: Sequence[str],
    order: Mapping[str, int],
    settings: Discover,
) -> Pathway:
    """All numbers of a pathway but q; its status says only whether they are numbers. kinds: of each context its prompt"""
    source, to = Node.of(candidate.source), Node.of(target.target)
    lost = row is None or _lost(target, row, settings)
    inactive = row is not None and not row.contexts
    values: dict[str, Any] = {"n_active": candidate.n_active}
    if row is not None and not lost and not inactive:
        values = _numbers(target, candidate, row, [order[name] for name in row.contexts], kinds)
        values |= _tests(row, *features.of(source.layer, row.target, settings.replay.control_directions))
    return Pathway(
        source=source.name,
        target=to.name,
        source_layer=source.layer,
        source_id=source.id,
        target_layer=to.layer,
        target_id=to.id,
        gradient=candidate.gradient,
        attribution=candidate.attribution,
        attribution_rel=candidate.attribution_rel,
        passthrough=candidate.passthrough,
        decoder_cosine=candidate.decoder_cosine,
        top_position=candidate.top_position,
        status="source_inactive" if inactive else "numeric_error" if lost else "validated",
        validated=False,
        **values,
    )


def _numbers(
    target: TargetRow, candidate: Candidate, row: ReplayRow, where: Sequence[int], kinds: Sequence[str]
) -> dict[str, Any]:
    """where: the contexts of the row, by number"""
    deltas = row.deltas[ZERO]
    return {
        "n_active": len(deltas),
        "by_prompt": _by_prompt(deltas, [kinds[at] for at in where]),
        "post_delta_mean": short(fmean(row.post[ZERO])),
        "switches_off": short(row.n_off / row.n_on) if row.n_on else None,
        "amplify": _amplified(row),
        **_effect(deltas, target.scale),
        **_line([-candidate.attributions[at] for at in where], deltas),
    }


def _tests(row: ReplayRow, size: float, n: int) -> dict[str, float | None]:
    """size, n: of the second null"""
    per_length = fmean(delta / norm for delta, norm in zip(row.deltas[ZERO], row.norms, strict=True))
    first = _against(per_length, row.directions, row.n_directions)
    second = _against(per_length, size, n)
    p_value = None if first[1] is None or second[1] is None else max(first[1], second[1])
    names = ("z", "p_directions", "z_features", "p_features", "p_value")
    return dict(zip(names, (*first, *second, p_value), strict=True))


def _lost(target: TargetRow, row: ReplayRow, settings: Discover) -> bool:
    """Whether a number is none, or replaying the same value changed the target: by more than a share of its scale, and by more
    than rounding can."""
    numbers = (row.noop, row.directions, *row.norms, *(one for of in row.deltas.values() for one in of))
    allowed = max(settings.replay.noop_tol * max(1.0, target.scale), row.rounding)
    return not all(map(isfinite, numbers)) or row.noop > allowed


def _effect(deltas: Sequence[float], scale: float) -> dict[str, Any]:
    mean = fmean(deltas)
    ends = bootstrap_interval(deltas)
    same = sum(np.sign(delta) == np.sign(mean) for delta in deltas)
    return {
        "delta_mean": short(mean),
        "delta_ci": None if ends.low is None or ends.high is None else (short(ends.low), short(ends.high)),
        "rel_effect": short(abs(mean) / scale) if scale else None,
        "sign_agreement": short(same / len(deltas)),
    }


def _against(per_length: float, size: float, n: int) -> tuple[float | None, float | None]:
    """z and p, two-sided: Student's t of an effect per length, with the size of a null of `n` effects as its deviation."""
    from scipy.stats import t

    if n < 2 or not size:
        return None, None
    score = per_length / size
    return short(score), short(2 * t.sf(abs(score), n - 1))


def _line(predicted: Sequence[float], deltas: Sequence[float]) -> dict[str, float | None]:
    """How gradients foretell effects over contexts: correlation and slope, where three contexts or more differ."""
    told: dict[str, float | None] = {"predicted_mean": short(fmean(predicted)), "correlation": None, "slope": None}
    x, y = np.asarray(predicted), np.asarray(deltas)
    if len(x) < 3 or not x.std() or not y.std():
        return told
    correlation = float(np.corrcoef(x, y)[0, 1])
    return told | {"correlation": short(correlation), "slope": short(correlation * y.std() / x.std())}


def _amplified(row: ReplayRow) -> dict[str, float] | None:
    """The first mode that is no ablation."""
    mode = next((mode for mode in row.deltas if mode != ZERO), None)
    return None if mode is None else {"factor": float(mode.split()[1]), "delta_mean": short(fmean(row.deltas[mode]))}


def _by_prompt(deltas: Sequence[float], kinds: Sequence[str]) -> dict[str, dict[str, float | int]]:
    of = {kind: [delta for delta, one in zip(deltas, kinds, strict=True) if one == kind] for kind in sorted(set(kinds))}
    return {kind: {"delta_mean": short(fmean(values)), "n": len(values)} for kind, values in of.items()}


def _corrected(found: Sequence[Pathway], settings: Discover) -> list[float | None]:
    """By Benjamini-Hochberg, over all pathways or over those of a target; what was not tested is counted nowhere."""
    families: dict[str, list[int]] = {}
    for at, one in enumerate(found):
        if one.p_value is not None:
            families.setdefault(one.target if settings.fdr.family == "per_target" else "", []).append(at)
    corrected: list[float | None] = [None] * len(found)
    for family in families.values():
        for at, q in zip(family, adjusted([p for i in family if (p := found[i].p_value) is not None]), strict=True):
            corrected[at] = short(q)
    return corrected


def _judged(one: Pathway, q: float | None, settings: Discover) -> Pathway:
    status = one.status if one.status != "validated" else _status(one, q, settings)
    return one.model_copy(update={"q_value": q, "status": status, "validated": status == "validated"})


def _status(one: Pathway, q: float | None, settings: Discover) -> Status:
    """The first thing that is missing."""
    limits = settings.replay
    if q is None or q > settings.fdr.q:
        return "not_specific"
    if (one.rel_effect or 0.0) < limits.min_rel_effect:
        return "small_effect"
    if (one.sign_agreement or 0.0) < limits.min_sign_agreement:
        return "unstable_sign"
    return "mode_disagreement" if _disagrees(one) else "validated"


def _disagrees(one: Pathway) -> bool:
    """More of a source must do the opposite of none of it, and less of it the same."""
    if one.amplify is None or one.delta_mean is None:
        return False
    return one.delta_mean * one.amplify["delta_mean"] * (one.amplify["factor"] - 1) >= 0


def summary_of(pathways: Sequence[Pathway], targets: Iterable[TargetRow]) -> PathwaysSummary:
    """All statuses are counted; layer pairs of those that were validated."""
    pairs = sorted((one.source_layer, one.target_layer) for one in pathways if one.validated)
    return PathwaysSummary(
        validated=len(pairs),
        by_status=dict(sorted(Counter(one.status for one in pathways).items())),
        by_layer_pair={f"{low}->{high}": n for (low, high), n in Counter(pairs).items()},
        targets=dict(sorted(Counter(one.status for one in targets).items())),
    )
