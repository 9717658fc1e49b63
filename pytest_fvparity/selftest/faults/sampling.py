"""Faults of the draws: a candidate that samples its own trials, and draws them otherwise.

Of fixed trials such a fault must be seen twice: from the file that it made, by sampling again from the raw data, and from
the prompts. Those of a relation run are frozen once drawn, and their order shows in the prompts.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np

from fvcore.experiments.relation.data import draw
from fvcore.experiments.steps import sampled
from fvcore.prompts import PromptTemplate, prompt_at_boundary
from fvcore.trials import fixed
from fvcore.trials.draws import Draw, Splits, draws, split
from fvcore.trials.fixed import FixedTrials, TrialsFile, WordPair
from fvcore.trials.sampled import SampledMeta, as_fixed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, Plant, Plants, observed
from pytest_fvparity.selftest.rig import TRIALS, Rig, rig_of

ROWS = [WordPair(input=a, output=b) for a, b in TRIALS["pairs"]]


def sampling_with(
    name: str, planted: Callable[..., Any], stored: Callable[[TrialsFile], TrialsFile] = lambda f: f
) -> Plant:
    """A function of `fvcore.trials.fixed` replaced while the rig's trials are sampled; `stored` makes the file of them."""

    def plant(rig: Rig) -> Observed:
        tokenizer, meta = rig.lm.tokenizer, rig.trials.meta
        with patch.object(fixed, name, planted):
            file = stored(
                fixed.sample(
                    ROWS,
                    meta,
                    lambda prompt, answer: list(prompt_at_boundary(tokenizer, prompt, answer).answer_ids),
                    PromptTemplate.of(meta, tokenizer).text,
                )
            )
        return seen_twice(rig, file)

    return plant


def seen_twice(rig: Rig, file: TrialsFile) -> Observed:
    problems = fixed.same_draws(file, ROWS)
    if not problems:
        return Observed(Outcome.PASSES, None, "sampling again from the raw data finds no difference")
    own = FixedTrials(rig.trials.id, rig.trials.sha256, file)
    compared = observed(rig.judge(rig.candidate(trials=own)))
    if (compared.outcome, compared.key) != (Outcome.FAILS, "prompt_boundary"):
        return compared
    return Observed(Outcome.SAMPLING, compared.key, f"{'; '.join(problems)}; {compared.message}")


def drawn(*order: str, new_rng: Callable[[int], Any] = np.random.default_rng) -> Plant:
    """Another `draws`: one generator for all trials, as there, asked in this order for what a trial is made of. What is
    drawn twice is taken from the first time; labels it is not asked for come from a generator of their own."""

    def draws(n_train: int, n_valid: int, n_trials: int, n_shots: int, seed: int) -> list[Draw]:
        of = {
            "demos": lambda rng: rng.choice(n_train, n_shots, replace=False).tolist(),
            "query": lambda rng: rng.choice(n_valid, 1, replace=False).tolist(),
            "labels": lambda rng: rng.permutation(n_shots).tolist(),
        }

        def one(rng: Any) -> Draw:
            asked = [(name, of[name](rng)) for name in order]
            found = {"labels": of["labels"](np.random.default_rng(seed)), **dict(reversed(asked))}
            return Draw(tuple(found["demos"]), found["query"][0], tuple(found["labels"]))

        rng = new_rng(seed)
        return [one(rng) for _ in range(n_trials)]

    return sampling_with("draws", draws)


def deranged_labels(*sizes: int) -> list[Draw]:
    n_shots, seed = sizes[-2:]

    def deranged(trial: int) -> tuple[int, ...]:
        rng = random.Random(seed + trial)
        orders = iter(lambda: rng.sample(range(n_shots), n_shots), None)
        return next(tuple(order) for order in orders if all(i != j for i, j in enumerate(order)))

    return [replace(draw, label_order=deranged(i)) for i, draw in enumerate(draws(*sizes))]


def splitting(changes: Callable[[Splits], dict[str, list[int]]], *stored: Callable[[TrialsFile], TrialsFile]) -> Plant:
    """A candidate whose splits differ from the right ones by `changes`."""
    return sampling_with("split", lambda *how: (right := split(*how)).model_copy(update=changes(right)), *stored)


