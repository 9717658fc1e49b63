"""Tasks in the reference's file format: found by name or path, split and drawn from as the reference does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvcore.experiments.evaluation.data import Example, TaskError, find, load_task, questions
from fvcore.formats import FormatError
from fvcore.trials.draws import split

ROWS = [{"input": f"in{i}", "output": f"out{i}"} for i in range(40)]


def put(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for group, name in (("abstractive", "antonym"), ("abstractive", "synonym"), ("extractive", "animal_v_object_5")):
        put(tmp_path / "dataset_files" / group / f"{name}.json", ROWS)
    return tmp_path


class TestFinding:
    def test_a_name_is_looked_up_in_both_groups_of_a_checkout(self, checkout: Path) -> None:
        assert find("antonym", checkout).parent.name == "abstractive"
        assert find("animal_v_object_5", checkout).parent.name == "extractive"

    def test_a_file_needs_no_checkout(self, tmp_path: Path) -> None:
        task = load_task(str(put(tmp_path / "mine.json", ROWS)))
        assert (task.name, len(task.rows)) == ("mine", 40)

    def test_a_name_without_a_checkout_says_what_is_missing(self) -> None:
        with pytest.raises(TaskError, match=r"no file 'synonym'.*--src"):
            find("synonym")

    def test_an_unknown_name_shows_those_like_it(self, checkout: Path) -> None:
        with pytest.raises(TaskError, match="did you mean antonym"):
            find("antonyms", checkout)

    def test_a_name_unlike_any_shows_all(self, checkout: Path) -> None:
        with pytest.raises(TaskError, match="it has animal_v_object_5, antonym, synonym"):
            find("zzzz", checkout)

    def test_a_name_in_both_groups_is_not_guessed(self, checkout: Path) -> None:
        put(checkout / "dataset_files" / "extractive" / "antonym.json", ROWS)
        with pytest.raises(TaskError, match="stands twice"):
            find("antonym", checkout)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match=r"gone\.json: no such file"):
            load_task(str(tmp_path / "gone.json"))


class TestRows:
    def test_several_right_answers_and_numbers(self, tmp_path: Path) -> None:
        rows = [{"output": ["Paris", "paris"], "input": "France"}, {"input": 7, "output": 1.5}, *ROWS]
        assert load_task(str(put(tmp_path / "t.json", rows))).rows[:2] == (
            Example("France", ("Paris", "paris")),
            Example("7", ("1.5",)),
        )

    @pytest.mark.parametrize(
        "rows, said",
        [
            ({"input": "a"}, "expected a list.*found dict"),
            ([], "an empty list"),
            ([{"input": "a", "output": "b"}, {"input": "a"}], "row 1: expected an object with keys input and output"),
            ([{"input": "a", "output": []}], "row 0, output: expected text"),
            ([{"input": "", "output": "b"}], "row 0, input: expected text"),
            ([{"input": "a", "output": True}], "row 0, output: expected text"),
            ([{"input": "a", "output": {"b": 1}}], "row 0, output: expected text"),
        ],
    )
    def test_other_rows_are_refused_by_number(self, tmp_path: Path, rows: Any, said: str) -> None:
        with pytest.raises(TaskError, match=said):
            load_task(str(put(tmp_path / "t.json", rows)))

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
    def test_a_split_that_is_none_is_refused(self, tmp_path: Path, share: float) -> None:
        with pytest.raises(TaskError, match="not between 0 and 1"):
            load_task(str(put(tmp_path / "t.json", ROWS)), test_split=share)


class TestDraws:
    @pytest.fixture
    def task(self, tmp_path: Path) -> Any:
        return load_task(str(put(tmp_path / "t.json", ROWS)), seed=7)

    def test_splits_share_no_row(self, task: Any) -> None:
        rows = [*task.train, *task.questions("test"), *task.questions("valid")]
        assert sorted(map(str, rows)) == sorted(map(str, task.rows))
        assert [len(task.train), len(task.questions("test")), len(task.questions("valid"))] == [28, 8, 4]

    def test_rows_are_split_by_the_seed(self, task: Any) -> None:
        assert task.splits == split(len(ROWS), 0.3, 7) != split(len(ROWS), 0.3, 42)

    def test_the_order_of_the_legacy_generator(self, task: Any) -> None:
        """Per question a choice, then a permutation of the labels: written out here with NumPy's global state."""
        found = questions(task, 5, "shuffled", 11)
        np.random.seed(11)
        for question, row in zip(found, task.questions("test"), strict=True):
            demos = [task.train[i] for i in np.random.choice(len(task.train), 5, replace=False)]
            labels = np.random.permutation([demo.answers[0] for demo in demos])
            assert [demo.input for demo in question.demos] == [f" {demo.input}" for demo in demos]
            assert [demo.output for demo in question.demos] == [f" {label}" for label in labels]
            assert question.query.input == f" {row.input}"

    def test_global_state_is_left_alone(self, task: Any) -> None:
        np.random.seed(3)
        expected = np.random.rand()
        np.random.seed(3)
        questions(task, 5, "shuffled", 11)
        assert np.random.rand() == expected

    def test_questions_that_are_left_out_draw_nothing(self, task: Any) -> None:
        every, some = questions(task, 3, "clean", 0), questions(task, 3, "clean", 0, [2, 5])
        assert [q.position for q in some] == [2, 5]
        assert some[0].query == every[2].query
        assert some[0].demos == every[0].demos

    def test_the_first_questions_are_those_of_a_longer_run(self, task: Any) -> None:
        assert questions(task, 3, "shuffled", 0, range(4)) == questions(task, 3, "shuffled", 0)[:4]

    def test_shuffled_labels_are_the_same_labels(self, task: Any) -> None:
        clean, shuffled = (questions(task, 6, labels, 0, [0])[0] for labels in ("clean", "shuffled"))
        assert [d.input for d in clean.demos] == [d.input for d in shuffled.demos]
        assert sorted(d.output for d in clean.demos) == sorted(d.output for d in shuffled.demos)
        assert clean.demos != shuffled.demos

    def test_more_shots_than_rows_say_how_many_there_are(self, task: Any) -> None:
        with pytest.raises(TaskError, match="29 shots asked for, 40 rows leave 28"):
            questions(task, 29, "clean", 0)

    def test_labels_that_are_none_are_named(self, task: Any) -> None:
        with pytest.raises(ValueError, match="unknown labels 'shuffeld'; expected one of clean, shuffled"):
            questions(task, 1, "shuffeld", 0)  # type: ignore[arg-type]

    def test_demonstrations_are_no_place_for_questions(self, task: Any) -> None:
        with pytest.raises(TaskError, match="test or valid"):
            questions(task, 1, "clean", 0, split="train")
