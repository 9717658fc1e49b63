"""What may lie outside of the candidates: a bound on the sources of a target that screening passed over.

Random sets of active features that are no candidates are ablated together, and it is counted how often the target moves as
much as a pathway must. That bounds the share of such sets, and with it the number of single features that would move it,
unless features of a set cancel out; sets are drawn at random, so that they would have to do so again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fvcore.experiments.sae.attribution import short
from fvcore.experiments.sae.pathways import Node, TargetRow
from fvcore.experiments.sae.replay import Readers, found_in
from fvcore.experiments.sae.schemas import Row
from fvcore.fast.chunks import in_chunks
from fvcore.model.residual import Cached, residual_stream

if TYPE_CHECKING:
    from fvcore.experiments.sae.bench import Bench
    from fvcore.experiments.sae.config import Discover

MISSED = "results/pathways/missed.jsonl"
SETS, SIZE = 60, 4
"""Sets of a target, and features of each: none of 60 that moves it leaves at most one in 20, with 95 % confidence."""
CONTEXTS = 8
CONFIDENCE = 0.95


class MissedRow(Row):
    """A line of `missed.jsonl`: one target.

    n_active: active features below the target that are none of its candidates     n_moving: sets that moved it enough
    largest: the largest effect of a set, over the target's scale     share: upper bound of the share of sets that would
    at_most: features among `n_active` of which one alone would move it, at most
    """

    target: str
    n_active: int
    n_sets: int
    size: int
    n_moving: int
    largest: float
    share: float
    at_most: int
    confidence: float = CONFIDENCE


def missed(
    bench: Bench, rows: Sequence[TargetRow], layers: Sequence[int], settings: Discover, seed: int
) -> list[MissedRow]:
    """A row for each target that is active and has features beside its candidates. layers: where sources may stand"""
    found = [_of_target(bench, row, layers, settings, seed) for row in rows if row.status == "ok"]
    return [row for row in found if row is not None]


def _of_target(bench: Bench, row: TargetRow, layers: Sequence[int], settings: Discover, seed: int) -> MissedRow | None:
    target, candidates = Node.of(row.target), {Node.of(one.source) for one in row.candidates}
    others = {
        layer: [number for number in _active(bench, layer, settings) if Node(layer, number) not in candidates]
        for layer in layers
        if layer < target.layer
    }
    n_active = sum(map(len, others.values()))
    if not n_active or not row.scale:
        return None
    sets = drawn(others, Random(f"{seed}|{row.target}"))
    effects = [
        abs(effect) / row.scale for layer, of in sets.items() for effect in _effects(bench, layer, of, target, settings)
    ]
    moving = sum(effect >= settings.replay.min_rel_effect for effect in effects)
    share = upper(moving, len(effects))
    return MissedRow(
        target=row.target,
        n_active=n_active,
        n_sets=len(effects),
        size=SIZE,
        n_moving=moving,
        largest=short(max(effects)),
        share=short(share),
        at_most=at_most(n_active, share),
    )


def _active(bench: Bench, layer: int, settings: Discover) -> list[int]:
    """Features that are active in enough contexts."""
    found = found_in(bench, layer, layer, bench.columns(layer))
    often = torch.stack([of_context.any(0) for of_context in found]).sum(0)
    return (often >= min(settings.min_active_contexts, len(found))).nonzero().flatten().tolist()


def drawn(others: Mapping[int, Sequence[int]], random: Random) -> dict[int, list[list[int]]]:
    """Layer -> sets of its features; layers have as many as their features weigh among all."""
    layers = random.choices(list(others), weights=[len(of) for of in others.values()], k=SETS)
    return {
        layer: [random.sample(others[layer], min(SIZE, len(others[layer]))) for _ in range(layers.count(layer))]
        for layer in sorted(set(layers))
    }


def _effects(bench: Bench, layer: int, sets: Sequence[Sequence[int]], target: Node, settings: Discover) -> list[float]:
    """What ablating each set does to the target before its gate, mean over the first contexts."""
    readers = Readers(bench, [target])
    columns = bench.columns(layer, sorted({number for of in sets for number in of}))
    member = torch.tensor([[number in of for number in columns.ids] for of in sets], device=bench.lm.device)
    found = found_in(bench, layer, readers.last, columns)
    changes = []
    for number, context in enumerate(bench.contexts[:CONTEXTS]):
        plain = bench.plain(layer, readers.last)[number]
        before = readers.read(plain.ends)[0][0]
        ids, features = bench.ids(context), found[number]

        def run(
            part: Sequence[Tensor], ids: Tensor = ids, features: Tensor = features, hidden: Tensor = plain.hidden
        ) -> Tensor:
            taken = (features[None] * torch.stack(list(part))[:, None]) @ columns.directions
            rows = hidden - taken.to(hidden.dtype)
            stream = residual_stream(bench.lm, ids.expand(len(rows), -1), last=readers.last, start=Cached(layer, rows))
            return readers.read({target.layer: stream[target.layer][:, -1]})[0][:, 0]

        after = torch.cat(list(in_chunks(list(member), settings.replay.batch_rows, run)))
        changes.append((after - before).tolist())
    return [fmean(of) for of in zip(*changes, strict=True)]


def upper(hits: int, n: int) -> float:
    """Clopper and Pearson's one-sided upper bound of a share."""
    from scipy.stats import beta

    return 1.0 if hits == n else float(beta.ppf(CONFIDENCE, hits + 1, n - hits))


def at_most(n: int, share: float) -> int:
    """The most of `n` features that may move the target without more than this share of sets holding one of them."""
    size = min(SIZE, n)
    every = comb(n, size)
    return max(m for m in range(n + 1) if 1 - comb(n - m, size) / every <= share)
