"""What may lie outside of the candidates: a bound on the sources of a target that screening passed over.

Random sets of active features that are no candidates are ablated together, and it is counted how often the target moves as
much as a pathway must. That bounds the share of such sets, and with it the number of single features that would move it,
unless features of a set cancel out; sets are drawn at random, so that they would have to do so again and again.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from math import comb
from random import Random

import torch
from torch import Tensor

from fvcore.experiments.sae.attribution import short
from fvcore.experiments.sae.batches import Batch, by_layer
from fvcore.experiments.sae.bench import Bench
from fvcore.experiments.sae.config import Discover
from fvcore.experiments.sae.pathways import Node, TargetRow
from fvcore.experiments.sae.replay import Readers, found_in
from fvcore.experiments.sae.schemas import Row
from fvcore.fast.chunks import in_chunks
from fvcore.model.residual import Cached, residual_stream

MISSED = "results/pathways/missed.jsonl"
SETS, SIZE = 60, 4
"""Sets of a target, and features of each: none of 60 that moves it leaves at most one in 20, with 95 % confidence."""
CONTEXTS = 8
TARGETS = 50
"""Of a run; they are drawn at random."""
CONFIDENCE = 0.95


class MissedRow(Row):
    """A line of `missed.jsonl`: one target.

    n_active: active features below the target that are none of its candidates     n_moving: sets that moved it enough
    an effect is a mean over contexts, over the target's scale, as a pathway's; largest: that of all sets
    share: upper bound of the share of sets that would
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


def batches(rows: Sequence[TargetRow], layers: Sequence[int], settings: Discover, seed: int) -> list[Batch]:
    """Some targets, drawn at random, those of a layer together. layers: where sources may stand"""
    active = [row for row in rows if row.status == "ok"]
    chosen = Random(f"{seed}|missed").sample(active, min(TARGETS, len(active)))
    by_name = {Node.of(row.target): row for row in chosen}
    return [
        Batch(
            "missed",
            at,
            0,
            partial(missed, rows=[by_name[one] for one in nodes], layers=layers, settings=settings, seed=seed),
        )
        for at, nodes in by_layer(sorted(by_name)).items()
    ]


def missed(
    bench: Bench, rows: Sequence[TargetRow], layers: Sequence[int], settings: Discover, seed: int
) -> list[MissedRow]:
    """A row for each target of a layer that has active features beside its candidates."""
    below = [layer for layer in layers if layer < Node.of(rows[0].target).layer]
    active = {layer: _active(bench, layer, settings) for layer in below}
    found = [_of_target(bench, row, active, settings, seed) for row in rows]
    return [row for row in found if row is not None]


def _of_target(
    bench: Bench, row: TargetRow, active: Mapping[int, Sequence[int]], settings: Discover, seed: int
) -> MissedRow | None:
    target, candidates = Node.of(row.target), {Node.of(one.source) for one in row.candidates}
    others = {layer: [one for one in of if Node(layer, one) not in candidates] for layer, of in active.items()}
    n_active = sum(map(len, others.values()))
    if not n_active or not row.scale:
        return None
    sets = drawn(others, Random(f"{seed}|{row.target}"))
    effects = [one / row.scale for layer, of in sets.items() for one in _effects(bench, layer, of, target, settings)]
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
    """How far ablating each set moves the target before its gate, mean over those of some contexts where it is active."""
    readers = Readers(bench, [target])
    columns = bench.columns(layer, sorted({number for of in sets for number in of}))
    member = torch.tensor([[number in of for number in columns.ids] for of in sets], device=bench.lm.device)
    found = found_in(bench, layer, readers.last, columns)
    changes, active = [], []
    for number in spread(len(bench.contexts)):
        context = bench.contexts[number]
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
        changes.append(after - before)
        active.append((member & features.any(0)).any(1))
    means = torch.stack(changes).sum(0) / torch.stack(active).sum(0).clamp(min=1)
    effects: list[float] = means.abs().tolist()
    return effects


def spread(n: int) -> range:
    """At most CONTEXTS of n contexts: those of a prompt stand together."""
    return range(0, n, -(-n // CONTEXTS))


def upper(hits: int, n: int) -> float:
    """Clopper and Pearson's one-sided upper bound of a share."""
    from scipy.stats import beta

    return 1.0 if hits == n else float(beta.ppf(CONFIDENCE, hits + 1, n - hits))


def at_most(n: int, share: float) -> int:
    """The most of `n` features that may move the target without more than this share of sets holding one of them."""
    size = min(SIZE, n)
    every = comb(n, size)
    return bisect_right(range(n + 1), share, key=lambda m: 1 - comb(n - m, size) / every) - 1
