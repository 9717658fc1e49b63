"""What a vector says through the output head, asked of the model and of no part by name."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from fvcore.embedded.random_models import FAMILIES, random_lm
from fvcore.model.spec import ModelError
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.decoding import top_tokens, vector_logits
    from fvcore.experiments.evaluation.vectors import gaussian
    from tests.fvcore.evaluation import worlds


FINAL_NORMS = {"gpt2": "transformer.ln_f", "gptj": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_through_the_model_is_final_norm_and_head(self, family: str) -> None:
        lm = random_lm(family)
        vector = worlds.random_vector(lm, 3)
        norm = lm.hf.get_submodule(FINAL_NORMS.get(family, "model.norm"))
        expected = lm.hf.get_output_embeddings()(norm(vector[None, None]))[0, 0]
        torch.testing.assert_close(vector_logits(lm, vector), expected, rtol=0, atol=1e-6)

    def test_through_the_head_alone_length_counts(self, family: str) -> None:
        lm = random_lm(family)
        vector = worlds.random_vector(lm, 3)
        head = lm.hf.get_output_embeddings()
        torch.testing.assert_close(vector_logits(lm, vector, "head"), head(vector), rtol=0, atol=1e-6)
        one, two = (vector_logits(lm, k * vector, "head") for k in (1, 2))
        assert float((two - one).abs().max()) > 0.1

    def test_the_model_is_left_as_it_was(self, family: str) -> None:
        lm, ids = random_lm(family), [5, 6, 7]
        before = lm.logits(lm.ids(ids))
        vector_logits(lm, worlds.random_vector(lm))
        assert torch.equal(lm.logits(lm.ids(ids)), before)


def test_a_way_that_is_none_is_named() -> None:
    lm = random_lm(FAMILIES[0])
    with pytest.raises(ValueError, match="unknown way 'heads'; expected one of model, head"):
        vector_logits(lm, worlds.random_vector(lm), "heads")


def test_what_the_last_block_puts_out_says_what_the_model_says() -> None:
    """The logit lens at the last block is the model itself."""
    lm = worlds.model("tiny-gpt2")
    ids = lm.tokenizer("Q: hot\nA:").input_ids
    last: list[torch.Tensor] = []
    handle = lm.blocks[-1].register_forward_hook(
        lambda module, args, output: last.append((output[0] if isinstance(output, tuple) else output)[0, -1])
    )
    try:
        logits = lm.logits(lm.ids(ids))[0, -1]
    finally:
        handle.remove()
    torch.testing.assert_close(vector_logits(lm, last[0]), logits, rtol=0, atol=2e-5)


def test_tokens_come_with_the_largest_first_and_probabilities_of_all() -> None:
    lm = worlds.model("tiny-llama")
    tokens = top_tokens(lm, worlds.random_vector(lm), 10**6)
    assert len(tokens) == lm.vocab_size
    assert [token["logit"] for token in tokens] == sorted((token["logit"] for token in tokens), reverse=True)
    assert sum(token["probability"] for token in tokens) == pytest.approx(1, abs=1e-4)
    assert tokens[0]["text"] == lm.tokenizer.decode([tokens[0]["token_id"]])


def test_a_model_without_an_output_head_is_told() -> None:
    lm = random_lm("llama")
    lm.hf.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="names no output head"):
        vector_logits(lm, torch.ones(lm.d_model), "head")


def share_among(tokens: list[dict[str, Any]], ids: set[int]) -> float:
    return fmean(token["token_id"] in ids for token in tokens)


@pytest.mark.parametrize("way", ["model", "head"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_the_vector_of_a_shipped_model_says_none_of_the_answers_it_brings_about(name: str, way: str) -> None:
    """It makes zero-shot prompts work, and not by naming answers: of what noise of its length says, about a third is answers."""
    lm, vector = worlds.model(name), worlds.vector_of_best_heads(name).vector
    answers = worlds.bench(name).answer_tokens()
    noise = [share_among(top_tokens(lm, gaussian(vector, seed), 10, way), answers) for seed in range(20)]

    assert share_among(top_tokens(lm, vector, 10, way), answers) == 0
    assert fmean(noise) > 0.2


def test_first_tokens_of_answers_are_found_at_the_boundary() -> None:
    bench = worlds.bench()
    words = {bench.lm.tokenizer.decode([token]) for token in bench.answer_tokens()}
    answers = [f" {row.answers[0]}" for row in bench.task.rows]
    assert len(words) > 60
    assert all(any(answer.startswith(word) for word in words) for answer in answers)
    assert all(word.startswith(" ") for word in words)
