"""A prefix that some layers see and others do not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch

    from fvcore.experiments.select_kv.errors import UnsupportedPositioning
    from fvcore.model.hooks import HookNeverFired, hide_slots, one_token_per_row
    from tests.fvcore.experiments.select_kv.worlds import (
        DEMO,
        QUERY,
        SELECTED,
        builder,
        forward,
        furthest,
        read,
        runtime,
    )  # fmt: skip

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.prefix import Prefix

both = pytest.mark.parametrize("attn", ["eager", "sdpa"])
families = pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])


def prefix_of(family: str, attn: str, sink: bool = False) -> Prefix:
    return builder(family, "gather", "compact", sink, attn).build(read(family, sink, attn), DEMO, SELECTED)


@both
@families
def test_hidden_everywhere_it_is_not_there(family: str, attn: str) -> None:
    """Rotary positions alone: the query stands further on than without the prefix, and it makes no difference."""
    hidden = replace(prefix_of(family, attn), visible_layers=())
    base = runtime(family, attn).next_logits([QUERY])[0]

    assert furthest(runtime(family, attn).next_logits([QUERY], hidden)[0], base) < 2e-5


@both
@families
def test_seen_everywhere_it_is_as_without_a_scope(family: str, attn: str) -> None:
    whole = prefix_of(family, attn)
    answers = [
        runtime(family, attn).next_logits([QUERY], one) for one in (whole, replace(whole, visible_layers=(0, 1)))
    ]

    assert torch.equal(*answers)


@both
@families
def test_each_layer_carries_something_of_its_own(family: str, attn: str) -> None:
    whole = prefix_of(family, attn)
    scopes = [whole, *(replace(whole, visible_layers=seen) for seen in ((), (0,), (1,)))]
    answers = runtime(family, attn).next_logits_of_prefixes(QUERY, scopes)

    assert all(furthest(a, b) > 0.01 for at, a in enumerate(answers) for b in answers[:at])


@both
def test_hidden_with_a_single_token_and_no_mask_of_the_models_own(attn: str) -> None:
    """For one token behind slots that are all seen, a kernel may be handed no mask at all."""
    shrunk = builder("llama", "gather", "compact", attn=attn, prefix__padding_mode="shrink_to_selected")
    hidden = replace(shrunk.build(read("llama", attn=attn), DEMO, SELECTED), visible_layers=())

    found = runtime("llama", attn).next_logits([QUERY[:1]], hidden)[0]
    assert furthest(found, forward("llama", QUERY[:1], attn=attn)) < 2e-5


@inference_mode
def test_the_sink_is_seen_by_every_layer() -> None:
    hidden = replace(prefix_of("llama", "eager", sink=True), visible_layers=())
    first_slot = replace(hidden, sink_len=0)
    on_the_sink = runtime("llama").next_logits([QUERY], hidden)[0]

    assert furthest(on_the_sink, runtime("llama").next_logits([QUERY], first_slot)[0]) > 0.01


def test_settings_name_the_layers() -> None:
    assert builder("llama", "gather", "compact").visible_layers is None
    assert builder("llama", "gather", "compact", layer_scope__injection="top25").visible_layers == (1,)
    assert builder("llama", "gather", "compact", layer_scope__injection=[0]).visible_layers == (0,)
    with pytest.raises(UnsupportedPositioning, match="names layer 7; this model has layers 0 to 1"):
        builder("llama", "gather", "compact", layer_scope__injection=[1, 7])


def test_hooks_that_saw_nothing_say_so() -> None:
    lm = runtime("llama").lm
    with pytest.raises(HookNeverFired, match="hiding slots at layer 1"), hide_slots(lm, {1: torch.ones(1, 2) > 0}):
        pass
    with pytest.raises(HookNeverFired, match="output head"), one_token_per_row(lm, torch.tensor([0])):
        pass
    assert not lm.blocks[1]._forward_pre_hooks
    assert not lm.hf.get_output_embeddings()._forward_pre_hooks
