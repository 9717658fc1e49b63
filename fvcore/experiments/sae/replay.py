"""What a source really does: it is edited in the residual stream behind its layer, and its targets are read.

An edit adds to each token some length along one direction. Along a feature's decoder row that is an ablation, or a multiple
of the feature, and what the autoencoder leaves over stays. Along a random direction, in the same tokens and of the same
lengths, it is what any disturbance of this place and size would do. All edits of a layer are rows of passes that begin there.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from random import Random
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from fvcore.experiments.sae.attribution import short
from fvcore.experiments.sae.bench import Bench, Columns
from fvcore.experiments.sae.config import Replay
from fvcore.experiments.sae.pathways import Node, NullRow, ReplayRow
from fvcore.experiments.sae.schemas import Context
from fvcore.fast.chunks import in_chunks
from fvcore.formats import sha256
from fvcore.model.residual import Cached, residual_stream

POOL = 2
"""Random features of a layer for each one that a target's null wants, since some are its candidates."""
ZERO = "zero"
DIRECTION = "direction"


class Edit(NamedTuple):
    """One row of a pass. what: a mode, or DIRECTION     lengths (token,): what is added along `direction` (d_model,)"""

    source: int
    what: str
    lengths: Tensor
    direction: Tensor


class Seen(NamedTuple):
    """What an edit did in a context: the targets' changes before the gate (target,), and their activations behind it."""

    edit: Edit
    change: Tensor
    active: Tensor


