"""Every kind of prefix gives what another way of computing the same thing gives, on models of unlike positions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch
    from torch import Tensor
    from transformers import DynamicCache

    from fvcore.experiments.select_kv.errors import UnsupportedPositioning
    from fvcore.experiments.select_kv.prefix import PrefixBuilder
    from fvcore.model.prefix import cache_given, prefix_cache
    from tests.fvcore.experiments.select_kv import worlds
    from tests.fvcore.experiments.select_kv.worlds import (
        CLOSE,
        DEMO,
        QUERY,
        SELECTED,
        SINK,
        builder,
        divergence,
        forward,
        furthest,
        read,
        runtime,
    )  # fmt: skip

ROTARY = ("llama", "qwen2", "gpt_neox")
ALL = (*ROTARY, "gpt2")
sinks = pytest.mark.parametrize("sink", [False, True], ids=["bare", "sink"])


def answer(family: str, source: str, mode: str, sink: bool, **changes: Any) -> Tensor:
    prefix = builder(family, source, mode, sink, **changes).build(read(family, sink), DEMO, SELECTED)
    return runtime(family).next_logits([QUERY], prefix)[0]


@sinks
@pytest.mark.parametrize("family", ALL)
def test_recomputed_compact_is_the_selected_tokens_and_the_query_read_as_one_text(family: str, sink: bool) -> None:
    expected = forward(family, [SINK] * sink + [DEMO[at] for at in SELECTED] + list(QUERY))

    assert furthest(answer(family, "recompute", "compact", sink), expected) < CLOSE


@sinks
@pytest.mark.parametrize("family", ALL)
def test_recomputed_absolute_is_one_text_with_gaps_in_its_positions(family: str, sink: bool) -> None:
    end = sink + len(DEMO)
    positions = [*range(sink), *(sink + at for at in SELECTED), *range(end, end + len(QUERY))]
    expected = forward(family, [SINK] * sink + [DEMO[at] for at in SELECTED] + list(QUERY), positions)

    assert furthest(answer(family, "recompute", "absolute", sink), expected) < CLOSE


@sinks
@pytest.mark.parametrize("family", ALL)
@inference_mode
def test_gathered_absolute_is_the_whole_demo_with_the_rest_hidden(family: str, sink: bool) -> None:
    hf, cache = runtime(family).lm.hf, DynamicCache()
    whole = [SINK] * sink + list(DEMO)
    hf(torch.tensor([whole]), **cache_given(hf, cache), use_cache=True)
    seen = [1] * sink + [int(at in SELECTED) for at in range(len(DEMO))] + [1] * len(QUERY)
    positions = torch.arange(len(whole), len(whole) + len(QUERY))[None]
    expected = hf(
        torch.tensor([QUERY]), attention_mask=torch.tensor([seen]), position_ids=positions, **cache_given(hf, cache),
        use_cache=True,
    ).logits[0, -1]  # fmt: skip

    assert furthest(answer(family, "gather", "absolute", sink), expected) < CLOSE


@contextmanager
def _keys_before_rotation(family: str) -> Iterator[list[Tensor]]:
    """What enters the model's own rotation, layer by layer."""
    module = sys.modules[type(runtime(family).lm.blocks[0]).__module__]
    own, seen = module.apply_rotary_pos_emb, list[Tensor]()

    def looking(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(k)
        return own(q, k, *args, **kwargs)

    module.apply_rotary_pos_emb = looking
    try:
        yield seen
    finally:
        module.apply_rotary_pos_emb = own


@inference_mode
def _rotated_by_the_model(family: str, keys: Tensor) -> Tensor:
    """Keys (1, kv_heads, slot, d_head) without positions, at positions 0, 1, ..., by the model's own code."""
    hf = runtime(family).lm.hf
    rotary = next(module for name, module in hf.named_modules() if name.endswith("rotary_emb"))
    cos, sin = rotary(keys, torch.arange(keys.shape[2])[None])
    own = sys.modules[type(runtime(family).lm.blocks[0]).__module__].apply_rotary_pos_emb
    turned: Tensor = own(keys, keys, cos, sin)[1]
    return turned


@sinks
@pytest.mark.parametrize("family", ROTARY)
@inference_mode
def test_gathered_compact_has_the_keys_that_the_model_would_have_rotated_there(family: str, sink: bool) -> None:
    with _keys_before_rotation(family) as before:
        demo = read(family, sink)
    prefix = builder(family, "gather", "compact", sink, prefix__padding_mode="shrink_to_selected").build(
        demo, DEMO, SELECTED
    )
    slots = torch.tensor([*range(sink), *(sink + at for at in SELECTED)])
    oracle = [_rotated_by_the_model(family, keys[:, :, slots]) for keys in before]

    for (keys, values), expected, (_, of_demo) in zip(prefix.layers, oracle, demo.layers, strict=True):
        assert furthest(keys, expected) <= 4e-7 * float(expected.abs().max()) + 1e-6
        assert torch.equal(values, of_demo[:, :, slots])

    own = DynamicCache()
    for layer, (expected, (_, values)) in enumerate(zip(oracle, prefix.layers, strict=True)):
        own.update(expected, values, layer)
    n = len(slots)
    hf = runtime(family).lm.hf
    logits = hf(
        torch.tensor([QUERY]), attention_mask=torch.ones(1, n + len(QUERY), dtype=torch.long),
        position_ids=torch.arange(n, n + len(QUERY))[None], **cache_given(hf, own), use_cache=True,
    ).logits[0, -1]  # fmt: skip
    assert furthest(runtime(family).next_logits([QUERY], prefix)[0], logits) < CLOSE


@pytest.mark.parametrize("family", ALL)
@inference_mode
def test_keys_gathered_and_not_rotated_give_something_else(family: str) -> None:
    """The control of the oracles: the same slots, and positions as the library derives them for itself."""
    demo, at = read(family), torch.tensor(SELECTED)
    naive = [(keys[:, :, at], values[:, :, at]) for keys, values in demo.layers]
    hf = runtime(family).lm.hf
    logits = hf(torch.tensor([QUERY]), **cache_given(hf, prefix_cache(naive)), use_cache=True).logits
    right = answer(family, "gather", "absolute" if family == "gpt2" else "compact", False)

    assert furthest(logits[0, -1], right) > 0.05
    assert divergence(logits[0, -1], right) > 1e-3


@pytest.mark.parametrize("family", ROTARY)
@pytest.mark.parametrize("source", ["gather", "recompute"])
@pytest.mark.parametrize("mode", ["compact", "absolute"])
def test_the_whole_demo_through_the_builder_is_the_teacher(family: str, source: str, mode: str) -> None:
    full = builder(family, source, mode, sink=True).full(read(family, True), DEMO)

    teacher = forward(family, [SINK, *DEMO, *QUERY])
    assert furthest(runtime(family).next_logits([QUERY], full)[0], teacher) < CLOSE
    assert full.selected == tuple(range(len(DEMO)))


@pytest.mark.parametrize("family", ROTARY)
def test_a_block_stands_anywhere_if_the_query_stands_right_behind_it(family: str) -> None:
    """What the shift alone must not change: the second half of a demo, moved to the front or left where it is."""
    half = range(len(DEMO) // 2, len(DEMO))
    logits = [
        runtime(family).next_logits([QUERY], builder(family, "gather", mode).build(read(family), DEMO, half))[0]
        for mode in ("compact", "absolute")
    ]
    assert furthest(*logits) < CLOSE


@pytest.mark.parametrize("family", ROTARY)
def test_rotation_is_tried_on_the_model_itself(family: str) -> None:
    assert 0 < builder(family, "gather", "compact").self_test() <= 1e-5


def test_nothing_is_tried_where_nothing_moves() -> None:
    assert builder("llama", "gather", "absolute").self_test() == 0.0
    assert builder("gpt2", "recompute", "compact").self_test() == 0.0


def test_learned_positions_are_gathered_where_they_were_and_nowhere_else() -> None:
    with pytest.raises(UnsupportedPositioning, match=r"learned.*positioning_mode absolute, or .*kv_source recompute"):
        builder("gpt2", "gather", "compact")

    by_itself = builder("gpt2", "auto", "compact")
    assert (by_itself.kv_source, by_itself.positioning_mode) == ("gather", "absolute")
    assert "absolute" in by_itself.warnings[0]
    assert builder("llama", "auto", "compact").positioning_mode == "compact"


def test_a_single_prefix_is_refused_where_the_builder_would_be() -> None:
    absolute = builder("gpt2", "gather", "absolute")

    with pytest.raises(UnsupportedPositioning, match="learned"):
        absolute.build(read("gpt2"), DEMO, SELECTED, positioning_mode="compact")


@pytest.mark.parametrize(
    "family, reason", [("gptj", "no one set"), ("gemma3_text", "no one set"), ("cohere", "lays out")]
)
def test_a_rotation_that_is_not_understood_is_refused(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedPositioning, match=reason):
        PrefixBuilder(runtime(family), worlds.settings(injection__kv_source="gather"))
