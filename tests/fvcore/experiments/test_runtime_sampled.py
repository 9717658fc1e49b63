"""Sampled trials: the draws of the format, the words and their spaces, and what a reader refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fvcore.experiments.errors import StepError
from fvcore.experiments.steps import sampled
from fvcore.experiments.steps.sampled import ALL, DatasetSource, Draw, FixedSource, draw_dataset, moved_labels
from fvcore.formats import FormatError, write_json
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import TrialsError, WordPair
from tests.fvcore.experiments.conftest import ROOT, trials_path
from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.steps import cases
    from fvcore.model.model import LanguageModel


DATASET = ROOT / "datasets" / "tiny_antonym" / "raw" / "tiny_antonym.json"


def pairs_of(*words: tuple[str, str]) -> list[WordPair]:
    return [WordPair(input=a, output=b) for a, b in words]


# ---------------------------------------------------------------- the draws


def test_dataset_draws_are_those_of_the_format() -> None:
    rows = [(row["input"].strip(), row["output"].strip()) for row in json.loads(DATASET.read_text())]
    pairs = [pair for i, pair in enumerate(rows) if pair[0] not in [a for a, _ in rows[:i]]]

    found = draw_dataset(trials.read_pairs(DATASET), n_trials=6, n_shots=5, seed=3)

    for i, draw in enumerate(found):
        expected = random.Random(3 + i).sample(pairs, 6)
        assert [(p.input, p.output) for p in (*draw.demos_clean, draw.query)] == expected
        assert [p.input for p in draw.demos_corrupted] == [p.input for p in draw.demos_clean]
        rng, labels = random.Random(3 + i), [b for _, b in expected[:5]]
        order = list(range(5))
        while any(labels[new] == labels[old] for old, new in enumerate(order)):
            order = rng.sample(range(5), 5)
        assert [p.output for p in draw.demos_corrupted] == [labels[j] for j in order]
        assert draw.query_source_index is not None
        assert rows[draw.query_source_index] == expected[5]
        assert [rows[j] for j in draw.demo_source_indices or ()] == expected[:5]
        assert draw.demo_order == [0, 1, 2, 3, 4]


def test_words_are_stripped_and_an_input_counts_once() -> None:
    pairs = pairs_of((" a", "1 "), ("a", "2"), ("b", "3"), ("c", "4"))

    (draw,) = draw_dataset(pairs, n_trials=1, n_shots=2, seed=0)

    rows = [*(draw.demo_source_indices or ()), draw.query_source_index]
    words = {(pair.input, pair.output): row for pair, row in zip([*draw.demos_clean, draw.query], rows, strict=True)}
    assert words == {("a", "1"): 0, ("b", "3"): 2, ("c", "4"): 3}


@pytest.mark.parametrize("seed", range(8))
def test_labels_move_by_value(seed: int) -> None:
    labels = ["x", "x", "y", "y", "z"]
    found = moved_labels(labels, random.Random(seed))
    assert sorted(found) == sorted(labels)
    assert all(a != b for a, b in zip(found, labels, strict=True))


def test_labels_that_cannot_all_move_are_shuffled_after_every_attempt() -> None:
    labels = ["x", "x", "x", "y"]
    rng = random.Random(5)
    for _ in range(200):
        rng.sample(range(4), 4)
    rng.shuffle(expected := list(labels))

    assert moved_labels(labels, random.Random(5)) == expected


def test_too_few_words_or_shots_are_refused() -> None:
    with pytest.raises(TrialsError, match="2 different inputs; 2 shots and a query need 3"):
        draw_dataset(pairs_of(("a", "1"), ("a", "2"), ("b", "3")), 1, 2, 0)
    with pytest.raises(TrialsError, match="at least 2"):
        draw_dataset(pairs_of(("a", "1"), ("b", "2")), 1, 1, 0)


# ---------------------------------------------------------------- the file


def test_dataset_trials_carry_targets_with_their_space(llama: LanguageModel) -> None:
    found = DatasetSource(DATASET, n_trials=4, n_shots=3, seed=1).sample(llama.tokenizer)

    assert found.meta.source == "dataset_sampled"
    assert found.q_ids == [ALL]
    for idx, trial in enumerate(found.trials):
        assert (trial.trial_id, trial.trial_idx) == (idx, idx)
        assert trial.target_str == f" {trial.query.output}"
        assert trial.corrupted_full_str == trial.corrupted_prompt_str + trial.target_str
        assert trial.clean_prompt_str.startswith(
            f"Q: {trial.demos_clean[0].input}\nA: {trial.demos_clean[0].output}\n\n"
        )
        assert trial.clean_prompt_str.endswith(f"\n\nQ: {trial.query.input}\nA:")
        assert llama.tokenizer.decode([trial.target_first_token_id]) == trial.target_token
    assert len(cases.of(llama, found).cases) == 4


def test_fixed_trials_stand_without_their_space_and_come_back_with_it(lm: LanguageModel) -> None:
    fixed = trials.read(trials_path(lm.name))
    found = FixedSource(trials_path(lm.name)).sample(lm.tokenizer)

    assert found.meta.prepend_space
    assert not any(p.input.startswith(" ") for t in found.trials for p in (*t.demos_clean, t.query))
    assert tuple(trial.as_trial(True) for trial in found.trials) == fixed.trials
    rows = json.loads(DATASET.read_text())
    for trial in found.trials:
        assert trial.query_source_index is not None
        assert rows[trial.query_source_index] == trial.query.model_dump()
        assert [rows[i] for i in trial.demo_source_indices or ()] == [p.model_dump() for p in trial.demos_clean]


def test_a_file_is_read_as_it_was_written(llama: LanguageModel, tmp_path: Path) -> None:
    found = DatasetSource(DATASET, n_trials=2, n_shots=3).sample(llama.tokenizer)
    sampled.write(tmp_path / "sampled_trials.json", found)

    assert sampled.read(tmp_path / "sampled_trials.json") == found


def test_relation_trials_keep_their_sources(llama: LanguageModel) -> None:
    first, second, query = pairs_of(("hot", "cold"), ("big", "small"), ("old", "young"))
    draw = Draw.of([(2, first), (0, second)], ["small", "cold"], (7, query), "Q3")
    meta = sampled.SampledMeta(
        source="relation_csv", relation_csv_path="r.csv", seed=0, n_trials=1, n_shots=2, n_demos=2
    )

    (trial,) = sampled.of_draws([draw, draw], llama.tokenizer, meta).trials[:1]

    assert (trial.q_id, trial.query_source_index, trial.demo_source_indices, trial.demo_order) == (
        "Q3",
        7,
        [2, 0],
        [0, 1],
    )
    assert trial.corrupted_prompt_str == "Q: hot\nA: small\n\nQ: big\nA: cold\n\nQ: old\nA:"
    assert trial.target_str == " young"


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def file(llama: LanguageModel, tmp_path: Path) -> Path:
    sampled.write(tmp_path / "s.json", DatasetSource(DATASET, n_trials=2, n_shots=3).sample(llama.tokenizer))
    return tmp_path / "s.json"


def changed(file: Path, **values: object) -> Path:
    value = json.loads(file.read_text())
    value["trials"][1] |= values
    write_json(file, value)
    return file


def test_no_q_id_is_all_and_not_the_word_none(file: Path) -> None:
    assert sampled.read(changed(file, q_id=None)).trials[1].q_id == ALL


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trial_id": 0, "trial_idx": 0}, r"\(0, 0\) stands twice"),
        ({"target_first_token_id": "5"}, "trial 1: key 'target_first_token_id'"),
    ],
)
def test_a_file_that_is_not_one_is_refused(file: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        sampled.read(changed(file, **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_first_token_id": 5}, "target_first_token_id is 5, the tokenizer gives"),
        ({"corrupted_prompt_str": "Q: hot\nA:"}, "corrupted_prompt_str is not what its words give"),
        ({"clean_prompt_str": "Q: hot\nA:"}, "clean_prompt_str is not what its words give"),
        ({"demos_clean": [], "demos_corrupted": []}, "0 demonstrations, meta.n_shots says 3"),
    ],
)
def test_trials_that_contradict_themselves_are_refused(
    llama: LanguageModel, file: Path, values: dict[str, object], message: str
) -> None:
    cases.of(llama, sampled.read(file))
    with pytest.raises(StepError, match=f"trial 1:1.*{message}"):
        cases.of(llama, sampled.read(changed(file, **values)))


def test_another_models_trials_are_refused(lms: dict[str, LanguageModel], file: Path) -> None:
    with pytest.raises(StepError, match="adds no BOS"):
        cases.of(lms["tiny-gpt2"], sampled.read(file))