class Readers:
    """Targets of several layers, read at the last token in one order."""

    def __init__(self, bench: Bench, targets: Sequence[Node]) -> None:
        self.targets = sorted(targets)
        layers = sorted({target.layer for target in self.targets})
        self.columns: dict[int, Columns] = {
            layer: bench.columns(layer, [target.id for target in self.targets if target.layer == layer])
            for layer in layers
        }
        self.last = layers[-1]

    def read(self, ends: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Layer -> (row, d_model); before and behind the gate (row, target)."""
        pairs = [(one.pre(ends[layer]), one.encode(ends[layer])) for layer, one in self.columns.items()]
        before, behind = zip(*pairs, strict=True)
        return torch.cat(before, -1), torch.cat(behind, -1)

    def rounding(self, ends: dict[int, Tensor], layer: int) -> Tensor:
        """What rounding alone may do to a target before the gate (target,) on the way from `layer`, in passes of two shapes.

        Each block rounds the stream, by half an eps of its length at most, in any direction: of that a target sees its part
        of d_model directions. Two passes of n blocks add up like 2 n draws; these are six standard deviations.
        """
        found = []
        for at, one in self.columns.items():
            end = ends[at]
            length = torch.finfo(end.dtype).eps / 2 * end.float().norm() / sqrt(len(end))
            found.append(6 * sqrt(2 * (at - layer)) * length * one.weights.float().norm(dim=0))
        return torch.cat(found)


def run_edits(
    bench: Bench, context: Context, cached: Cached, edits: Sequence[Edit], readers: Readers
) -> tuple[Tensor, Tensor]:
    """The targets before and behind the gate (row, target): in the first row nothing is edited, then a row for each edit.

    cached: what leaves the layer of the edits, (token, d_model)
    """
    lengths = torch.stack([torch.zeros_like(edits[0].lengths), *(edit.lengths for edit in edits)])
    directions = torch.stack([torch.zeros_like(edits[0].direction), *(edit.direction for edit in edits)])
    rows = cached.hidden + (lengths[:, :, None] * directions[:, None]).to(cached.hidden.dtype)
    ids = bench.ids(context).expand(len(rows), -1)
    stream = residual_stream(bench.lm, ids, last=readers.last, start=Cached(cached.layer, rows))
    return readers.read({layer: stream[layer][:, -1] for layer in readers.columns})


def measured(
    bench: Bench, layer: int, number: int, edits: Sequence[Edit], readers: Readers, batch_rows: int
) -> tuple[list[Seen], Tensor, Tensor]:
    """What edits do in one context; the targets' activations unedited (target,); how far from the whole pass one is that goes on
    from the cached layer and edits nothing, and how far rounding may take it (2, target).

    Changes are against a row of the same pass, so that no other pass's rounding is in them.
    """
    plain = bench.plain(layer, readers.last)[number]
    whole, active = readers.read(plain.ends)
    seen: list[Seen] = []
    noop = torch.zeros_like(whole)

    def run(chunk: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        return run_edits(bench, bench.contexts[number], Cached(layer, plain.hidden), chunk, readers)

    for before, behind in in_chunks(edits, max(1, batch_rows - 1), run):
        noop = torch.maximum(noop, (before[0] - whole).abs())
        chunk = edits[len(seen) : len(seen) + len(before) - 1]
        changes = (before[1:] - before[0]).cpu()
        seen += [Seen(*of) for of in zip(chunk, changes, behind[1:].cpu(), strict=True)]
    return seen, active.cpu(), torch.stack([noop, readers.rounding(plain.ends, layer)]).cpu()


def modes_of(settings: Replay) -> dict[str, float]:
    """Name -> what a source's activation is multiplied by. Ablation is always among them: what is tested is its effect."""
    scales = [one.scale for one in settings.modes if not isinstance(one, str)]
    return {ZERO: 0.0} | {f"scale {scale:g}": scale for scale in scales}


def found_in(bench: Bench, layer: int, last: int, columns: Columns) -> list[Tensor]:
    """Activations in each context (token, feature), 0 where a token does not count."""
    plains = zip(bench.plain(layer, last), bench.contexts, strict=True)
    return [columns.encode(plain.hidden) * bench.counted(context)[:, None] for plain, context in plains]


def directions_of(source: Node, n: int, d_model: int, seed: int) -> Tensor:
    """Random unit directions (n, d_model), the same ones of a source in every run of a seed."""
    draw = torch.Generator().manual_seed(int(sha256(f"{seed}|{source.name}".encode())[:12], 16))
    drawn = torch.randn(n, d_model, generator=draw)
    unit: Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return unit


def replay(
    bench: Bench, sources: Mapping[Node, Sequence[Node]], norm: float, settings: Replay, seed: int
) -> list[ReplayRow]:
    """A row for each pathway.

    sources: some of one layer -> the targets of each; they share their passes, and so do all targets
    norm: of what a random direction adds in a source's place, over its tokens: what sources of this layer usually add
    """
    nodes = list(sources)
    layer = nodes[0].layer
    readers = Readers(bench, list({target for targets in sources.values() for target in targets}))
    columns = bench.columns(layer, [node.id for node in nodes])
    found = found_in(bench, layer, readers.last, columns)
    randoms = [directions_of(node, settings.control_directions, bench.lm.d_model, seed) for node in nodes]
    taken: dict[int, list[Taken]] = {at: [] for at in range(len(nodes))}
    for number, of_context in enumerate(found):
        edits: list[Edit] = []
        for at in of_context.any(0).nonzero().flatten().tolist():
            lengths = of_context[:, at]
            scaled = [(mode, (scale - 1) * lengths) for mode, scale in modes_of(settings).items()]
            edits += [Edit(at, mode, added, columns.directions[at]) for mode, added in scaled]
            drawn = randoms[at][_share(number, found, at, settings)].to(lengths)
            usual = lengths * (norm / lengths.norm())
            edits += [Edit(at, DIRECTION, usual, direction) for direction in drawn]
        if edits:
            seen, active, noop = measured(bench, layer, number, edits, readers, settings.batch_rows)
            for at in {one.edit.source for one in seen}:
                of_source = [one for one in seen if one.edit.source == at]
                taken[at].append(Taken(number, of_source, active, noop))
    return [
        _row(bench, node, target, taken[at], readers.targets.index(target), settings)
        for at, node in enumerate(nodes)
        for target in sources[node]
    ]


class Taken(NamedTuple):
    """What came of one source in one context. active (target,); noop (2, target): seen, and what rounding may do"""

    number: int
    seen: list[Seen]
    active: Tensor
    noop: Tensor


def _share(number: int, found: Sequence[Tensor], source: int, settings: Replay) -> slice:
    """Which of its random directions a source is tried with in a context: they go round the first ones where it is active."""
    where = [at for at, of_context in enumerate(found) if of_context[:, source].any()][: settings.control_contexts]
    return slice(where.index(number), None, len(where)) if number in where else slice(0)


def _row(bench: Bench, node: Node, target: Node, taken: Sequence[Taken], at: int, settings: Replay) -> ReplayRow:
    per_length = [
        float(one.change[at] / one.edit.lengths.norm()) for of in taken for one in of.seen if one.edit.what == DIRECTION
    ]
    deltas, post = {}, {}
    for mode in modes_of(settings):
        edited = [(one, of.active[at]) for of in taken for one in of.seen if one.edit.what == mode]
        deltas[mode] = [short(one.change[at]) for one, _ in edited]
        post[mode] = [short(one.active[at] - before) for one, before in edited]
    zeros = [(one, of.active[at]) for of in taken for one in of.seen if one.edit.what == ZERO]
    return ReplayRow(
        source=node.name,
        target=target.name,
        contexts=[bench.contexts[of.number].id for of in taken],
        norms=[short(one.edit.lengths.norm()) for one, _ in zeros],
        deltas=deltas,
        post=post,
        n_on=sum(bool(before > 0) for _, before in zeros),
        n_off=sum(bool(before > 0) and not bool(one.active[at] > 0) for one, before in zeros),
        directions=short(sqrt(fmean(value**2 for value in per_length))) if per_length else 0.0,
        n_directions=len(per_length),
        noop=max((short(of.noop[0, at]) for of in taken), default=0.0),
        rounding=max((short(of.noop[1, at]) for of in taken), default=0.0),
    )


def null_rows(
    bench: Bench, layer: int, targets: Sequence[Node], settings: Replay, seed: int, min_active: int
) -> list[NullRow]:
    """What random features of a layer do to all targets when they are ablated; features active in enough contexts."""
    features = active_features(bench, layer, POOL * settings.control_directions, seed, min_active)
    return ablate(bench, layer, features, targets, settings) if features else []


def active_features(bench: Bench, layer: int, n: int, seed: int, min_active: int) -> list[int]:
    """At most `n` of those that are active in `min_active` contexts, drawn at random."""
    found = found_in(bench, layer, layer, bench.columns(layer))
    often = torch.stack([of_context.any(0) for of_context in found]).sum(0) >= min(min_active, len(found))
    active = often.nonzero().flatten().tolist()
    return Random(f"{seed}|{layer}").sample(active, min(n, len(active)))


def ablate(
    bench: Bench, layer: int, features: Sequence[int], targets: Sequence[Node], settings: Replay
) -> list[NullRow]:
    """What ablation of each feature does to all targets, in the first contexts where it is active."""
    readers = Readers(bench, targets)
    columns = bench.columns(layer, features)
    found = found_in(bench, layer, readers.last, columns)
    squares: dict[int, list[Tensor]] = {at: [] for at in range(len(features))}
    for number, of_context in enumerate(found):
        edits = [
            Edit(at, ZERO, -of_context[:, at], columns.directions[at])
            for at in of_context.any(0).nonzero().flatten().tolist()
            if len(squares[at]) < settings.control_contexts
        ]
        if edits:
            for one in measured(bench, layer, number, edits, readers, settings.batch_rows)[0]:
                squares[one.edit.source].append((one.change / one.edit.lengths.norm().cpu()) ** 2)
    return [
        NullRow(
            source=Node(layer, features[at]).name,
            effects={
                target.name: short(value)
                for target, value in zip(readers.targets, torch.stack(of).mean(0), strict=True)
            },
        )
        for at, of in squares.items()
        if of
    ]
