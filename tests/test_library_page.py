"""The page on the library runs as it stands, in an empty folder, and what it says of the numbers holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "library.md"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all blocks of the page, run in order, leave."""
    folder = tmp_path_factory.mktemp("library")
    found: dict[str, Any] = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), found)
    return found


def test_every_block_runs_and_leaves_its_files(names: dict[str, Any]) -> None:
    assert {path.name for path in names["folder"].iterdir()} == {
        "aie.png", "words.png", "layers.png", "antonym.safetensors",
    }  # fmt: skip
    assert names["vector"].shape == (names["lm"].d_model,)
    assert names["means"].shape[:2] == (names["lm"].n_layers, names["lm"].n_heads)


def test_a_kept_vector_comes_back_with_what_was_said_of_it(names: dict[str, Any]) -> None:
    assert names["again"].equal(names["vector"])
    assert names["about"] == {"layer": str(names["best"]), "model": "tiny-llama"}


def test_the_vector_speaks_for_the_answer(names: dict[str, Any]) -> None:
    """Added where it helps most, the answer becomes more probable than it was."""
    said = names["logits"].log_softmax(-1)[:, names["answer"]]
    assert said[1 + names["best"]] > said[0] + 1
    assert names["lm"].tokenizer.decode(names["words"].with_ids) == " cold"


def test_a_model_and_its_trials_are_a_line(names: dict[str, Any]) -> None:
    assert repr(names["lm"]) == "LanguageModel(tiny-llama: llama, 6 layers, 4 heads, d_model 128, fp32 on cpu)"
    assert repr(names["trials"]) == "FixedTrials(fixed_trials_pairs_t10_s6_seed0_tiny_llama: 10 trials of 6 shots)"


@pytest.mark.parametrize("wrong", [("hot", ""), ("hot",), "hot", ("hot", 7), ["hot", "cold", "warm"]])
def test_what_is_no_pair_of_words_is_refused_by_its_number(names: dict[str, Any], wrong: Any) -> None:
    from fvcore import make_trials
    from fvcore.trials.fixed import TrialsError

    with pytest.raises(TrialsError, match=r"pair 1: expected \(word, answer\)"):
        make_trials(names["lm"], [["old", "young"], wrong] * 20)


@pytest.mark.parametrize(
    ("prompts", "vectors", "message"),
    [
        (lambda ids: [ids], lambda vector: vector, r"shape \(128,\), d_model of tiny-llama; found \(\)"),
        (lambda ids: [ids], lambda vector: [vector[:-1]], r"found \(127,\)"),
        (lambda ids: ids, lambda vector: [vector], "a prompt is a list of token ids.*found 598"),
        (lambda _: ["Q: hot"], lambda vector: [vector], "a prompt is a list of token ids.*found 'Q: hot'"),
    ],
)
def test_what_is_no_prompt_and_no_vector_is_refused(
    names: dict[str, Any], prompts: Any, vectors: Any, message: str
) -> None:
    from fvcore import inject_logits
    from fvcore.model.spec import ModelError

    with pytest.raises(ModelError, match=message):
        inject_logits(names["lm"], prompts(names["prompt"]), vectors(names["vector"]), [1])


def test_the_edit_layer_is_a_third_of_the_depth_unless_it_is_said(names: dict[str, Any]) -> None:
    from fvcore.pipeline import Settings

    assert Settings().layer_of(names["lm"]) == 2
    assert Settings(edit_layer=0).layer_of(names["lm"]) == 0
