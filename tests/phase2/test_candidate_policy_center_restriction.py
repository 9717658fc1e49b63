"""Where a span may be anchored, and that only its anchor is asked: what it holds beside may be an answer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.experiments.select_kv.data import Demo
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.select_kv.errors import SelectionError
    from fvcore.experiments.select_kv.selection import (
        Selection,
        allowed_anchors,
        candidates,
        recent,
        select,
    )  # fmt: skip
    from tests.fvcore.experiments.select_kv.worlds import settings

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2

TEXT = "Demo:\nkey_0 -> V0\nkey_1 -> V1\n\n"
WORDS = ((6, 11), (12, 14), (15, 17), (18, 23), (24, 26), (27, 29))
ROLES = ("key", "arrow", "value", "key", "arrow", "value")
PAIRS = Demo(TEXT, tuple(range(6)), WORDS, ROLES)


def demo_of(n: int, values: tuple[int, ...] = (), text: str = "") -> Demo:
    """A demo of `n` one-letter tokens, some of them values."""
    roles = tuple("value" if at in values else "key" for at in range(n))
    return Demo(text or "x" * n, tuple(range(n)), tuple((at, at + 1) for at in range(n)), roles)


def asked(span_len: int = 2, budget: int = 1, distance: int = 0, center: str = "start", **more: Any) -> Phase2:
    return settings(
        select__span_len=span_len, select__span_budget=budget, select__min_span_distance=distance,
        select__center_policy=center, **more,
    )  # fmt: skip


def test_values_are_no_anchors() -> None:
    assert allowed_anchors(asked(), PAIRS) == [True, True, False, True, True, False]
    assert allowed_anchors(asked(select__candidate_policy="all"), PAIRS) == [True] * 6


def test_the_best_span_whose_anchor_may_be_one_is_chosen() -> None:
    """The first token scores most and may not be an anchor; the span of the second best begins with one that may."""
    demo = demo_of(4, values=(0,))
    scores = torch.tensor([0.9, 0.8, 0.1, 0.1])

    assert select(asked(), demo, scores).spans == ((1, 3),)
    assert select(asked(select__candidate_policy="all"), demo, scores).spans == ((0, 2),)


def test_a_span_may_hold_a_value_behind_its_anchor() -> None:
    chosen = select(asked(), PAIRS, torch.tensor([0.0, 0.6, 0.9, 0.0, 0.0, 0.0]))

    assert chosen.spans == ((1, 3),)
    assert chosen.anchors == (1,)
    assert PAIRS.roles[chosen.indices[1]] == "value"


def test_the_centre_of_a_span_is_its_anchor_under_the_policy_of_the_centre() -> None:
    at_start, at_centre = (candidates(asked(4, center=center), PAIRS) for center in ("start", "center"))

    assert at_start == [(0, 4), (1, 5)]
    assert at_centre == [(0, 4), (2, 6)]
    chosen = select(asked(4, center="center"), PAIRS, torch.tensor([0.0, 0, 1, 1, 1, 1]))
    assert (chosen.spans, chosen.anchors) == (((2, 6),), (3,))


def test_a_demo_shorter_than_a_span_is_one_span() -> None:
    assert candidates(asked(9), PAIRS) == [(0, 6)]
    assert select(asked(9), PAIRS, torch.zeros(6)).indices == tuple(range(6))


def test_of_equal_spans_the_first_is_chosen() -> None:
    assert select(asked(budget=2), demo_of(9), torch.ones(9)).spans == ((0, 2), (2, 4))


@pytest.mark.parametrize("distance, spans", [(0, ((0, 2), (2, 4))), (1, ((0, 2), (3, 5))), (3, ((0, 2), (5, 7)))])
def test_spans_leave_their_distance(distance: int, spans: Any) -> None:
    scores = torch.tensor([9.0, 9, 8, 8, 7, 7, 1, 1, 1])

    assert select(asked(budget=2, distance=distance), demo_of(9), scores).spans == spans


def test_fewer_spans_than_asked_for_are_said() -> None:
    chosen = select(asked(budget=4, distance=5), demo_of(9), torch.ones(9))

    assert len(chosen.spans) == 2
    assert chosen.fewer
    assert not select(asked(budget=2), demo_of(9), torch.ones(9)).fewer


def test_no_anchor_is_an_error_and_never_the_first_tokens() -> None:
    values = demo_of(5, values=(0, 1, 2, 3, 4))

    for mode in ("attention_diversity_span", "delimiter_span", "random_span", "causal_drop_span"):
        with pytest.raises(SelectionError, match=f"no span of the demo may be chosen.*{mode}"):
            select(asked(), values, torch.ones(5), torch.ones(0), mode=mode)
    assert select(asked(prefix_len=0), values, torch.ones(5)).indices == ()


def test_scores_that_are_missing_or_no_numbers_are_an_error() -> None:
    with pytest.raises(SelectionError, match=r"expected 6 scores, .* found none"):
        select(asked(), PAIRS)
    with pytest.raises(SelectionError, match=r"expected 4 drop_scores, one of each candidate; found \(2,\)"):
        select(asked(), PAIRS, None, torch.ones(2), mode="causal_drop_span")
    with pytest.raises(SelectionError, match="NaN"):
        select(asked(), PAIRS, torch.tensor([0, 1, float("nan"), 0, 0, 0]))


def test_a_dropped_span_counts_by_what_its_dropping_does() -> None:
    spans = candidates(asked(), PAIRS)
    drops = torch.tensor([0.1, 0.2, 0.9, 0.3])

    chosen = select(asked(budget=2), PAIRS, torch.ones(6), drops, mode="causal_drop_span")
    assert chosen.spans == (spans[1], spans[2])
    assert chosen.ranks == (1, 0)
    assert chosen.scores == pytest.approx((0.2, 0.9))


def test_delimiters_are_taken_evenly_and_then_in_order() -> None:
    roles = ("header", *("key", "arrow", "value") * 5)
    demo = Demo("x" * 16, tuple(range(16)), tuple((at, at + 1) for at in range(16)), roles)

    chosen = select(asked(2, budget=2), demo, mode="delimiter_span")
    assert chosen.anchors == (5, 11)  # arrows 1 and 3 of five
    assert chosen.spans == ((5, 7), (11, 13))
    centred = select(asked(3, budget=2, center="center"), demo, mode="delimiter_span")
    assert centred.spans == ((4, 7), (10, 13))
    # Of the even four the last would overlap its neighbour; the one arrow that is left takes its place.
    filled = select(asked(3, budget=4), demo, mode="delimiter_span")
    assert filled.anchors == (2, 5, 8, 11)
    assert filled.ranks == (0, 1, 3, 2)


def test_a_demo_without_arrows_has_its_newlines() -> None:
    roles = ("key", "value", "newline", "key", "value", "newline")
    demo = Demo("x" * 6, tuple(range(6)), tuple((at, at + 1) for at in range(6)), roles)

    assert select(asked(1, budget=4), demo, mode="delimiter_span").spans == ((2, 3), (5, 6))


def test_chance_is_fixed_by_seed_trial_and_sample() -> None:
    demo, one = demo_of(40, values=(3, 4, 5)), asked(2, budget=3, distance=1)

    def drawn(trial: int, index: int, seed: int = 7) -> Selection:
        return select(one.changed({"seed": seed}), demo, trial=trial, index=index, mode="random_span")

    first = [drawn(trial, index) for trial in range(5) for index in range(4)]
    again = [drawn(trial, index) for trial in reversed(range(5)) for index in reversed(range(4))]
    assert first == again[::-1]
    assert len({one.spans for one in first}) == 20
    assert drawn(0, 0, seed=8).spans != drawn(0, 0).spans
    assert drawn(-1, 0).spans not in {one.spans for one in first}
    assert all(len(one.indices) == 6 and not {3, 4, 5} & set(one.anchors) for one in first)


def test_chance_is_even() -> None:
    """Every anchor of ten comes up about as often as the others: 200 of 2,000 draws, give or take five deviations."""
    demo, one = demo_of(11), asked(2)
    counts = Counter(select(one, demo, trial=at, mode="random_span").spans[0] for at in range(2000))

    assert len(counts) == 10
    assert all(abs(n - 200) < 5 * 180**0.5 for n in counts.values())


def test_as_many_spans_as_are_asked_for() -> None:
    assert len(select(asked(budget=4), demo_of(20), trial=0, mode="random_span", budget=2).spans) == 2


def test_the_last_tokens() -> None:
    assert recent(PAIRS, 2).indices == (4, 5)
    assert recent(PAIRS, 2).mode == "recent"
    assert recent(PAIRS, 90).indices == tuple(range(6))
    assert recent(PAIRS, 0).indices == ()