def rows_themselves(split: Splits) -> dict[str, list[int]]:
    return {part: list(range(len(getattr(split, part)))) for part in ("train_indices", "valid_indices")}


def with_right_splits(file: TrialsFile) -> TrialsFile:
    return file.model_copy(update={"splits": split(len(ROWS), file.meta.test_split, file.meta.seed)})


Pairs = Mapping[str, Sequence[WordPair]]

# Sorted as strings, as the format has it; sorted as numbers Q2 would come first.
RELATION: Pairs = {"Q10": ROWS, "Q2": ROWS[::-1]}
N_TRIALS, N_DEMOS, SEED = 3, 3, 0


def drawing(drawn: Callable[[Pairs], list[sampled.Draw]], *q_ids: str) -> Plant:
    """A candidate on trials drawn in another way than the golden's, of the same q_ids."""

    def plant(rig: Rig) -> Observed:
        golden = relation_rig(rig.family, q_ids or tuple(RELATION))
        own = frozen(rig, drawn({q_id: RELATION[q_id] for q_id in q_ids or RELATION}))
        trials = replace(own, id=golden.trials.id, sha256=golden.trials.sha256)
        return observed(golden.judge(rig.candidate(trials=trials)))

    return plant


def right(pairs: Pairs) -> list[sampled.Draw]:
    return draw(pairs, N_TRIALS, N_DEMOS, SEED)


def restarted_for_each(pairs: Pairs) -> list[sampled.Draw]:
    """In one call: each q_id begins with the seed again, and all are shuffled at the end."""
    draws = [draw for q_id, rows in pairs.items() for draw in without_last_shuffle({q_id: rows})]
    random.Random(SEED).shuffle(draws)
    return draws


def not_restarted(pairs: Pairs) -> list[sampled.Draw]:
    """In a run, which draws each q_id by itself: the generator of the q_ids before it goes on."""
    draws = [draw for draw in without_last_shuffle(RELATION) if draw.q_id in pairs]
    random.Random(SEED).shuffle(draws)
    return draws


def without_last_shuffle(pairs: Pairs) -> list[sampled.Draw]:
    """`Random.shuffle` leaves trials where they are: what is shuffled last is the list of draws."""
    shuffle = random.Random.shuffle

    def but_for_draws(self: random.Random, items: list[object]) -> None:
        if not (items and isinstance(items[0], sampled.Draw)):
            shuffle(self, items)

    with patch.object(random.Random, "shuffle", but_for_draws):
        return right(pairs)


@cache
def relation_rig(family: str, q_ids: tuple[str, ...]) -> Rig:
    own = rig_of(family)
    return Rig.recorded(own.lm, frozen(own, right({q_id: RELATION[q_id] for q_id in q_ids})), own.settings)


def frozen(rig: Rig, draws: Sequence[sampled.Draw]) -> FixedTrials:
    meta = SampledMeta(
        source="relation_csv",
        relation_csv_path="rig.csv",
        seed=SEED,
        n_trials=len(draws),
        n_shots=N_DEMOS,
        n_demos=N_DEMOS,
    )
    return as_fixed(sampled.of_draws(draws, rig.lm.tokenizer, meta))


PLANTS: dict[str, Plants] = {
    "F07": drawn("demos", "query", "labels", new_rng=np.random.RandomState),
    "F08": (
        drawn("query", "demos", "labels"),
        drawn("demos", "query", "labels", "labels"),
        drawn("demos", "query"),
    ),
    "F09": splitting(lambda split: {"valid_indices": split.test_indices, "test_indices": split.valid_indices}),
    "F10": sampling_with("draws", deranged_labels),
    "F11": splitting(rows_themselves, with_right_splits),
    "F13": (
        drawing(lambda pairs: right(dict(sorted(pairs.items(), key=lambda pair: int(pair[0][1:]))))),
        drawing(restarted_for_each),
        drawing(not_restarted, "Q2"),
        drawing(without_last_shuffle),
    ),
}
