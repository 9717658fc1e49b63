"""What found pathways stand up to when they are replayed together: chains through their middle, targets on their sources.

Both are passes of the model with several edits each, read at the last token before the gate.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from fvcore.experiments.sae.attribution import short
from fvcore.experiments.sae.bench import Bench, Columns
from fvcore.experiments.sae.chains import Chain
from fvcore.experiments.sae.pathways import Node, Pathway
from fvcore.experiments.sae.replay import Readers, found_in
from fvcore.experiments.sae.schemas import Context
from fvcore.fast.chunks import in_chunks
from fvcore.model.residual import Cached, residual_stream


def mediated(bench: Bench, chains: Sequence[Chain], batch_rows: int) -> dict[str, float | None]:
    """Name of a chain -> the share of its first feature's effect on its last one that goes through those between.

    The first is ablated twice: by itself, and with all features between held at what they are without the ablation. What is
    left of the effect then went around them. Effects are means over contexts; None where there is none to share.
    """
    found: dict[str, float | None] = {}
    for layer, of in groupby(sorted(chains, key=_layer), key=_layer):
        for part in in_chunks(list(of), max(1, (batch_rows - 1) // 2), partial(_both, bench, layer)):
            found |= part
    return found


def _layer(chain: Chain) -> int:
    return chain.nodes[0].layer


def _both(bench: Bench, layer: int, chains: Sequence[Chain]) -> dict[str, float | None]:
    readers = Readers(bench, list({chain.nodes[-1] for chain in chains}))
    columns = bench.columns(layer, [chain.nodes[0].id for chain in chains])
    own = torch.tensor([readers.targets.index(chain.nodes[-1]) for chain in chains])
    held = _held(bench, chains)
    changes = torch.zeros(2, len(chains))
    for number, found in enumerate(found_in(bench, layer, readers.last, columns)):
        context, hidden = bench.contexts[number], bench.plain(layer, readers.last)[number].hidden
        ablated = hidden - (found.T[:, :, None] * columns.directions[:, None]).to(hidden.dtype)
        rows = torch.cat([hidden[None], ablated, ablated])
        edits = {at: partial(_hold, bench.counted(context), *of) for at, of in held.items()}
        before = _read(bench, context, Cached(layer, rows), readers, edits)
        of_rows = before[1:].reshape(2, len(chains), -1)[:, torch.arange(len(chains)), own]
        changes += of_rows - before[0, own]
    return {
        chain.name: short(1 - direct / total) if total else None
        for chain, total, direct in zip(chains, *changes.tolist(), strict=True)
    }


def _held(bench: Bench, chains: Sequence[Chain]) -> dict[int, tuple[Columns, list[int]]]:
    """Layer -> the features between, and of each the row of a pass in which it is held."""
    places: dict[int, list[tuple[int, int]]] = {}
    for at, chain in enumerate(chains):
        for node in chain.nodes[1:-1]:
            places.setdefault(node.layer, []).append((node.id, 1 + len(chains) + at))
    return {
        layer: (bench.columns(layer, [feature for feature, _ in of]), [row for _, row in of])
        for layer, of in places.items()
    }


def _hold(counted: Tensor, columns: Columns, rows: Sequence[int], hidden: Tensor) -> Tensor:
    """Give each feature, in its own row, the activations that it has in the first one."""
    features = range(len(rows))
    found = columns.encode(hidden[list(rows)])[features, :, features]
    change = (columns.encode(hidden[0]).T - found) * counted
    held = hidden.clone()
    held[list(rows)] += (change[:, :, None] * columns.directions[:, None]).to(hidden.dtype)
    return held


def _read(
    bench: Bench, context: Context, start: Cached, readers: Readers, edits: Mapping[int, Callable[[Tensor], Tensor]]
) -> Tensor:
    """Targets before the gate (row, target)."""
    ids = bench.ids(context).expand(len(start.hidden), -1)
    stream = residual_stream(bench.lm, ids, edits, last=readers.last, start=start)
    return readers.read({layer: stream[layer][:, -1] for layer in readers.columns})[0].cpu()


class Share(NamedTuple):
    """faithfulness: of what a layer's features do to a target over contexts, the share that its sources alone do
    completeness: the share that is gone without them     sources: how many of them the layer has"""

    faithfulness: float
    completeness: float
    sources: int


def shares(bench: Bench, edges: Iterable[Pathway], batch_rows: int) -> dict[Node, dict[int, Share]]:
    """Target -> layer -> how far its validated sources there account for it.

    What does not count is set to its mean over all contexts: everything, everything but the sources, the sources alone. What
    all features do is how the target differs when none of them says anything of the context; a share is the slope, through 0,
    of what sources do on that. In a linear model both shares are equal; 1 is all of it.
    """
    sources: dict[int, dict[Node, list[int]]] = {}
    for edge in edges:
        sources.setdefault(edge.source_layer, {}).setdefault(Node.of(edge.target), []).append(edge.source_id)
    found: dict[Node, dict[int, Share]] = {}
    for layer in sorted(sources):
        of_layer = sources[layer]
        for part in in_chunks(
            sorted(of_layer), max(1, (batch_rows - 2) // 2), partial(_shares, bench, layer, of_layer)
        ):
            for target, share in part.items():
                found.setdefault(target, {})[layer] = share
    return found


def _shares(
    bench: Bench, layer: int, sources: Mapping[Node, Sequence[int]], targets: Sequence[Node]
) -> dict[Node, Share]:
    readers, columns = Readers(bench, targets), bench.columns(layer)
    found = found_in(bench, layer, readers.last, columns)
    counted = [bench.counted(context) for context in bench.contexts]
    usual = torch.stack([of.sum(0) for of in found]).sum(0) / sum(int(which.sum()) for which in counted)
    products = torch.zeros(3, len(targets), dtype=torch.double)
    for number, context in enumerate(bench.contexts):
        hidden = bench.plain(layer, readers.last)[number].hidden
        said = (found[number] - usual) * counted[number][:, None]  # what features say of this context
        own = torch.stack([said[:, ids] @ columns.directions[ids] for ids in (list(sources[one]) for one in targets)])
        none = hidden - (said @ columns.directions).to(hidden.dtype)
        rows = torch.cat([hidden[None], none[None], none + own.to(hidden.dtype), hidden - own.to(hidden.dtype)])
        before = _read(bench, context, Cached(layer, rows), readers, {}).double()
        whole = before[0] - before[1]
        kept, without = (of.diagonal() for of in before[2:].reshape(2, len(targets), -1))
        products += torch.stack([whole**2, (kept - before[1]) * whole, (before[0] - without) * whole])
    return {
        target: Share(short(kept / whole), short(gone / whole), len(sources[target]))
        for target, whole, kept, gone in zip(readers.targets, *products.tolist(), strict=True)
        if whole
    }
