"""A task: question and answer pairs in the reference's file format, and their splits.

A file is a JSON list of {"input", "output"} rows. A name is looked up in a checkout of the public reference, which keeps
its tasks in `dataset_files/abstractive/` and `dataset_files/extractive/`; nothing is copied from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fvcore.formats import read_json, sha256_file
from fvcore.trials import Splits, TrialsError, split

GROUPS = ("abstractive", "extractive")
SPLITS = ("test", "valid")
"""The splits that questions come from; demonstrations always come from `train`."""


class TaskError(TrialsError):
    """A task is not where it was looked for, or its rows are no use for what was asked."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row. Several answers may be right; the first one is shown in prompts and gives the target token."""

    input: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """The rows of a file in file order, and which of them are for demonstrations and which for questions."""

    name: str
    path: Path
    sha256: str
    rows: tuple[Example, ...]
    splits: Splits

    @property
    def train(self) -> list[Example]:
        return [self.rows[i] for i in self.splits.train_indices]

    def questions(self, of: str) -> list[Example]:
        if of not in SPLITS:
            raise TaskError(f"unknown split {of!r}; questions come from {' or '.join(SPLITS)}")
        indices = {"test": self.splits.test_indices, "valid": self.splits.valid_indices}[of]
        return [self.rows[i] for i in indices]


def load_task(name: str, checkout: Path | None = None, test_split: float = 0.3, seed: int = 42) -> Task:
    """A task by the path of its file or, with a checkout of the reference, by its name there.

    test_split: share that is held out of `train`, between 0 and 1; it is split again into `test` and `valid`.
    """
    path = find(name, checkout)
    rows = read_rows(path)
    if not 0 < test_split < 1:
        raise TaskError(f"test split {test_split} is not between 0 and 1")
    return Task(path.stem, path, sha256_file(path), tuple(rows), split(len(rows), test_split, seed))


def find(name: str, checkout: Path | None = None) -> Path:
    """The file of a task."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return path
    if checkout is None:
        raise TaskError(f"no file {name!r}; to look a task up by name, give a checkout of the reference (--fv-src)")
    root = checkout / "dataset_files"
    known = {file.stem: file for group in GROUPS for file in sorted((root / group).glob("*.json"))}
    places = [file for group in GROUPS if (file := root / group / f"{name}.json").is_file()]
    if len(places) == 1:
        return places[0]
    if places:
        raise TaskError(f"task {name!r} stands twice in {root}, in {' and in '.join(GROUPS)}; give the file's path")
    like = get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(like)}?" if like else f"it has {', '.join(sorted(known)) or 'none'}"
    raise TaskError(f"no task {name!r} in {root} ({', '.join(GROUPS)}); {hint}")


def read_rows(path: Path) -> list[Example]:
    """All rows, in file order. Numbers are taken for the text that stands in the file."""
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        found = "an empty list" if rows == [] else type(rows).__name__
        raise TaskError(f"{path}: expected a list of {{input, output}} rows, found {found}")
    return [_example(row, f"{path}: row {number}") for number, row in enumerate(rows)]


def _example(row: Any, where: str) -> Example:
    if not isinstance(row, dict) or not {"input", "output"} <= row.keys():
        raise TaskError(f"{where}: expected an object with keys input and output, found {row!r:.80}")
    inputs, answers = (_words(row[key], f"{where}, {key}") for key in ("input", "output"))
    return Example(inputs[0], answers)


def _words(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, str | int | float) or v == "" for v in values):
        raise TaskError(f"{where}: expected text, a number, or a list of those, found {value!r:.80}")
    return tuple(map(str, values))
