"""What is asked: a task's question and answer pairs, the questions drawn of them, and the templates they are written in.

A task is a JSON list of {"input", "output"} rows, the public reference's format. A name is looked up in a checkout of the
reference, which keeps its tasks in `dataset_files/abstractive/` and `dataset_files/extractive/`; nothing is copied from
there. Questions, each behind its own demonstrations, are drawn as `fvcore.trials.draws.of_questions` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator

from fvcore import shipped
from fvcore.formats import FormatError, read_json, read_yaml, sha256_file, validated
from fvcore.profile import Strict
from fvcore.trials.draws import Splits, of_questions, split
from fvcore.trials.fixed import PREFIXES, SEPARATORS, TemplatePart, TrialsError, WordPair, labelled

GROUPS = ("abstractive", "extractive")


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
        """Of a split; demonstrations always come from `train`."""
        indices = {"test": self.splits.test_indices, "valid": self.splits.valid_indices}
        if of not in indices:
            raise TaskError(f"unknown split {of!r}; questions come from {' or '.join(indices)}")
        return [self.rows[i] for i in indices[of]]


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
    """The file of a task: as it is there, by name from a checkout, else as it ships."""
    path = shipped.file(name) if checkout is None or name.endswith(".json") else Path(name)
    if path.suffix == ".json" or path.is_file():
        return path
    if checkout is None:
        raise TaskError(
            f"no file {name!r}, and no dataset of that name ships; to look a task up by name, give a checkout of the reference (--src)"
        )
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
    if not values or any(
        isinstance(v, bool) or not isinstance(v, str | int | float) or not str(v).strip() for v in values
    ):
        raise TaskError(f"{where}: expected text, a number, or a list of those, found {value!r:.80}")
    return tuple(map(str, values))


Labels: TypeAlias = Literal["clean", "shuffled"]
LABELS: tuple[Labels, ...] = ("clean", "shuffled")


def without_help(n_shots: int) -> list[tuple[int, Labels]]:
    """Prompts that do not show the task: zero-shot, and n shuffled demonstrations where there are several to shuffle."""
    return [(0, "clean"), (n_shots, "shuffled")] if n_shots > 1 else [(0, "clean")]


@dataclass(frozen=True, slots=True)
class Question:
    """A query behind demonstrations. Words carry their leading space; `answers` do not."""

    position: int  # in its split
    demos: tuple[WordPair, ...]
    query: WordPair
    answers: tuple[str, ...]


def questions(
    task: Task, n_shots: int, labels: Labels, seed: int, positions: Sequence[int] | None = None, split: str = "test"
) -> list[Question]:
    """The questions at some positions of a split (all by default), in rising order.

    labels: `clean`, or `shuffled` among a question's own demonstrations (some may stay where they are).
    """
    if labels not in LABELS:
        raise ValueError(f"unknown labels {labels!r}; expected one of {', '.join(LABELS)}")
    train, asked = task.train, task.questions(split)
    if n_shots > len(train):
        raise TaskError(
            f"{task.path}: {n_shots} shots asked for, {len(task.rows)} rows leave {len(train)} to draw from; use fewer "
            "shots or hold out a smaller share (--test-split)"
        )
    found = []
    rising = sorted(range(len(asked)) if positions is None else positions)
    for drawn in of_questions(len(train), rising, n_shots, labels == "shuffled", seed):
        demos, query = [pair(train[i]) for i in drawn.demos], asked[drawn.query]
        shown = tuple(labelled(demos, [demos[i].output for i in drawn.label_order]))
        found.append(Question(drawn.query, shown, pair(query), query.answers))
    return found


def pair(example: Example) -> WordPair:
    """A row as a prompt shows it."""
    return WordPair(input=example.input, output=example.answers[0]).spaced


SHIPPED = Path(__file__).with_name("templates.yaml")


def _whole(part: Any) -> Any:
    """A file may leave instructions out; what it says beside is refused."""
    if not isinstance(part, dict):
        return part
    if more := part.keys() - TemplatePart.model_fields:
        raise ValueError(f"extra keys: {', '.join(map(str, more))}")
    return {"instructions": ""} | part


Part = Annotated[TemplatePart, BeforeValidator(_whole)]


class NamedTemplate(Strict):
    """What stands around inputs and outputs, under a name that tables use."""

    name: str
    prefixes: Part
    separators: Part


USUAL = NamedTemplate(name="Q:/A:", prefixes=PREFIXES, separators=SEPARATORS)


def read_templates(path: Path = SHIPPED) -> list[NamedTemplate]:
    """A YAML (or JSON) list of templates, each with a name of its own, prefixes and separators."""
    entries = validated(list[NamedTemplate], read_yaml(path), path)
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise FormatError(f"{path}: expected at least one template, each under a name of its own; found {names}")
    return entries
