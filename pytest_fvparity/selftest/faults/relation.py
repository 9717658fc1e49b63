"""Faults of the relation experiment: the order in which its trials are drawn, and scores that lose digits in a file."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fvcore import pipeline
from fvcore.experiments.relation import data as sampling
from fvcore.experiments.steps.sampled import Draw, of_draws
from fvcore.experiments.steps.scores import ranked, read_scores
from fvcore.formats import write_csv
from fvcore.heads import Head
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline
from fvcore.trials import FixedTrials, WordPair
from fvcore.trials.sampled import SampledMeta, as_fixed
from pytest_fvparity.selftest.bed import TRIALS, Bed, bed_of
from pytest_fvparity.selftest.bed import bed as recorded_bed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, fault, observed
from pytest_fvparity.selftest.copies import bed_on, changed, deep_bed

ROWS = [WordPair(input=a, output=b) for a, b in TRIALS["pairs"]]
# Sorted as strings, as the format has it; sorted as numbers Q2 would come first.
RELATION: Mapping[str, Sequence[WordPair]] = {"Q10": ROWS, "Q2": ROWS[::-1]}
N_TRIALS, N_DEMOS, SEED = 3, 3, 0

Drawn = Callable[[Mapping[str, Sequence[WordPair]]], list[Draw]]


# ---------------------------------------------------------------- F13: the order of the draws


@dataclass(frozen=True)
class Order:
    """A way to draw, and the right one for the same q_ids."""

    q_ids: tuple[str, ...]
    drawn: Drawn


def right(pairs: Mapping[str, Sequence[WordPair]]) -> list[Draw]:
    return sampling.draw(pairs, N_TRIALS, N_DEMOS, SEED)


def sorted_as_numbers(pairs: Mapping[str, Sequence[WordPair]]) -> list[Draw]:
    return right({q_id: pairs[q_id] for q_id in sorted(pairs, key=lambda q_id: int(q_id[1:]))})


def restarted_for_each(pairs: Mapping[str, Sequence[WordPair]]) -> list[Draw]:
    """In one call: each q_id begins with the seed again, and all are shuffled at the end."""
    rng = random.Random(SEED)
    with patch.object(random.Random, "shuffle", _no_last_shuffle()):
        draws = [draw for q_id, rows in pairs.items() for draw in right({q_id: rows})]
    rng.shuffle(draws)
    return draws


def not_restarted(pairs: Mapping[str, Sequence[WordPair]]) -> list[Draw]:
    """In a run, which draws each q_id by itself: the generator of the q_ids before it goes on."""
    wanted = set(pairs)
    with patch.object(random.Random, "shuffle", _no_last_shuffle()):
        draws = [draw for draw in right(RELATION) if draw.q_id in wanted]
    random.Random(SEED).shuffle(draws)
    return draws


def without_last_shuffle(pairs: Mapping[str, Sequence[WordPair]]) -> list[Draw]:
    with patch.object(random.Random, "shuffle", _no_last_shuffle()):
        return right(pairs)


def _no_last_shuffle() -> Callable[[random.Random, list[object]], None]:
    """`Random.shuffle` that leaves trials where they are: what is shuffled last is the list of draws."""
    shuffle = random.Random.shuffle

    def but_for_draws(self: random.Random, items: list[object]) -> None:
        if not (items and isinstance(items[0], Draw)):
            shuffle(self, items)

    return but_for_draws


BOTH = tuple(RELATION)
ORDERS = (
    Order(BOTH, sorted_as_numbers),
    Order(BOTH, restarted_for_each),
    Order(("Q2",), not_restarted),
    Order(BOTH, without_last_shuffle),
)


@fault(
    "F13",
    "trials of relations in another order",
    "q_ids sorted as numbers; the generator restarted for each q_id of a call; not restarted for the q_ids of a run; the "
    "last shuffle left out",
    Outcome.FAILS,
    "prompt_boundary",
    "the order of trials, or all draws from some q_id on",
)
def another_order(bed: Bed) -> Observed:
    seen = [_seen(bed, order) for order in ORDERS]
    return next((s for s in seen if (s.outcome, s.key) != (Outcome.FAILS, "prompt_boundary")), seen[0])


def _seen(bed: Bed, order: Order) -> Observed:
    golden = _relation_bed(bed.family, order.q_ids)
    drawn = _fixed(bed, order.drawn({q_id: RELATION[q_id] for q_id in order.q_ids}))
    own = replace(drawn, id=golden.trials.id, sha256=golden.trials.sha256)
    return observed(golden.judge(Pipeline(bed.lm, own, bed.settings)))


@cache
def _relation_bed(family: str, q_ids: tuple[str, ...]) -> Bed:
    own = recorded_bed(family)
    trials = _fixed(own, right({q_id: RELATION[q_id] for q_id in q_ids}))
    return bed_of(family, own.lm, trials, own.settings)


def _fixed(bed: Bed, draws: Sequence[Draw]) -> FixedTrials:
    meta = SampledMeta(
        source="relation_csv",
        relation_csv_path="bed.csv",
        seed=SEED,
        n_trials=len(draws),
        n_shots=N_DEMOS,
        n_demos=N_DEMOS,
    )
    return as_fixed(of_draws(draws, bed.lm.tokenizer, meta))


# ---------------------------------------------------------------- F52: digits lost in a file

DAMPED = 1e-3
"""What heads write is made this much smaller, so that effects are: of large ones six decimals keep the order."""


@fault(
    "F52",
    "scores written with fixed decimals",
    "scores go through a CSV file as %.6f and heads are ranked by what is read back; small effects, 24 heads, all ranked",
    Outcome.FAILS,
    "top_heads",
    "order of heads whose scores agree in six decimals; effects equal",
)
def fixed_decimals(bed: Bed) -> Observed:
    damped = _damped_bed(bed.family)
    with patch.object(pipeline, "top_heads", ranked_from_file):
        return observed(damped.judge(damped.candidate()))


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


@cache
def _damped_bed(family: str) -> Bed:
    deep = deep_bed(family)

    def damp(hf: Any) -> None:
        lm = LanguageModel.wrap(hf, deep.lm.tokenizer, deep.lm.name)
        with torch.no_grad():
            for layer in range(lm.n_layers):
                o_proj: Any = lm.o_proj(layer)
                o_proj.weight *= DAMPED

    return bed_on(deep, changed(deep.lm, damp))
