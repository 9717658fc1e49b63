"""Prompts and the token boundary: where the answer begins, and what the tokenizer does about BOS."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fvcore.embedded.random_models import toy_tokenizer, trials_for
from fvcore.model.tokenizer import BosFacts
from fvcore.prompts import (
    BosError,
    BoundaryError,
    PromptTemplate,
    prompt_at_boundary,
    require_bos_agreement,
    trial_prompt,
    verify,
)
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import PREFIXES, SEPARATORS, FixedTrials, Meta, TrialsFile, WordPair
from tests.late import RUNNING

if RUNNING:
    from fvcore.model.model import LanguageModel


PROMPT = "Q: hot\nA: cold\n\nQ: sunny\nA:"


@pytest.fixture(scope="module")
def bos() -> Any:
    return toy_tokenizer("bos")


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return toy_tokenizer("gpt2")


@pytest.fixture(scope="module")
def eos() -> Any:
    return toy_tokenizer("eos")


@pytest.fixture(scope="module")
def fixed(tiny: Callable[[str], LanguageModel]) -> FixedTrials:
    return trials_for(tiny("llama"))


def words(tokenizer: Any, ids: Any) -> list[str]:
    return [tokenizer.decode([i]) for i in ids]


# ---------------------------------------------------------------- the template


def test_a_prompt_is_demonstrations_then_the_query_up_to_the_output_prefix() -> None:
    template = PromptTemplate(PREFIXES, SEPARATORS)
    assert template.text([WordPair(input=" hot", output=" cold")], " sunny") == PROMPT
    assert template.text([], " sunny") == "Q: sunny\nA:"


def test_every_part_of_the_template_has_its_place() -> None:
    prefixes = PREFIXES.model_copy(update={"input": "<i>", "output": "<o>", "instructions": "<p>"})
    separators = SEPARATORS.model_copy(update={"input": "|i|", "output": "|o|", "instructions": "|p|"})
    text = PromptTemplate(prefixes, separators).text([WordPair(input=" x", output=" y")], " z")
    assert text == "<p>|p|<i> x|i|<o> y|o|<i> z|i|<o>"


@pytest.mark.parametrize(
    ("instructions", "left"), [("<s>Hi", "Hi"), ("<s><s>Hi", "<s>Hi"), ("Hi<s>", "Hi<s>"), ("Hi", "Hi")]
)
def test_a_bos_text_in_front_is_stripped_once(bos: Any, instructions: str, left: str) -> None:
    meta = Meta(prefixes=PREFIXES.model_copy(update={"instructions": instructions}))
    assert PromptTemplate.of(meta, bos).prefixes.instructions == left


def test_without_a_bos_token_the_text_stripped_is_the_eos_token() -> None:
    tokenizer = toy_tokenizer("plain")
    tokenizer.bos_token = None
    meta = Meta(prefixes=PREFIXES.model_copy(update={"instructions": "</s>Hi"}))
    assert PromptTemplate.of(meta, tokenizer).prefixes.instructions == "Hi"


def test_the_upstream_bos_text_stands_in_front_of_the_instructions(gpt2: Any) -> None:
    meta = Meta(prefixes=PREFIXES.model_copy(update={"instructions": "Hi"}))
    template = PromptTemplate.of(meta, gpt2, "<|endoftext|>")
    assert template.text([], " sunny") == "<|endoftext|>HiQ: sunny\nA:"


# ---------------------------------------------------------------- the boundary


def test_the_target_is_the_first_token_after_the_prompt(bos: Any) -> None:
    prompt = prompt_at_boundary(bos, PROMPT, " overcast")
    assert words(bos, prompt.answer_ids) == [" over", "cast"]
    assert words(bos, [prompt.target_id]) == [" over"]
    assert prompt.boundary == len(prompt.input_ids) == len(bos(PROMPT).input_ids)


def test_a_space_at_the_end_of_the_prompt_moves_to_the_answer(bos: Any) -> None:
    assert prompt_at_boundary(bos, PROMPT + " ", "overcast") == prompt_at_boundary(bos, PROMPT, " overcast")


def test_only_one_space_moves_and_only_to_an_answer_without_one(bos: Any) -> None:
    assert prompt_at_boundary(bos, PROMPT + "  ", "cold").text == PROMPT + " "
    assert prompt_at_boundary(bos, PROMPT + " ", " cold").text == PROMPT + " "


def test_the_answer_is_never_tokenised_alone(bos: Any) -> None:
    # Alone, this tokenizer puts BOS in front of the answer, and the first id would be that.
    alone = tuple(bos(" cold").input_ids)
    assert alone[0] == bos.bos_token_id
    assert prompt_at_boundary(bos, PROMPT, " cold").answer_ids == alone[1:]


def test_an_answer_that_merges_with_the_prompt_is_refused(bos: Any) -> None:
    # `a` + `b` is one piece of two letters: the longer text does not begin with the shorter one's tokens.
    with pytest.raises(BoundaryError, match="does not extend prefix tokens"):
        prompt_at_boundary(bos, "Q: a", "b")


def test_an_answer_that_changes_the_last_token_of_the_prompt_is_refused(bos: Any) -> None:
    with pytest.raises(BoundaryError, match=r"prefix tokens mismatch.*answer 'ncast'.*ids \["):
        prompt_at_boundary(bos, "Q: a", "ncast")


def test_an_empty_answer_is_refused(bos: Any) -> None:
    with pytest.raises(BoundaryError, match="does not extend prefix tokens"):
        prompt_at_boundary(bos, PROMPT, "")


def test_a_tokenizer_that_appends_eos_is_refused_at_the_boundary(eos: Any) -> None:
    with pytest.raises(BoundaryError, match=r"mismatch full tokens at boundary.*append an end-of-text token"):
        prompt_at_boundary(eos, PROMPT, " cold")


def test_a_prompt_longer_than_the_model_takes_is_refused(bos: Any) -> None:
    short = toy_tokenizer("bos")
    n = len(bos(PROMPT + " overcast").input_ids)
    short.model_max_length = n + 1
    assert len(prompt_at_boundary(short, PROMPT, " overcast").answer_ids) == 2
    short.model_max_length = n
    with pytest.raises(BoundaryError, match=rf"are {n} tokens long, the model takes {n}; use fewer shots"):
        prompt_at_boundary(short, PROMPT, " overcast")


def test_special_tokens_can_be_left_out(bos: Any) -> None:
    with_special, without = (prompt_at_boundary(bos, PROMPT, " cold", special) for special in (True, False))
    assert with_special.input_ids == (bos.bos_token_id, *without.input_ids)
    assert with_special.answer_ids == without.answer_ids


def test_an_error_at_the_boundary_names_trial_and_regime(eos: Any, fixed: FixedTrials) -> None:
    trial = fixed.trials[1]
    with pytest.raises(BoundaryError, match=r"^trial 1:1, corrupted prompt: prefix tokens mismatch"):
        trial_prompt(eos, trial, PromptTemplate(PREFIXES, SEPARATORS), "corrupted")


def test_the_regimes_differ_in_their_demonstrations_alone(bos: Any, fixed: FixedTrials) -> None:
    template = PromptTemplate.of(fixed.meta, bos)
    for trial, record in zip(fixed.trials, fixed.file.trials, strict=True):
        prompts = {r: trial_prompt(bos, trial, template, r) for r in ("clean", "corrupted", "zero_shot")}
        assert prompts["clean"].text == record.clean_prompt_str
        assert prompts["corrupted"].text == record.corrupted_prompt_str
        assert prompts["zero_shot"].text == f"Q:{trial.query.input}\nA:"
        assert {prompt.target_id for prompt in prompts.values()} == {trial.target_id}


# ---------------------------------------------------------------- BOS


@pytest.mark.parametrize(("kind", "adds_bos", "appends_eos"), [("bos", True, False), ("eos", False, True), ("gpt2", False, False)])  # fmt: skip
def test_bos_facts_are_measured(kind: str, adds_bos: bool, appends_eos: bool) -> None:
    tokenizer = toy_tokenizer(kind)
    facts = BosFacts.of(tokenizer)
    assert (facts.adds_bos, facts.appends_eos, facts.bos_without_special_tokens) == (adds_bos, appends_eos, False)
    assert facts.bos_token_id == tokenizer.bos_token_id
    assert facts.first_ids == tuple(tokenizer("Q: a").input_ids[:4])


def test_a_tokenizer_without_a_bos_token_adds_none() -> None:
    tokenizer = toy_tokenizer("plain")
    tokenizer.bos_token = None
    facts = BosFacts.of(tokenizer)
    assert (facts.bos_token_id, facts.adds_bos, facts.bos_without_special_tokens) == (None, False, False)


@pytest.mark.parametrize(("kind", "says"), [("bos", True), ("gpt2", False)])
def test_trials_that_say_what_the_tokenizer_does_are_taken(kind: str, says: bool) -> None:
    assert require_bos_agreement(toy_tokenizer(kind), Meta(model_prepend_bos=says)).adds_bos is says


@pytest.mark.parametrize(
    ("kind", "says", "does", "way_out"), [("bos", False, "adds BOS", "--prepend-bos"), ("gpt2", True, "adds no BOS", "--no-prepend-bos")]
)  # fmt: skip
def test_a_contradiction_about_bos_shows_the_first_ids(kind: str, says: bool, does: str, way_out: str) -> None:
    tokenizer = toy_tokenizer(kind)
    with pytest.raises(BosError) as error:
        require_bos_agreement(tokenizer, Meta(model_prepend_bos=says))
    message = str(error.value)
    assert does in message
    assert str(tokenizer("Q: a").input_ids[:4]) in message
    assert f"model_prepend_bos = {str(says).lower()}" in message
    assert "with add_special_tokens" in message
    assert f"the {'slot labels' if says else 'ids'} would have one token more" in message
    assert f" {way_out}`" in message


def test_an_appended_eos_is_refused_whatever_the_trials_say(eos: Any) -> None:
    for says in (True, False):
        with pytest.raises(BosError, match=r"appends its end-of-text token \(ids of 'Q: a': \["):
            require_bos_agreement(eos, Meta(model_prepend_bos=says))


# ---------------------------------------------------------------- verifying a file


def _altered(fixed: FixedTrials, change: Callable[[dict[str, Any]], None]) -> FixedTrials:
    value = json.loads(trials.text_of(fixed.file))
    change(value["trials"][1])
    return replace(fixed, file=TrialsFile.model_validate(value))


def test_a_sound_file_has_no_problems(bos: Any, fixed: FixedTrials) -> None:
    assert verify(fixed, bos) == []


def _text(regime: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({f"{regime}_prompt_str": "X" + record[f"{regime}_prompt_str"][1:]})


def _trailing_space(record: dict[str, Any]) -> None:
    record["clean_prompt_str"] += " "


def _other_target(record: dict[str, Any]) -> None:
    record["answer_ids"] = None
    record["first_token_id"] = record["target_first_token_id"] = record["target_first_token_id"] + 1


def _other_answer(record: dict[str, Any]) -> None:
    record["answer_ids"].append(5)


def _other_target_text(record: dict[str, Any]) -> None:
    record["target_str"] = " zzz"


def _other_demonstration(record: dict[str, Any]) -> None:
    record["demos_clean"][0]["output"] = " wet"


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (_text("clean"), ["trial 1:1: clean_prompt_str differs from its parts at character 0"]),
        (_text("corrupted"), ["trial 1:1: corrupted_prompt_str differs from its parts at character 0"]),
        (_trailing_space, ["trial 1:1: clean_prompt_str differs from its parts at character end"]),
        (_other_target, ["trial 1:1: target_first_token_id"]),
        (_other_answer, ["trial 1:1: answer_ids ["]),
        (_other_target_text, ["trial 1:1: target_str ' zzz' is not the query's output"]),
        (_other_demonstration, ["trial 1:1: clean_prompt_str differs from its parts at character"]),
    ],
)
def test_a_planted_problem_is_found_and_nothing_else(
    bos: Any, fixed: FixedTrials, change: Callable[[dict[str, Any]], None], problems: list[str]
) -> None:
    found = verify(_altered(fixed, change), bos)
    assert len(found) == len(problems)
    assert all(line.startswith(start) for line, start in zip(found, problems, strict=True))


def test_a_problem_behind_the_first_trials_is_not_looked_for(bos: Any, fixed: FixedTrials) -> None:
    altered = _altered(fixed, _other_target)
    assert verify(altered, bos, first=1) == []
    assert len(verify(altered, bos, first=2)) == 1


def test_a_tokenizer_with_other_ids_is_found(bos: Any, fixed: FixedTrials) -> None:
    vocab = bos.get_vocab()
    piece = bos.decode([fixed.trials[1].target_id])
    model = type(bos.backend_tokenizer.model)(vocab | {piece: vocab["!"], "!": vocab[piece]}, unk_token="[UNK]")
    other = toy_tokenizer("bos")
    other.backend_tokenizer.model = model
    of_this_trial = [line for line in verify(fixed, other) if line.startswith("trial 1:1")]
    assert [line.split(": ")[1].split()[0] for line in of_this_trial] == ["answer_ids", "target_first_token_id"]
    assert of_this_trial[1].endswith(f"the tokenizer gives {vocab['!']}")


def test_verifying_with_a_tokenizer_of_the_other_kind_is_refused(gpt2: Any, fixed: FixedTrials) -> None:
    with pytest.raises(BosError, match="adds no BOS"):
        verify(fixed, gpt2)
