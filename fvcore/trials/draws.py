"""Which seed draws what: the rules by which trials follow from a seed, which any rewrite must repeat.

A fixed-trials file: two seeded splits of the rows, then one generator for all trials (`split`, `draws`). The steps of the
plans: trial or example i by a generator of its own (`of_trial`), the queue of a q_id by one that its name shifts
(`of_q_id`). A relation: one generator for all q_ids of a call (`of_relation`). An evaluation: one legacy NumPy generator
for a whole run (`of_questions`). Heads that a vector is compared with: `random_heads`.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict


def of_trial(seed: int, idx: int) -> random.Random:
    """The generator of the trial at this place, whatever was drawn for the others."""
    return random.Random(seed + idx)


def of_q_id(seed: int, q_id: str) -> random.Random:
    """The generator of a q_id's queue."""
    return random.Random(seed + seed_offset(q_id))


def seed_offset(q_id: str) -> int:
    """What a q_id adds to the seed.

    >>> seed_offset("Q1")
    179
    """
    return sum(position * ord(character) for position, character in enumerate(q_id, start=1)) % 2147483647


OTHER_HEADS = "heads that were not chosen"


class Splits(BaseModel):
    """Row numbers of a dataset, in split order."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    train_indices: list[int]
    valid_indices: list[int]
    test_indices: list[int]


def split(n_rows: int, test_split: float, seed: int) -> Splits:
    """Train, valid and test row numbers, in split order.

    Two seeded splits: rows -> (train, held out), then held out -> (test = the part kept, valid = the part
    held out again). The naming is the reference's (`split_icl_dataset` in its prompt_utils.py).
    """

    def cut(indices: Sequence[int]) -> tuple[list[int], list[int]]:
        n_held = math.ceil(test_split * len(indices))
        order = np.random.RandomState(seed).permutation(len(indices))
        return [indices[i] for i in order[n_held:]], [indices[i] for i in order[:n_held]]

    train, held_out = cut(range(n_rows))
    test, valid = cut(held_out)
    return Splits(train_indices=train, valid_indices=valid, test_indices=test)


@dataclass(frozen=True, slots=True)
class Draw:
    """The random choices of one trial: positions inside the splits, and the order of the corrupted labels."""

    demos: tuple[int, ...]
    query: int
    label_order: tuple[int, ...]


def draws(n_train: int, n_valid: int, n_trials: int, n_shots: int, seed: int) -> list[Draw]:
    """One PCG64 generator for all trials; per trial: demos, query, permutation of the labels, in that order."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(n_trials):
        demos = rng.choice(n_train, size=n_shots, replace=False)
        query = rng.choice(n_valid, size=1, replace=False)[0]
        result.append(Draw(tuple(map(int, demos)), int(query), tuple(map(int, rng.permutation(n_shots)))))
    return result


def of_relation(rng: random.Random, labels: Sequence[str], n_shots: int) -> Draw:
    """One trial of a q_id's rows, by their labels: the query, the other rows shuffled, the labels shuffled.

    Labels that came out as they were, by value, are shuffled once more; then they may stay in place.
    """
    query = rng.randrange(len(labels))
    others = [at for at in range(len(labels)) if at != query]
    rng.shuffle(others)
    demos, order = others[:n_shots], list(range(n_shots))
    rng.shuffle(order)
    if n_shots > 1 and all(labels[demos[i]] == labels[at] for i, at in zip(order, demos, strict=True)):
        rng.shuffle(order)
    return Draw(tuple(demos), query, tuple(order))


def of_questions(n_train: int, queries: Sequence[int], n_shots: int, shuffled: bool, seed: int) -> Iterator[Draw]:
    """For each query a choice of the demonstrations, then, `shuffled`, a permutation of their labels.

    The order of the reference's evaluation (`n_shot_eval` in its eval_utils.py). A question that is not asked draws nothing,
    so the same question has other demonstrations under another filter.
    """
    rng = np.random.RandomState(seed)
    for query in queries:
        if n_shots == 0:
            yield Draw((), query, ())
            continue
        demos = rng.choice(n_train, n_shots, replace=False)
        order = rng.permutation(n_shots) if shuffled else range(n_shots)
        yield Draw(tuple(map(int, demos)), query, tuple(map(int, order)))


def random_heads(
    scored: Iterable[tuple[int, int]], top: Sequence[tuple[int, int]], n_sets: int, seed: int | str
) -> tuple[list[list[tuple[int, int]]], str]:
    """`n_sets` draws of as many heads as `top` has, of the others or, where these are too few, of all; and of which."""
    every = sorted(scored)
    others = [head for head in every if head not in set(top)]
    pool, source = (others, OTHER_HEADS) if len(others) >= len(top) else (every, "all heads")
    rng = random.Random(seed)
    return [rng.sample(pool, len(top)) for _ in range(n_sets)], source
