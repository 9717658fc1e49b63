"""Faults of the draws: a candidate that samples its own trials, and draws them otherwise.

Such a fault must be seen twice: from the file that it made, by sampling again from the raw data, and from the prompts.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from fvcore import trials
from fvcore.prompts import PromptTemplate, prompt_at_boundary
from fvcore.trials import Draw, FixedTrials, Splits, TrialsFile, WordPair, fixed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, Plant, Plants, observed
from pytest_fvparity.selftest.rig import TRIALS, Rig

ROWS = [WordPair(input=a, output=b) for a, b in TRIALS["pairs"]]


def sampling_with(
    name: str, planted: Callable[..., Any], stored: Callable[[TrialsFile], TrialsFile] = lambda f: f
) -> Plant:
    """A function of `fvcore.trials.fixed` replaced while the rig's trials are sampled; `stored` makes the file of them."""

    def plant(rig: Rig) -> Observed:
        tokenizer, meta = rig.lm.tokenizer, rig.trials.meta
        with patch.object(fixed, name, planted):
            file = stored(
                trials.sample(
                    ROWS,
                    meta,
                    lambda prompt, answer: list(prompt_at_boundary(tokenizer, prompt, answer).answer_ids),
                    PromptTemplate.of(meta, tokenizer).text,
                )
            )
        return seen_twice(rig, file)

    return plant


def seen_twice(rig: Rig, file: TrialsFile) -> Observed:
    problems = trials.same_draws(file, ROWS)
    if not problems:
        return Observed(Outcome.PASSES, None, "sampling again from the raw data finds no difference")
    own = FixedTrials(rig.trials.id, rig.trials.sha256, file)
    compared = observed(rig.judge(rig.candidate(trials=own)))
    if (compared.outcome, compared.key) != (Outcome.FAILS, "prompt_boundary"):
        return compared
    return Observed(Outcome.SAMPLING, compared.key, f"{'; '.join(problems)}; {compared.message}")


DrawOne = Callable[[Any, int, int, int, int], Draw]
"""Generator, rows to train on, rows to ask about, shots, seed -> one trial."""


def drawn(draw_one: DrawOne, new_rng: Callable[[int], Any] = np.random.default_rng) -> Plant:
    """Another `draws`: one generator for all trials, as there."""

    def draws(n_train: int, n_valid: int, n_trials: int, n_shots: int, seed: int) -> list[Draw]:
        rng = new_rng(seed)
        return [draw_one(rng, n_train, n_valid, n_shots, seed) for _ in range(n_trials)]

    return sampling_with("draws", draws)


def as_draw(demos: Any, query: Any, order: Any) -> Draw:
    return Draw(tuple(map(int, demos)), int(query[0]), tuple(map(int, order)))


def demos_first(rng: Any, n_train: int, n_valid: int, n_shots: int, seed: int) -> Draw:
    demos, query = rng.choice(n_train, n_shots, replace=False), rng.choice(n_valid, 1, replace=False)
    return as_draw(demos, query, rng.permutation(n_shots))


def query_first(rng: Any, n_train: int, n_valid: int, n_shots: int, seed: int) -> Draw:
    query, demos = rng.choice(n_valid, 1, replace=False), rng.choice(n_train, n_shots, replace=False)
    return as_draw(demos, query, rng.permutation(n_shots))


def one_permutation_more(rng: Any, n_train: int, n_valid: int, n_shots: int, seed: int) -> Draw:
    found = demos_first(rng, n_train, n_valid, n_shots, seed)
    rng.permutation(n_shots)
    return found


def labels_drawn_apart(rng: Any, n_train: int, n_valid: int, n_shots: int, seed: int) -> Draw:
    demos, query = rng.choice(n_train, n_shots, replace=False), rng.choice(n_valid, 1, replace=False)
    return as_draw(demos, query, np.random.default_rng(seed).permutation(n_shots))


def deranged_labels(*sizes: int, draws: Callable[..., list[Draw]] = trials.draws) -> list[Draw]:
    n_shots, seed = sizes[-2:]

    def deranged(trial: int) -> tuple[int, ...]:
        rng = random.Random(seed + trial)
        order = rng.sample(range(n_shots), n_shots)
        while any(i == j for i, j in enumerate(order)):
            order = rng.sample(range(n_shots), n_shots)
        return tuple(order)

    return [replace(draw, label_order=deranged(i)) for i, draw in enumerate(draws(*sizes))]


def swapped_splits(*how: Any, split: Callable[..., Splits] = trials.split) -> Splits:
    right = split(*how)
    return right.model_copy(update={"valid_indices": right.test_indices, "test_indices": right.valid_indices})


def rows_themselves(*how: Any, split: Callable[..., Splits] = trials.split) -> Splits:
    right = split(*how)
    parts = ("train_indices", "valid_indices")
    return right.model_copy(update={part: list(range(len(getattr(right, part)))) for part in parts})


def with_right_splits(file: TrialsFile, split: Callable[..., Splits] = trials.split) -> TrialsFile:
    return file.model_copy(update={"splits": split(len(ROWS), file.meta.test_split, file.meta.seed)})


PLANTS: dict[str, Plants] = {
    "F07": drawn(demos_first, np.random.RandomState),
    "F08": (drawn(query_first), drawn(one_permutation_more), drawn(labels_drawn_apart)),
    "F09": sampling_with("split", swapped_splits),
    "F10": sampling_with("draws", deranged_labels),
    "F11": sampling_with("split", rows_themselves, with_right_splits),
}
