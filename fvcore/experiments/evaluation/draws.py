"""Questions of a task, each behind its own demonstrations, drawn in the order of the reference's evaluation.

One legacy NumPy generator for a whole run; for every question that is asked, in order of the split: a choice of the
demonstrations, then, with shuffled labels, a permutation of them (`n_shot_eval` in the reference's eval_utils.py). A
question that a filter leaves out draws nothing, so the same question has other demonstrations under another filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from fvcore.experiments.evaluation.tasks import Example, Task, TaskError
from fvcore.trials import WordPair

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
    rng = np.random.RandomState(seed)
    return [
        Question(position, _demos(train, n_shots, labels, rng), pair(asked[position]), asked[position].answers)
        for position in sorted(range(len(asked)) if positions is None else positions)
    ]


def _demos(train: Sequence[Example], n_shots: int, labels: Labels, rng: np.random.RandomState) -> tuple[WordPair, ...]:
    if n_shots == 0:
        return ()
    demos = [pair(train[i]) for i in rng.choice(len(train), n_shots, replace=False)]
    if labels == "clean":
        return tuple(demos)
    return tuple(
        WordPair(input=demo.input, output=demos[i].output)
        for demo, i in zip(demos, rng.permutation(n_shots), strict=True)
    )


def pair(example: Example) -> WordPair:
    """A row as a prompt shows it."""
    return WordPair(input=f" {example.input}", output=f" {example.answers[0]}")
