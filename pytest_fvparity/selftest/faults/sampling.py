"""Faults of the draws: a candidate that samples its own trials, and draws them otherwise.

Such a fault must be seen twice: from the file that it made, by sampling again from the raw data, and from the prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from fvcore import trials
from fvcore.pipeline import Pipeline
from fvcore.prompts import PromptTemplate, prompt_at_boundary
from fvcore.trials import Draw, FixedTrials, Splits, TrialsFile, WordPair
from pytest_fvparity.selftest.bed import TRIALS, Bed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, fault, observed

KEY = "prompt_boundary"
ROWS = [WordPair(input=a, output=b) for a, b in TRIALS["pairs"]]

Sampler = Callable[[Bed], list[TrialsFile]]


def sampling_fault(id: str, hazard: str, planted: str, signature: str) -> Callable[[Sampler], Sampler]:
    """A function from a bed to trials files that were sampled wrongly, each a variant of the same fault."""

    def register(sampler: Sampler) -> Sampler:
        def observe(bed: Bed) -> Observed:
            seen = [_seen(bed, file) for file in sampler(bed)]
            return next((s for s in seen if s.outcome is not Outcome.SAMPLING), seen[0])

        fault(id, hazard, planted, Outcome.SAMPLING, KEY, signature)(observe)
        return sampler

    return register


def _seen(bed: Bed, file: TrialsFile) -> Observed:
    problems = trials.same_draws(file, ROWS)
    if not problems:
        return Observed(Outcome.PASSES, None, "sampling again from the raw data finds no difference")
    own = FixedTrials(bed.trials.id, bed.trials.sha256, file)
    compared = observed(bed.judge(Pipeline(bed.lm, own, bed.settings)))
    if (compared.outcome, compared.key) != (Outcome.FAILS, KEY):
        return compared
    return Observed(Outcome.SAMPLING, KEY, f"{'; '.join(problems)}; {compared.message}")


def _sampled(bed: Bed, **function: Callable[..., Any]) -> TrialsFile:
    """The bed's trials, sampled with a function of `fvcore.trials` replaced."""
    ((name, planted),) = function.items()
    tokenizer, meta = bed.lm.tokenizer, bed.trials.meta
    with patch.object(trials, name, planted):
        return trials.sample(
            ROWS,
            meta,
            lambda prompt, answer: list(prompt_at_boundary(tokenizer, prompt, answer).answer_ids),
            PromptTemplate.of(meta, tokenizer).text,
        )


DrawOne = Callable[[Any, int, int, int], Draw]


def _drawn(new_rng: Callable[[int], Any], draw_one: DrawOne) -> Callable[..., list[Draw]]:
    """Another `fvcore.trials.draws`: one generator for all trials, as there."""

    def draws(n_train: int, n_valid: int, n_trials: int, n_shots: int, seed: int) -> list[Draw]:
        rng = new_rng(seed)
        return [draw_one(rng, n_train, n_valid, n_shots) for _ in range(n_trials)]

    return draws


def _draw(demos: Any, query: Any, order: Any) -> Draw:
    return Draw(tuple(map(int, demos)), int(query), tuple(map(int, order)))


@sampling_fault(
    "F07", "legacy np.random instead of the PCG64 generator", "the draws come from RandomState", "all draws differ"
)
def legacy_generator(bed: Bed) -> list[TrialsFile]:
    def draw_one(rng: Any, n_train: int, n_valid: int, n_shots: int) -> Draw:
        demos, query = rng.choice(n_train, n_shots, replace=False), rng.choice(n_valid, 1, replace=False)[0]
        return _draw(demos, query, rng.permutation(n_shots))

    return [_sampled(bed, draws=_drawn(np.random.RandomState, draw_one))]


@sampling_fault(
    "F08",
    "extra or missing draw, or draws in another order",
    "the query is drawn first; one permutation too many; the labels have a generator of their own",
    "trial 0 differs, or trials differ from 1 onward",
)
def other_draws(bed: Bed) -> list[TrialsFile]:
    def query_first(rng: Any, n_train: int, n_valid: int, n_shots: int) -> Draw:
        query = rng.choice(n_valid, size=1, replace=False)[0]
        return _draw(rng.choice(n_train, size=n_shots, replace=False), query, rng.permutation(n_shots))

    def one_more(rng: Any, n_train: int, n_valid: int, n_shots: int) -> Draw:
        demos = rng.choice(n_train, size=n_shots, replace=False)
        query = rng.choice(n_valid, size=1, replace=False)[0]
        drawn = _draw(demos, query, rng.permutation(n_shots))
        rng.permutation(n_shots)
        return drawn

    def one_less(rng: Any, n_train: int, n_valid: int, n_shots: int) -> Draw:
        demos = rng.choice(n_train, size=n_shots, replace=False)
        query = rng.choice(n_valid, size=1, replace=False)[0]
        return _draw(demos, query, np.random.default_rng(bed.trials.meta.seed).permutation(n_shots))

    return [_sampled(bed, draws=_drawn(np.random.default_rng, one)) for one in (query_first, one_more, one_less)]


@sampling_fault("F09", "test and valid swapped", "the part that is kept counts as valid", "the query only")
def swapped_splits(bed: Bed) -> list[TrialsFile]:
    right = trials.split

    def split(n_rows: int, test_split: float, seed: int) -> Splits:
        found = right(n_rows, test_split, seed)
        swapped = {"valid_indices": found.test_indices, "test_indices": found.valid_indices}
        return found.model_copy(update=swapped)

    return [_sampled(bed, split=split)]


@sampling_fault(
    "F10",
    "derangement instead of permutation",
    "label orders are drawn by random.Random(seed + trial) until none stays in place, as the runtime does",
    "the corrupted prompt only",
)
def deranged_labels(bed: Bed) -> list[TrialsFile]:
    right = trials.draws

    def deranged(n: int, seed: int) -> tuple[int, ...]:
        rng = random.Random(seed)
        order = rng.sample(range(n), n)
        while any(i == j for i, j in enumerate(order)):
            order = rng.sample(range(n), n)
        return tuple(order)

    def draws(n_train: int, n_valid: int, n_trials: int, n_shots: int, seed: int) -> list[Draw]:
        drawn = right(n_train, n_valid, n_trials, n_shots, seed)
        return [replace(draw, label_order=deranged(n_shots, seed + i)) for i, draw in enumerate(drawn)]

    return [_sampled(bed, draws=draws)]


@sampling_fault(
    "F11",
    "indices taken as raw rows instead of positions in the split",
    "a drawn position picks the row of that number",
    "both prompts",
)
def raw_rows(bed: Bed) -> list[TrialsFile]:
    right = trials.split

    def rows_themselves(n_rows: int, test_split: float, seed: int) -> Splits:
        found = right(n_rows, test_split, seed)
        parts = ("train_indices", "valid_indices")
        return found.model_copy(update={part: list(range(len(getattr(found, part)))) for part in parts})

    file = _sampled(bed, split=rows_themselves)
    meta = file.meta
    return [file.model_copy(update={"splits": right(len(ROWS), meta.test_split, meta.seed)})]
