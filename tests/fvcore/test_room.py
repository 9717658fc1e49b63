"""A prompt that is longer than the model reads is one sentence, whatever the tokenizer allows and whichever door is taken."""

from __future__ import annotations

from typing import Any

import pytest

from fvcore.embedded.every_type import tiny_model
from fvcore.embedded.random_models import toy_tokenizer, trials_for
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.activations import mean_head_activations
    from fvcore.fast import engines
    from fvcore.fast.engines import why_not_fast
    from fvcore.injection import answer_nlls, generated_ids, inject_generate, inject_logits, inject_nll
    from fvcore.model.model import LanguageModel, ModelError
    from fvcore.pipeline import Pipeline, Settings
    from fvcore.prompts import Prompt

NO_SLOTS: Any = None  # nobody comes as far as that
LONG, SHORT = list(range(3, 43)), list(range(3, 9))


def short_model(kind: str, n_tokens: int = 24) -> LanguageModel:
    tokenizer = toy_tokenizer("gpt2")
    limit = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    hf = tiny_model(kind, len(tokenizer), **{limit: n_tokens})
    return LanguageModel.wrap(hf, tokenizer, kind)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_the_limit_is_the_models(kind: str) -> None:
    assert short_model(kind).max_tokens == 24


def test_a_table_that_is_smaller_than_the_config_says_counts() -> None:
    lm = short_model("gpt2", 64)
    lm.hf.transformer.wpe = torch.nn.Embedding(20, 32)
    assert LanguageModel.wrap(lm.hf).max_tokens == 20


def test_positions_that_are_computed_without_end_have_no_limit() -> None:
    tokenizer = toy_tokenizer("gpt2")
    assert LanguageModel.wrap(tiny_model("bloom", len(tokenizer))).max_tokens is None


def answered(ids: list[int], answer: tuple[int, ...]) -> Prompt:
    return Prompt("", tuple(ids), answer)


DOORS: dict[str, Any] = {
    "means": lambda lm, ids, vector: mean_head_activations(lm, [(ids, NO_SLOTS)]),
    "fast means": lambda lm, ids, vector: engines.mean_head_activations(lm, [(ids, NO_SLOTS)]),
    "logits": lambda lm, ids, vector: inject_logits(lm, [ids], [vector], [0], engine="exact"),
    "fast logits": lambda lm, ids, vector: inject_logits(lm, [ids], [vector], [0]),
    "likelihood": lambda lm, ids, vector: inject_nll(lm, ids, [5], vector, 0),
    "likelihoods": lambda lm, ids, vector: answer_nlls(lm, [answered(ids, (5,))]),
    "generation": lambda lm, ids, vector: inject_generate(lm, ids, vector, 0),
    "generations": lambda lm, ids, vector: generated_ids(lm, [ids]),
}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_says_so(kind: str, door: str) -> None:
    with pytest.raises(ModelError, match=rf"\d+ tokens to read, .* and {kind} reads 24 .*use fewer shots"):
        DOORS[door](short_model(kind), LONG, torch.ones(32))


def test_what_is_generated_counts() -> None:
    lm, vector = short_model("gpt2"), torch.ones(32)
    assert len(inject_generate(lm, SHORT, vector, 0, n_tokens=19).base_ids) <= 19
    with pytest.raises(ModelError, match="25 tokens to read"):
        inject_generate(lm, SHORT, vector, 0, n_tokens=20)


def test_engine_fast_is_asked_on_prompts_that_the_model_reads() -> None:
    assert not why_not_fast(short_model("gpt2"))


def test_trials_that_leave_no_room_for_what_is_generated_are_refused_before_anything_runs() -> None:
    lm = short_model("gpt2", 256)
    trials = trials_for(lm, 1, 2)
    Pipeline(lm, trials, Settings(0)).require_room()
    longest = max(
        Pipeline(lm, trials, Settings(0)).prompt(trials.trials[0], regime).boundary for regime in ("clean", "corrupted")
    )
    tight = short_model("gpt2", longest + 14)
    with pytest.raises(ModelError, match=f"{longest + 15} tokens to read"):
        Pipeline(tight, trials, Settings(0)).require_room()
