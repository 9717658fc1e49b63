"""Which attention heads carry a pathway: its effect, divided among the heads that bring it to the target's token.

At the token where the target is read, all that an ablation changes has come in one of two ways: it stood in that token's
stream already, or a head of a later block brought it there. What those inputs make of the target runs through that token
alone, which is a pass over one token, cheap and differentiable. The gradient along the straight way from the inputs as they
are to those under ablation divides the effect among them, and the parts add up to it. What a block's MLP makes of an input
counts for that input; where several heads hand a thing on, the last of them has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fvcore.experiments.sae.attribution import short
from fvcore.experiments.sae.batches import Batch, by_layer
from fvcore.experiments.sae.bench import Bench, Columns
from fvcore.experiments.sae.pathways import Node, Pathway
from fvcore.experiments.sae.replay import found_in
from fvcore.experiments.sae.schemas import Context, Row
from fvcore.model.hooks import edit_heads, read_heads
from fvcore.model.residual import Cached, residual_stream

HEADS = "results/pathways/heads.jsonl"
CONTEXTS = 8
"""Of those in which a source is active, spread over all: parts are means, and differ little between contexts."""
LISTED = 10
POINTS = (16, 64)
"""Of the way that gradients are taken at; more of them where the parts miss the effect by more than CLOSE of it."""
CLOSE = 1e-3


class Part(Row):
    layer: int
    head: int
    part: float


class HeadSplit(Row):
    """A line of `heads.jsonl`: what ablation of the source does to the target before its gate, mean over contexts.

    stays: what stood in the target's own token     heads: the largest parts; other_heads: the sum of all others
    rest: what is missing to `total`, from taking gradients at points
    """

    source: str
    target: str
    n_contexts: int
    total: float
    stays: float
    heads: list[Part]
    other_heads: float
    rest: float


class Inputs(NamedTuple):
    """What meets at one token: stream (d_model,) behind the source's layer, and of each later layer heads (head, d_head)."""

    stream: Tensor
    heads: Mapping[int, Tensor]

    def before(self, layer: int) -> Inputs:
        """Those that have come when this layer ends."""
        return Inputs(self.stream, {at: heads for at, heads in self.heads.items() if at <= layer})


class Shares(NamedTuple):
    """The effect in one context, what stays in the token, and the part of each layer's head."""

    total: float
    stays: float
    heads: Mapping[tuple[int, int], float]

    @property
    def rest(self) -> float:
        return self.total - self.stays - sum(self.heads.values())


def batches(pathways: Sequence[Pathway]) -> list[Batch]:
    """The validated ones, those of a layer's sources together."""
    edges = [(Node.of(one.source), Node.of(one.target)) for one in pathways if one.validated]
    return [
        Batch("heads", at, 0, partial(_splits, edges=[edge for edge in edges if edge[0] in nodes]))
        for at, nodes in by_layer(sorted({source for source, _ in edges})).items()
    ]


def _splits(bench: Bench, edges: Sequence[tuple[Node, Node]]) -> list[HeadSplit]:
    sources = dict.fromkeys(source for source, _ in edges)
    return [row for one in sources for row in split(bench, one, [target for source, target in edges if source == one])]


