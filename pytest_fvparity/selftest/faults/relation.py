"""Faults of the relation experiment: the order in which its trials are drawn, and scores that lose digits in a file."""

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor

from fvcore import pipeline
from fvcore.experiments.relation.data import draw
from fvcore.experiments.steps.sampled import Draw, of_draws
from fvcore.experiments.steps.scores import ranked, read_scores
from fvcore.formats import write_csv
from fvcore.heads import Head
from fvcore.model.model import LanguageModel
from fvcore.trials import FixedTrials, WordPair
from fvcore.trials.sampled import SampledMeta, as_fixed
from pytest_fvparity.selftest.catalogue import Observed, Plant, Plants, observed, on, patching
from pytest_fvparity.selftest.rig import TRIALS, Rig, changed, deep_rig_of, rig_of

Pairs = Mapping[str, Sequence[WordPair]]

ROWS = [WordPair(input=a, output=b) for a, b in TRIALS["pairs"]]
# Sorted as strings, as the format has it; sorted as numbers Q2 would come first.
RELATION: Pairs = {"Q10": ROWS, "Q2": ROWS[::-1]}
N_TRIALS, N_DEMOS, SEED = 3, 3, 0


def drawing(drawn: Callable[[Pairs], list[Draw]], *q_ids: str) -> Plant:
    """A candidate on trials drawn in another way than the golden's, of the same q_ids."""

    def plant(rig: Rig) -> Observed:
        golden = relation_rig(rig.family, q_ids or tuple(RELATION))
        own = fixed(rig, drawn({q_id: RELATION[q_id] for q_id in q_ids or RELATION}))
        trials = replace(own, id=golden.trials.id, sha256=golden.trials.sha256)
        return observed(golden.judge(rig.candidate(trials=trials)))

    return plant


def right(pairs: Pairs) -> list[Draw]:
    return draw(pairs, N_TRIALS, N_DEMOS, SEED)


def sorted_as_numbers(pairs: Pairs) -> list[Draw]:
    return right({q_id: pairs[q_id] for q_id in sorted(pairs, key=lambda q_id: int(q_id[1:]))})


def restarted_for_each(pairs: Pairs) -> list[Draw]:
    """In one call: each q_id begins with the seed again, and all are shuffled at the end."""
    rng = random.Random(SEED)
    with last_shuffle_left_out():
        draws = [draw for q_id, rows in pairs.items() for draw in right({q_id: rows})]
    rng.shuffle(draws)
    return draws


def not_restarted(pairs: Pairs) -> list[Draw]:
    """In a run, which draws each q_id by itself: the generator of the q_ids before it goes on."""
    draws = [draw for draw in without_last_shuffle(RELATION) if draw.q_id in pairs]
    random.Random(SEED).shuffle(draws)
    return draws


def without_last_shuffle(pairs: Pairs) -> list[Draw]:
    with last_shuffle_left_out():
        return right(pairs)


@contextmanager
def last_shuffle_left_out() -> Iterator[None]:
    """`Random.shuffle` leaves trials where they are: what is shuffled last is the list of draws."""
    shuffle = random.Random.shuffle

    def but_for_draws(self: random.Random, items: list[object]) -> None:
        if not (items and isinstance(items[0], Draw)):
            shuffle(self, items)

    with patch.object(random.Random, "shuffle", but_for_draws):
        yield


@cache
def relation_rig(family: str, q_ids: tuple[str, ...]) -> Rig:
    own = rig_of(family)
    return Rig.recorded(own.lm, fixed(own, right({q_id: RELATION[q_id] for q_id in q_ids})), own.settings)


def fixed(rig: Rig, draws: Sequence[Draw]) -> FixedTrials:
    meta = SampledMeta(
        source="relation_csv",
        relation_csv_path="rig.csv",
        seed=SEED,
        n_trials=len(draws),
        n_shots=N_DEMOS,
        n_demos=N_DEMOS,
    )
    return as_fixed(of_draws(draws, rig.lm.tokenizer, meta))


DAMPED = 1e-3
"""What heads write is made this much smaller, so that effects are: of large ones six decimals keep the order."""


def ranked_from_file(aie: Tensor, k: int) -> list[Head]:
    rows = [
        {"layer": layer, "head": head, "mean_delta_p": f"{float(aie[layer, head]):.6f}"}
        for layer in range(aie.shape[0])
        for head in range(aie.shape[1])
    ]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "aie_scores.csv"
        write_csv(path, tuple(rows[0]), rows)
        best = ranked(read_scores(path, "mean_delta_p"), "mean_delta_p", k)
    return [Head(row["layer"], row["head"], float(aie[row["layer"], row["head"]])) for row in best]


def damped(rig: Rig) -> Rig:
    deep = deep_rig_of(rig.family)

    @torch.no_grad()
    def damp(hf: Any) -> None:
        lm = LanguageModel.wrap(hf, deep.lm.tokenizer, deep.lm.name)
        for layer in range(lm.n_layers):
            cast("Tensor", lm.o_proj(layer).weight).mul_(DAMPED)

    return deep.on(changed(deep.lm, damp))


PLANTS: dict[str, Plants] = {
    "F13": (
        drawing(sorted_as_numbers),
        drawing(restarted_for_each),
        drawing(not_restarted, "Q2"),
        drawing(without_last_shuffle),
    ),
    "F52": on(damped, patching(pipeline, "top_heads", ranked_from_file)),
}
