"""Trials of a relation: which rows are asked and shown in each, in the draws of the format, which any rewrite must repeat.

One generator serves all q_ids of a call, in the order given, and its last draw shuffles all trials. A run draws each
q_id by itself, so every q_id begins with the same seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fvcore.experiments.relation.data import RelationError
from fvcore.experiments.steps.sampled import Draw, SampledMeta, SampledTrials, of_draws
from fvcore.formats import sha256
from fvcore.prompts import Tokenizer
from fvcore.trials import WordPair


def draw(pairs: Mapping[str, Sequence[WordPair]], n_trials: int, n_demos: int, seed: int) -> list[Draw]:
    """`n_trials` trials of each q_id, shuffled together. Queries are drawn with replacement, labels may stay in place."""
    rng = random.Random(seed)
    draws = [_draw(rng, q_id, rows, n_demos) for q_id, rows in pairs.items() for _ in range(n_trials)]
    rng.shuffle(draws)
    return draws


def _draw(rng: random.Random, q_id: str, rows: Sequence[WordPair], n_demos: int) -> Draw:
    if len(rows) < n_demos + 1:
        raise RelationError(f"q_id {q_id}: {len(rows)} rows; {n_demos} demonstrations and a query need {n_demos + 1}")
    query = rng.randrange(len(rows))
    others = [(at, row) for at, row in enumerate(rows) if at != query]
    rng.shuffle(others)
    demos = others[:n_demos]
    clean = [row.output for _, row in demos]
    moved = list(clean)
    rng.shuffle(moved)
    if moved == clean and len(clean) > 1:
        rng.shuffle(moved)
    return Draw(
        demos=tuple(row for _, row in demos),
        corrupted=tuple(WordPair(input=row.input, output=label) for (_, row), label in zip(demos, moved, strict=True)),
        query=rows[query],
        q_id=q_id,
        query_source_index=query,
        demo_source_indices=tuple(at for at, _ in demos),
        demo_order=tuple(range(n_demos)),
    )


@dataclass(frozen=True, slots=True)
class RelationSource:
    """The trials of one q_id, for the production steps. `csv_path` is written down, and decides nothing."""

    q_id: str
    pairs: tuple[WordPair, ...]
    csv_path: str
    n_trials: int
    n_demos: int
    seed: int

    def settings(self) -> dict[str, Any]:
        chosen = {"n_trials_per_q": self.n_trials, "n_demos": self.n_demos, "seed": self.seed}
        return {"source": "relation_csv", "q_id": self.q_id, "pairs_sha256": pairs_sha256(self.pairs)} | chosen

    def sample(self, tokenizer: Tokenizer) -> SampledTrials:
        meta = SampledMeta(
            source="relation_csv",
            relation_csv_path=self.csv_path,
            seed=self.seed,
            n_trials=self.n_trials,
            n_shots=self.n_demos,
            n_demos=self.n_demos,
        )
        return of_draws(draw({self.q_id: self.pairs}, self.n_trials, self.n_demos, self.seed), tokenizer, meta)


def pairs_sha256(pairs: Sequence[WordPair]) -> str:
    return sha256(json.dumps([[pair.input, pair.output] for pair in pairs]).encode())
