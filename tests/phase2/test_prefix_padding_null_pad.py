"""Null slots fix a prefix's shape and change nothing: zero, hidden, and without a position."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.select_kv.errors import SelectionError
    from fvcore.experiments.select_kv.selection import select
    from tests.fvcore.experiments.select_kv.worlds import (
        DEMO,
        QUERY,
        SINK,
        builder,
        divergence,
        furthest,
        read,
        runtime,
        settings,
    )  # fmt: skip
    from tests.phase2.test_candidate_policy_center_restriction import demo_of

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.prefix import Prefix

MODELS = [("llama", "gather", "compact"), ("gpt_neox", "gather", "compact"), ("gpt2", "gather", "absolute"), ("gpt2", "recompute", "compact")]  # fmt: skip
every = pytest.mark.parametrize("family, source, mode", MODELS)
SIXTEEN = tuple(range(1, 17))


def prefix_of(family: str, source: str, mode: str, padding: str, sink: bool = True) -> Prefix:
    made = builder(family, source, mode, sink, prefix__padding_mode=padding)
    return made.build(read(family, sink), DEMO, SIXTEEN)


@every
def test_null_slots_fill_up_to_the_prefix_length(family: str, source: str, mode: str) -> None:
    prefix = prefix_of(family, source, mode, "null_pad")

    assert (prefix.n_slots, prefix.sink_len, prefix.null_len, len(prefix.selected)) == (33, 1, 16, 16)
    assert prefix.mask == (1,) + (0,) * 16 + (1,) * 16
    for keys, values in prefix.layers:
        assert keys.shape[2] == values.shape[2] == 33
        assert not keys[:, :, 1:17].any()
        assert not values[:, :, 1:17].any()
        assert bool(keys[:, :, 17:].any(dim=-1).all())


@every
def test_null_slots_have_no_position(family: str, source: str, mode: str) -> None:
    prefix = prefix_of(family, source, mode, "null_pad")
    first = 1 + (16 if mode == "compact" else len(DEMO))

    assert prefix.next_position == first
    assert prefix.selected_positions == tuple(range(1, 17) if mode == "compact" else (1 + at for at in SIXTEEN))


@every
def test_a_padded_prefix_answers_as_one_without_padding(family: str, source: str, mode: str) -> None:
    padded, shrunk = (prefix_of(family, source, mode, padding) for padding in ("null_pad", "shrink_to_selected"))
    answers = [runtime(family).next_logits([QUERY], prefix)[0] for prefix in (padded, shrunk)]

    assert (shrunk.n_slots, shrunk.null_len) == (17, 0)
    assert furthest(*answers) <= 1e-5


@every
@pytest.mark.parametrize("sink", [False, True], ids=["bare", "sink"])
def test_a_prefix_of_null_slots_alone_is_none(family: str, source: str, mode: str, sink: bool) -> None:
    made = builder(family, source, mode, sink)
    base = runtime(family).next_logits([[SINK] * sink + list(QUERY)])[0]
    for length in (0, 1, 32):
        null = made.null(length)

        assert null.mask == (1,) * sink + (0,) * length
        assert divergence(runtime(family).next_logits([QUERY], null)[0], base) <= 1e-9


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_null_slots_that_are_seen_take_attention_away(family: str) -> None:
    """The control: zeros are no absence."""
    null = builder(family, "auto", "compact").null()
    seen = replace(null, mask=(1,) * null.n_slots)
    base = runtime(family).next_logits([QUERY])[0]

    assert divergence(runtime(family).next_logits([QUERY], seen)[0], base) > 1e-3


def test_null_slots_that_are_counted_move_learned_positions() -> None:
    """The control: hidden is not enough where positions are learned."""
    null = builder("gpt2", "auto", "compact").null()
    counted = replace(null, next_position=null.n_slots)
    base = runtime("gpt2").next_logits([QUERY])[0]

    assert divergence(runtime("gpt2").next_logits([QUERY], counted)[0], base) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_null_slots_that_are_counted_stretch_the_distance_to_what_is_selected(family: str) -> None:
    padded = prefix_of(family, "gather", "compact", "null_pad", sink=False)
    counted = replace(padded, next_position=padded.n_slots)
    answers = [runtime(family).next_logits([QUERY], prefix)[0] for prefix in (padded, counted)]

    assert divergence(*answers) > 1e-3


def test_too_long_a_selection_is_cut_by_rank_and_not_by_position() -> None:
    """The best span comes last in the demo: with room for one span, it is the one that is kept."""
    demo = demo_of(12)
    scores = torch.tensor([0.5, 0.5, 0.1, 0.1, 0.4, 0.4, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9])
    asked = settings(select__span_len=2, select__span_budget=3, select__min_span_distance=1, prefix_len=3)
    chosen = select(asked, demo, scores)

    assert chosen.spans == ((0, 2), (4, 6), (10, 12))
    assert chosen.ranks == (1, 2, 0)
    assert chosen.indices == (0, 10, 11)
    assert chosen.truncated


def test_a_prefix_holds_no_more_than_its_length() -> None:
    made = builder("llama", "gather", "compact", prefix_len=3)

    with pytest.raises(SelectionError, match=r"4 tokens selected, and the prefix holds 3"):
        made.build(read("llama"), DEMO, (1, 2, 3, 4))
    assert made.full(read("llama"), DEMO).n_slots == len(DEMO)


def test_tokens_that_the_demo_does_not_have_are_refused() -> None:
    made = builder("llama", "gather", "compact")

    for wrong in ((3, 2), (2, 2), (-1, 2), (0, len(DEMO))):
        with pytest.raises(SelectionError, match="in ascending order"):
            made.build(read("llama"), DEMO, wrong)
    with pytest.raises(SelectionError, match=r"0 sink and 24 demo tokens, found 1 and 24"):
        made.build(read("llama", sink=True), DEMO, (1,))