def split(bench: Bench, source: Node, targets: Sequence[Node]) -> list[HeadSplit]:
    """A row for each target of a source; none where the source is never active."""
    last = max(target.layer for target in targets)
    columns = bench.columns(source.layer, [source.id])
    found = found_in(bench, source.layer, last, columns)
    active = [number for number, of_context in enumerate(found) if of_context.any()]
    shares: dict[Node, list[Shares]] = {target: [] for target in targets}
    for number in active[:: max(1, -(-len(active) // CONTEXTS))]:
        hidden = bench.plain(source.layer, last)[number].hidden
        ablated = hidden - (found[number] @ columns.directions).to(hidden.dtype)
        rows = torch.stack([hidden, ablated])
        plain, edited, ends = both_ends(bench, bench.contexts[number], source.layer, rows, last)
        for target in targets:
            read = bench.columns(target.layer, [target.id])
            before, after = read.pre(ends[target.layer])[:, 0].tolist()
            shares[target].append(_shares(bench, source.layer, read, plain, edited, after - before))
    return [_row(source, target, of) for target, of in shares.items() if of]


def both_ends(
    bench: Bench, context: Context, layer: int, rows: Tensor, last: int
) -> tuple[Inputs, Inputs, dict[int, Tensor]]:
    """What meets at the last token without an edit and with one; layer -> what leaves it there (2, d_model).

    rows (2, token, d_model): what leaves `layer`
    """
    layers = [at for at in bench.lm.head_layers if layer < at <= last]
    ids = bench.ids(context).expand(2, -1)
    with read_heads(bench.lm, layers=layers) as heads:
        stream = residual_stream(bench.lm, ids, last=last, start=Cached(layer, rows))
    plain, edited = (Inputs(rows[one, -1], {at: heads[at][one, -1] for at in layers}) for one in range(2))
    return plain, edited, {at: hidden[:, -1] for at, hidden in stream.items()}


def _shares(bench: Bench, layer: int, read: Columns, plain: Inputs, edited: Inputs, total: float) -> Shares:
    plain, edited = (one.before(read.sae.layer) for one in (plain, edited))
    found = Shares(total, 0.0, {})
    for n in POINTS:
        found = _divided(bench, layer, read, plain, edited, n)._replace(total=total)
        if abs(found.rest) <= CLOSE * abs(total):
            break
    return found


def _divided(bench: Bench, layer: int, read: Columns, plain: Inputs, edited: Inputs, n: int) -> Shares:
    """Each input's change times the mean gradient on the way, by Gauss and Legendre's points."""
    points, weights = (torch.tensor(one, dtype=plain.stream.dtype, device=plain.stream.device) for one in _legendre(n))
    way = [_between(plain, edited, float(point)) for point in points]
    streams, layers, slopes = _slopes(bench, layer, read, way)
    parts = {at: ((edited.heads[at] - plain.heads[at]) * slopes[at]).sum(-1) for at in layers}  # (point, head)
    stays = float(weights @ (streams @ (edited.stream - plain.stream)))
    divided = {at: (weights @ of).tolist() for at, of in parts.items()}
    heads_of = {(at, head): part for at, of in divided.items() for head, part in enumerate(of)}
    return Shares(0.0, stays, heads_of)


def _legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points between 0 and 1, and weights that add up to 1."""
    points, weights = np.polynomial.legendre.leggauss(n)
    return (points + 1) / 2, weights / 2


def _between(plain: Inputs, edited: Inputs, share: float) -> Inputs:
    return Inputs(
        torch.lerp(plain.stream, edited.stream, share),
        {at: torch.lerp(heads, edited.heads[at], share) for at, heads in plain.heads.items()},
    )


def _slopes(
    bench: Bench, layer: int, read: Columns, inputs: Sequence[Inputs]
) -> tuple[Tensor, list[int], dict[int, Tensor]]:
    """Gradients of the target in a pass over the one token in which each row's inputs meet.

    In the stream (row, d_model), the layers of the heads, and by layer in its heads (row, head, d_head).
    """
    heads = {at: torch.stack([one.heads[at] for one in inputs]).requires_grad_() for at in inputs[0].heads}
    streams = torch.stack([one.stream for one in inputs])[:, None]
    ids = bench.lm.ids([0]).expand(len(inputs), -1)
    with ExitStack() as edits:
        for at, of_layer in heads.items():
            edits.enter_context(edit_heads(bench.lm, at, partial(_put, of_layer)))
        found = residual_stream(bench.lm, ids, last=read.sae.layer, start=Cached(layer, streams), leaf=layer)
    y = read.pre(found[read.sae.layer][:, 0]).sum()
    of_stream, *of_heads = torch.autograd.grad(y, [found[layer], *heads.values()])
    return of_stream[:, 0], list(heads), dict(zip(heads, of_heads, strict=True))


def _put(heads: Tensor, x: Tensor) -> None:
    """Whatever attention over the one token gives is replaced."""
    x[:, 0] = heads


def _row(source: Node, target: Node, shares: Sequence[Shares]) -> HeadSplit:
    parts = {key: fmean(one.heads[key] for one in shares) for key in shares[0].heads}
    largest = sorted(parts, key=lambda key: (-abs(parts[key]), key))[:LISTED]
    return HeadSplit(
        source=source.name,
        target=target.name,
        n_contexts=len(shares),
        total=short(fmean(one.total for one in shares)),
        stays=short(fmean(one.stays for one in shares)),
        heads=[Part(layer=layer, head=head, part=short(parts[layer, head])) for layer, head in largest],
        other_heads=short(sum(part for key, part in parts.items() if key not in largest)),
        rest=short(fmean(one.rest for one in shares)),
    )
