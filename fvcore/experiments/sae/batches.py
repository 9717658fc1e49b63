"""A discovery in batches: targets of a layer to be attributed, sources of a layer to be replayed, random features to be ablated.

How batches are made depends on settings alone, so that each gives the same rows whenever and wherever it runs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from fvcore.experiments.sae.attribution import Sources, attribute
from fvcore.experiments.sae.bench import Bench
from fvcore.experiments.sae.config import Discover
from fvcore.experiments.sae.pathways import Node, TargetRow
from fvcore.experiments.sae.replay import modes_of, null_rows, replay
from fvcore.experiments.sae.schemas import Row


@dataclass(frozen=True)
class Batch:
    """Some rows of a kind, of one layer. work: gives them; plain values, so that it can be sent anywhere"""

    kind: str
    layer: int
    number: int
    work: Callable[[Bench], Sequence[Row]]


def attributions(targets: Sequence[Node], sources: Sources, settings: Discover, together: int = 1) -> list[Batch]:
    """Targets of one layer, `batch_size` of them. together: as many batches leave one file"""
    return [
        Batch("candidates", layer, number, partial(attribute, targets=part, sources=sources, settings=settings))
        for layer, nodes in by_layer(targets).items()
        for number, part in enumerate(_parts(nodes, settings.batch_size * together))
    ]


def nulls(rows: Sequence[TargetRow], settings: Discover, seed: int) -> list[Batch]:
    """Of each layer that has candidates, for the targets that have them there."""
    targets, own, often = _targets_of(rows), settings.replay, settings.min_active_contexts
    of_layer = {
        layer: sorted({target for node in nodes for target in targets[node]})
        for layer, nodes in by_layer(targets).items()
    }
    return [
        Batch("nulls", at, 0, partial(null_rows, layer=at, targets=to, settings=own, seed=seed, min_active=often))
        for at, to in of_layer.items()
    ]


def replays(rows: Sequence[TargetRow], settings: Discover, seed: int, together: int = 1) -> list[Batch]:
    """Sources of one layer, as many as fill the rows of a pass."""
    targets, usual, own = _targets_of(rows), usual_norms(rows), settings.replay
    n = max(1, own.batch_rows // len(modes_of(own))) * together
    return [
        Batch(
            "replay",
            layer,
            number,
            partial(replay, sources={node: targets[node] for node in part}, norm=usual[layer], settings=own, seed=seed),
        )
        for layer, nodes in by_layer(targets).items()
        for number, part in enumerate(_parts(nodes, n))
    ]


def usual_norms(rows: Sequence[TargetRow]) -> dict[int, float]:
    """Layer -> the median of what its candidates add to the residual stream."""
    norms = {Node.of(one.source): one.norm for row in rows for one in row.candidates}
    return {layer: median(norms[node] for node in nodes) for layer, nodes in by_layer(norms).items()}


def _targets_of(rows: Sequence[TargetRow]) -> dict[Node, list[Node]]:
    """Source -> the targets that it is a candidate of; sorted."""
    found: dict[Node, list[Node]] = {}
    for row in rows:
        for one in row.candidates:
            found.setdefault(Node.of(one.source), []).append(Node.of(row.target))
    return {source: sorted(found[source]) for source in sorted(found)}


def by_layer(nodes: Iterable[Node]) -> dict[int, list[Node]]:
    """By layer, within one as they come."""
    every = list(nodes)
    return {layer: [node for node in every if node.layer == layer] for layer in sorted({node.layer for node in every})}


def _parts(nodes: Sequence[Node], n: int) -> list[Sequence[Node]]:
    return [nodes[at : at + n] for at in range(0, len(nodes), n)]
