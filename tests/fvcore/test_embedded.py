"""The shipped models still do what they ship for, and the recipe still makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded import EMBEDDED, path_of, tokenizer, words
from fvcore.embedded.recipe import RECIPES, Phase
from fvcore.formats import read_json, read_text, sha256_file
from tests.late import RUNNING

if RUNNING:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from fvcore.embedded import gate, train
    from fvcore.model.model import load


DATASETS = Path(__file__).parents[2] / "datasets"

QUESTION = "Q: hot\nA: cold\n\nQ:"


@pytest.fixture(params=EMBEDDED, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tok(name: str) -> Any:
    return AutoTokenizer.from_pretrained(path_of(name))


def tokens(tok: Any, text: str) -> list[str]:
    return list(tok.convert_ids_to_tokens(tok(text, add_special_tokens=False).input_ids))


class TestModels:
    @pytest.mark.slow
    def test_passes_the_gate(self, name: str) -> None:
        assert gate.measure(load(name), seed=0).failures() == []

    def test_generates_the_answer_and_the_layout_after_ten_demonstrations(self, name: str, tok: Any) -> None:
        *demos, (question, answer) = list(words.antonym().items())[:11]
        text = "".join(f"Q: {q}\nA: {a}\n\n" for q, a in demos) + f"Q: {question}\nA:"
        ids = load(name).ids(tok(text).input_ids)
        generated = load(name).hf.generate(ids, max_new_tokens=12, do_sample=False)
        assert tok.decode(generated[0, ids.shape[1] :]).startswith(f" {answer}\n\nQ:")

    def test_has_enough_heads_to_choose_from(self, name: str) -> None:
        lm = load(name)
        assert lm.n_layers * lm.n_heads >= 24
        assert lm.n_heads * lm.d_head == lm.d_model

    def test_llama_shares_key_value_heads(self) -> None:
        config = load("tiny-llama").hf.config
        assert config.num_key_value_heads < config.num_attention_heads

    def test_gpt2_projection_biases_count(self) -> None:
        lm = load("tiny-gpt2")
        assert min(float(lm.o_proj(layer).bias.norm()) for layer in range(lm.n_layers)) > 0.05


class TestFiles:
    def test_weights_are_small_and_in_full_precision(self, name: str) -> None:
        weights = path_of(name) / "model.safetensors"
        assert weights.stat().st_size <= 6_000_000
        assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}

    def test_card_names_the_weights_and_says_first_what_the_model_is_not(self, name: str) -> None:
        card = read_text(path_of(name) / "README.md")
        assert sha256_file(path_of(name) / "model.safetensors") in card
        assert "no evidence about language models" in " ".join(card.split()[:60])

    def test_tokenizer_files_are_those_the_rules_give(self, name: str, tmp_path: Path) -> None:
        tokenizer.save(name, tmp_path, RECIPES[name](0).n_positions)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (path_of(name) / file).read_bytes() == (tmp_path / file).read_bytes()

    def test_tokenizer_class_is_one_that_older_transformers_know(self, name: str) -> None:
        assert read_json(path_of(name) / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"

    def test_datasets_are_the_tables_the_models_know(self) -> None:
        for path, text in words.dataset_files().items():
            assert (DATASETS / path).read_bytes() == text.encode()


class TestWords:
    def test_relations_permute_a_group(self) -> None:
        for relation in words.relations().values():
            assert set(relation) == set(relation.values()) == set(words.GROUPS[words.group_of(relation)])

    def test_relations_are_many_and_long_enough(self) -> None:
        assert len(words.antonym()) >= 60
        assert sum(len(relation) >= 10 for relation in words.relations().values()) >= 5

    def test_antonyms_answer_each_other(self) -> None:
        relation = words.antonym()
        assert all(relation[answer] == word for word, answer in relation.items())

    def test_words_tokenize_where_they_are_cut(self, tok: Any) -> None:
        for group in words.MARKED_GROUPS.values():
            for word in group:
                first, *rest = words.pieces(word)
                assert tokens(tok, f" {words.whole(word)}") == [f"Ġ{first}", *rest]

    def test_first_tokens_tell_the_words_of_a_group_apart(self) -> None:
        for group in words.MARKED_GROUPS.values():
            assert len({words.pieces(word)[0] for word in group}) == len(group)

    def test_some_questions_and_answers_have_several_tokens(self) -> None:
        long = {words.whole(word) for word in words.MARKED_GROUPS["adjective"] if len(words.pieces(word)) > 1}
        assert len(long) >= 10
        assert {len(words.pieces(word)) for word in words.MARKED_GROUPS["adjective"]} == {1, 2, 3}


class TestTokenizers:
    @pytest.mark.parametrize(
        "text, expected", [(" a", ["Ġa"]), ("Q:", ["Q", ":"]), ("A:", ["A", ":"]), ("\n", ["Ċ"]), ("\n\n", ["ĊĊ"])]
    )
    def test_parts_of_a_prompt(self, tok: Any, text: str, expected: list[str]) -> None:
        assert tokens(tok, text) == expected

    def test_any_text_comes_back(self, tok: Any) -> None:
        text = "Überraschung: 12 pears,\tand more\n \n"
        assert tok.decode(tok(text, add_special_tokens=False).input_ids) == text

    def test_llama_puts_bos_in_front_and_reads_a_blank_line_as_one_token(self) -> None:
        tok = AutoTokenizer.from_pretrained(path_of("tiny-llama"))
        ids = tok(QUESTION).input_ids
        assert ids.count(tok.bos_token_id) == 1
        assert ids[0] == tok.bos_token_id
        assert ids[-1] != tok.eos_token_id
        assert tokens(tok, QUESTION)[-3:] == ["ĊĊ", "Q", ":"]

    def test_gpt2_adds_nothing_and_reads_a_blank_line_as_one_token_at_the_end_only(self) -> None:
        tok = AutoTokenizer.from_pretrained(path_of("tiny-gpt2"))
        assert tok(QUESTION).input_ids == tok(QUESTION, add_special_tokens=False).input_ids
        assert tokens(tok, "cold\n\n")[-1:] == ["ĊĊ"]
        assert tokens(tok, QUESTION)[-4:] == ["Ċ", "Ċ", "Q", ":"]
        assert tok("<|endoftext|>Q:").input_ids[0] == tok.bos_token_id == tok.eos_token_id


class TestRecipe:
    def test_same_seed_same_weights_other_seed_other_weights(self, name: str) -> None:
        def weights(seed: int) -> dict[str, torch.Tensor]:
            recipe = replace(
                RECIPES[name](seed),
                n_layers=4,
                d_model=32,
                d_mlp=64,
                phases=(Phase(steps=2, n_texts=4, n_pairs=5),),
                settling=Phase(steps=1, n_texts=2, n_pairs=11, n_shuffled=2),
            )
            weights: dict[str, torch.Tensor] = train.train(recipe).state_dict()
            return weights

        first, again, other = weights(0), weights(0), weights(1)
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not all(torch.equal(first[key], other[key]) for key in first)
