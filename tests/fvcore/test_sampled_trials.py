"""A run's frozen trials read as fixed trials: the words, the ids, what they are called, and what is refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore.experiments.steps.sampled import Draw, FixedSource, of_draws
from fvcore.formats import write_json
from fvcore.model.tokenizer import Tokenizer
from fvcore.prompts import verify
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import TrialsError, WordPair
from fvcore.trials.sampled import ALL, SampledMeta, SampledTrials, as_fixed, read, read_trials, write
from tests.late import RUNNING

if RUNNING:
    from fvcore.model.model import load_tokenizer


ROOT = Path(__file__).parents[2]
FIXED = ROOT / "datasets" / "fixed_trials" / "fixed_trials_tiny_antonym_t10_s10_seed0_tiny_llama.json"
PAIRS = [("hot", "cold"), ("big", "small"), ("old", "young"), ("rich", "poor"), ("dark", "bright")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found: Tokenizer = load_tokenizer("tiny-llama")
    return found


def sampled_of(tokenizer: Tokenizer, q_id: str = "Q2", csv: str = "data/relation.csv") -> SampledTrials:
    pairs = [WordPair(input=a, output=b) for a, b in PAIRS]
    draws = []
    for query in range(4):
        rows = [(query + 1 + i) % len(pairs) for i in range(3)]
        labels = [pairs[row].output for row in (*rows[1:], rows[0])]
        draws.append(Draw.of([(row, pairs[row]) for row in rows], labels, (query, pairs[query]), q_id))
    meta = SampledMeta(source="relation_csv", relation_csv_path=csv, seed=7, n_trials=0, n_shots=3, n_demos=3)
    return of_draws(draws, tokenizer, meta)


@pytest.fixture
def path(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write(tmp_path / "sampled_trials.json", sampled_of(tokenizer))
    return tmp_path / "sampled_trials.json"


def changed(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    value = json.loads(path.read_text())
    change(value["trials"])
    write_json(path, value)
    return path


# ---------------------------------------------------------------- what is read


def test_every_word_has_one_leading_space_in_prompt_data_too(path: Path, tokenizer: Tokenizer) -> None:
    fixed = read_trials(path)

    assert (fixed.meta.seed, fixed.meta.n_shots, fixed.meta.n_trials) == (7, 3, 4)
    for record, stored in zip(fixed.file.trials, read(path).trials, strict=True):
        data = record.prompt_data_corrupted
        words = [*record.demos_clean, *data.examples, data.query_target, record.query]
        assert all(w.startswith(" ") and not w.startswith("  ") for pair in words for w in (pair.input, pair.output))
        assert [pair.output for pair in data.examples] == [f" {pair.output}" for pair in stored.demos_corrupted]
        assert record.clean_prompt_str == stored.clean_prompt_str
    assert verify(fixed, tokenizer) == []


def test_both_forms_of_the_same_trials_are_the_same_trials(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "sampled_trials.json", FixedSource(FIXED).sample(tokenizer))

    assert read_trials(tmp_path / "sampled_trials.json").trials == read_trials(FIXED).trials
    assert read_trials(FIXED) == trials.read(FIXED)


def test_the_digest_is_that_of_the_fixed_trials_file_they_make(
    path: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    fixed = read_trials(path)
    trials.write(tmp_path / f"{fixed.id}.json", fixed.file)
    again = trials.read(tmp_path / f"{fixed.id}.json")

    assert (again.id, again.dataset, again.sha256) == (fixed.id, "relation", fixed.sha256)
    elsewhere = as_fixed(sampled_of(tokenizer, csv="/mnt/other place/relation.csv"))
    assert (elsewhere.sha256, elsewhere.dataset) == (fixed.sha256, "relation")


def test_a_missing_trial_id_is_the_position(path: Path) -> None:
    ids = [trial.key for trial in read_trials(path).trials]
    changed(path, lambda rows: [row.pop("trial_id") for row in rows])

    assert [trial.key for trial in read_trials(path).trials] == ids == ["0:0", "1:1", "2:2", "3:3"]


def test_a_trial_id_in_the_file_counts(path: Path) -> None:
    changed(path, lambda rows: [row.update(trial_id=100 + row["trial_id"]) for row in rows])

    assert [trial.key for trial in read_trials(path).trials] == ["100:0", "101:1", "102:2", "103:3"]


def test_the_original_writes_null_for_a_q_id_and_no_trial_id(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "s.json", FixedSource(FIXED).sample(tokenizer))
    changed(tmp_path / "s.json", lambda rows: [row.update(q_id=None) for row in rows])

    assert read(tmp_path / "s.json").q_ids == [ALL]
    assert read_trials(tmp_path / "s.json").id == f"sampled_{FIXED.stem}"


# ---------------------------------------------------------------- what it is called


def test_each_q_id_has_a_name_of_its_own(tokenizer: Tokenizer) -> None:
    q_ids = ["Q1", "Q10", "a/b", "a_b", "a%2Fb", "..", "ü"]
    found = [as_fixed(sampled_of(tokenizer, q_id)) for q_id in q_ids]

    assert len({(one.dataset, one.id) for one in found}) == len(q_ids)
    assert found[0].id == "Q1_t4_s3_seed7_tiny_llama"
    assert not any("/" in one.id for one in found)
    assert {one.dataset for one in found} == {"relation"}


def test_a_q_id_too_long_for_a_folder_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        TrialsError, match=r"the name of these trials, by q_id and tokenizer, .* cannot name a file or a folder"
    ):
        as_fixed(sampled_of(tokenizer, "Q" * 300))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(clean_prompt_str=row["clean_prompt_str"] + " "), "clean_prompt_str is not what"),
        (lambda row: row["demos_corrupted"][1].update(output="warm"), "corrupted_prompt_str is not what"),
        (lambda row: row["query"].update(input=" old"), "clean_prompt_str is not what"),
        (lambda row: row.update(target_str="young"), "target_str is not what .* expected ' young', found 'young'"),
        (lambda row: row.update(corrupted_full_str="x"), "corrupted_full_str is not what"),
        (lambda row: row.update(trial_idx=9), "trial_idx is 9, its position is 2"),
    ],
)
def test_a_stored_string_that_its_words_do_not_give_names_the_trial(
    path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    changed(path, lambda rows: change(rows[2]))

    with pytest.raises(TrialsError, match=rf"sampled_trials.json: trial 2 \(trial_id 2\): {message}"):
        read_trials(path)


def test_other_inputs_in_the_corrupted_twin_are_refused(path: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        row, word = rows[1], rows[1]["demos_corrupted"][0]["input"]
        row["demos_corrupted"][0]["input"] = "new"
        for name in ("corrupted_prompt_str", "corrupted_full_str"):
            row[name] = row[name].replace(f"Q: {word}\n", "Q: new\n", 1)

    with pytest.raises(TrialsError, match=r"trial 1 \(trial_id 1\): demos_corrupted has input ' new'"):
        read_trials(changed(path, change))


def test_a_trial_that_is_missing_is_missed(path: Path) -> None:
    with pytest.raises(TrialsError, match=r"holds 3 trials, meta.n_trials says 4"):
        read_trials(changed(path, lambda rows: rows.pop()))


# ---------------------------------------------------------------- the target


class PrefixTokenizer:
    """Every token's id depends on all text before it, so that clean and corrupted prompts have other targets."""

    bos_token = bos_token_id = eos_token = eos_token_id = None
    model_max_length = 10**6

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(input_ids=[zlib.crc32(text[: i + 1].encode()) for i in range(len(text))])

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    def decode(self, token_ids: Any) -> str:
        return "?"


def test_the_target_is_found_again_on_the_prompt_it_was_found_on() -> None:
    tokenizer: Any = PrefixTokenizer()
    fixed = as_fixed(sampled_of(tokenizer))

    assert fixed.target_regime == "corrupted"
    assert verify(fixed, tokenizer) == []
    assert len(verify(replace(fixed, target_regime="clean"), tokenizer)) == 4
