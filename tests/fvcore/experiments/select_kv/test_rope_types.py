"""Rotation by the model's own frequencies, for every kind of them, and the kinds for which there is no one rotation."""

from __future__ import annotations

from typing import Any

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fvcore.embedded.random_models import toy_tokenizer
    from fvcore.experiments.select_kv.errors import UnsupportedPositioning
    from fvcore.experiments.select_kv.model_runtime import ModelRuntime
    from fvcore.experiments.select_kv.prefix import PrefixBuilder
    from fvcore.model.model import LanguageModel
    from tests.fvcore.experiments.select_kv.worlds import settings

KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "dynamic": {"factor": 2.0},
    "longrope": {
        "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64, "factor": 4.0,
    },
}  # fmt: skip


def with_rope(kind: str) -> ModelRuntime:
    torch.manual_seed(0)
    tokenizer = toy_tokenizer()
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, num_hidden_layers=2, max_position_embeddings=256, initializer_range=0.3,
        rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **KINDS[kind]}, attn_implementation="eager",
    )  # fmt: skip
    return ModelRuntime(LanguageModel.wrap(AutoModelForCausalLM.from_config(config), tokenizer))


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_keys_of_every_rope_type_with_fixed_frequencies_are_carried(kind: str) -> None:
    runtime = with_rope(kind)

    assert runtime.info.rope_type == kind
    assert PrefixBuilder(runtime, settings(injection__kv_source="gather")).self_test() <= 1e-5


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_length_carry_nothing(kind: str) -> None:
    runtime = with_rope(kind)

    with pytest.raises(UnsupportedPositioning, match=f"rope type {kind} depend on the length"):
        PrefixBuilder(runtime, settings(injection__kv_source="gather"))
    assert PrefixBuilder(runtime, settings()).positioning_mode == "absolute"


def test_frequencies_that_are_not_the_models_are_noticed() -> None:
    runtime = with_rope("yarn")
    runtime.__dict__["inv_freq"] = with_rope("default").inv_freq

    with pytest.raises(UnsupportedPositioning, match="relative error"):
        PrefixBuilder(runtime, settings(injection__kv_source="gather"))
