"""Step 2: one feature from end to end, with every check that a discovery of thousands stands on.

What is merely active beside the feature is listed, as the plan does it, and told apart from what gradients name and replay
proves. Nothing here is evidence for the feature's pathways: one target is too few for a correction over many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from fvcore.experiments.errors import StepError, cause_of
from fvcore.experiments.folder import Folder
from fvcore.experiments.progress import Watched
from fvcore.experiments.sae import bench as benches
from fvcore.experiments.sae.attribution import attribute
from fvcore.experiments.sae.batches import by_layer, nulls, replays
from fvcore.experiments.sae.bench import Bench
from fvcore.experiments.sae.features import FEATURES, read
from fvcore.experiments.sae.health import Health, health, shifted
from fvcore.experiments.sae.instrumentation import instrumented
from fvcore.experiments.sae.pathways import Node, NullRow, Pathway, ReplayRow
from fvcore.experiments.sae.schemas import Context, Feature, Row
from fvcore.experiments.sae.steps import PROTOTYPE
from fvcore.experiments.sae.verdicts import judge
from fvcore.provenance import peak_rss

if TYPE_CHECKING:
    from pathlib import Path

    from fvcore.experiments.progress import Progressing
    from fvcore.experiments.sae.config import PathwaysConfig

TOP, TOP_K = 10, 5
"""Active features listed of a layer, and sources of the feature that are replayed."""
CONTEXTS = 8
"""Contexts whose tokens autoencoders are judged on."""
GB = 1e9
AGREE = 1e-5
"""Of the largest number of a stream: two readings of one pass differ by nothing, of two passes by their rounding."""


class Coactive(Row):
    """What is active at the last token of a context where the feature is. position: from the end, the last token being 0"""

    source: str
    source_layer: int
    activation: float
    position: int = 0
    kind: Literal["coactive"] = "coactive"


class SingleFeatureTest(Row):
    """`results/prototype/single_feature_test.json`.

    hook_equals_hidden_states: layer -> largest difference of both ways of reading, over the largest number of the stream
    memory: peak_gb is read before anything is reset; on a CPU it is the process's own
    """

    schema_version: Literal[1] = 1
    feature: str
    instrumentation: str
    context: str | None
    target_activation: float
    upstream_candidates: list[Coactive]
    gradient_candidates: list[Pathway]
    replay_checks: dict[str, float]
    hook_equals_hidden_states: dict[str, float]
    sae_health: dict[str, dict[str, Any]]
    memory: dict[str, float]
    memory_usage_gb: float
    timing: dict[str, float]
    criteria: dict[str, bool]
    warnings: list[str]
    passed: bool


@dataclass(frozen=True)
class Read:
    """The streams of a context (token, d_model) by layer, as an instrument shows them."""

    context: Context
    streams: Mapping[int, Tensor]


def prototype(settings: PathwaysConfig, progress: Progressing | None = None) -> list[Path]:
    """Write the test of one feature; whether it passed stands in it. Memory that runs out is a test that did not pass."""
    folder, watched = Folder(settings.paths.out), Watched(progress)
    features = read(folder)
    if not features:
        raise StepError(f"{folder / FEATURES} holds no feature; choose others with features.*")
    bench = benches.of(settings)
    if bench.lm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.lm.device)
    with watched.running("Prototype", 3) as advance:
        found = examined(bench, features, settings, advance)
    return folder.write({PROTOTYPE: found.model_dump(mode="json")})


def examined(
    bench: Bench, features: Sequence[Feature], settings: PathwaysConfig, advance: Any = lambda at, n: None
) -> SingleFeatureTest:
    """The feature that settings name, or the strongest of the middle layers that is active in a context."""
    started, timing = monotonic(), dict[str, float]()
    node, reads = _chosen(bench, features, settings)
    try:
        told = _looked_at(bench, node, reads, settings)
        timing["reading_s"] = monotonic() - started
        advance(1, 1)
        told |= _replayed(bench, node, features, settings)
        timing["pathways_s"] = monotonic() - started - timing["reading_s"]
        advance(2, 1)
    except Exception as error:
        if cause_of(error) != "memory":
            raise
        told = {"out_of_memory": True}
    return _judged(bench, node, told, timing, settings)


def _chosen(bench: Bench, features: Sequence[Feature], settings: PathwaysConfig) -> tuple[Node, list[Read]]:
    """The feature, and the contexts that were read to find it."""
    asked = settings.prototype.feature
    if asked != "auto":
        node = Node.of(asked)
        bench.lm.require_layer(node.layer)
        return node, _read(bench, node.layer, settings)
    layers = sorted({one.layer for one in features})
    middle = layers[len(layers) // 3 : max(len(layers) // 3 + 1, -(-2 * len(layers) // 3))]
    reads = _read(bench, middle[-1], settings)
    strongest = sorted(
        features, key=lambda one: (one.layer not in middle, -abs(one.cohen_d), one.layer, one.feature_id)
    )
    candidates = [Node(one.layer, one.feature_id) for one in strongest if one.layer <= middle[-1]]
    active = (node for node in candidates if _active(bench, node, reads) is not None)
    return next(active, candidates[0]), reads


def _read(bench: Bench, last: int, settings: PathwaysConfig) -> list[Read]:
    return [
        Read(context, instrumented(bench, context, last, settings.prototype.instrumentation))
        for context in bench.contexts
    ]


def _active(bench: Bench, node: Node, reads: Sequence[Read]) -> tuple[float, Read] | None:
    """The context in which the feature is the most active at the last token, if there is one."""
    column = bench.columns(node.layer, [node.id])
    found = [(float(column.encode(read.streams[node.layer][-1])), read) for read in reads]
    best = max(found, key=lambda one: one[0])
    return best if best[0] > 0 else None


def _looked_at(bench: Bench, node: Node, reads: Sequence[Read], settings: PathwaysConfig) -> dict[str, Any]:
    """What reading shows: who is active beside the feature, how autoencoders do, whether both instruments agree."""
    best = _active(bench, node, reads)
    layers = list(range(settings.features.layers[0], node.layer + 1))
    told: dict[str, Any] = {"layers": layers, "target_activation": best[0] if best else 0.0}
    if best:
        told["context"] = best[1].context.id
        told["upstream_candidates"] = [
            one for layer in layers if layer < node.layer for one in _coactive(bench, layer, best[1])
        ]
    told["finite"] = all(bool(hidden.isfinite().all()) for read in reads for hidden in read.streams.values())
    told["health"] = {layer: _health(bench, layer, layers, reads[:CONTEXTS]) for layer in layers}
    told["agreement"] = agreement(bench, reads[0], layers)
    return told


def _coactive(bench: Bench, layer: int, read: Read) -> Iterator[Coactive]:
    active = bench.store.sae(layer).encode(read.streams[layer][-1])
    values, ids = active.topk(min(TOP, len(active)))
    for value, number in zip(values.tolist(), ids.tolist(), strict=True):
        if value > 0:
            yield Coactive(source=Node(layer, number).name, source_layer=layer, activation=value)


def _health(bench: Bench, layer: int, layers: Sequence[int], reads: Sequence[Read]) -> Health:
    """On the layer's own stream, against that at one length, and against the autoencoders of its neighbours."""
    own = torch.cat([read.streams[layer][bench.counted(read.context)] for read in reads])
    at_one_length = {f"layer {layer} at one length": torch.nn.functional.normalize(own, dim=-1) * own.shape[1] ** 0.5}
    told = health(bench.store.sae(layer), own, at_one_length)
    near = {at: bench.store.sae(at) for at in (layer - 1, layer, layer + 1) if at in layers}
    return told.model_copy(update={"findings": told.findings + shifted(own, layer, near)})


def agreement(bench: Bench, read: Read, layers: Sequence[int]) -> dict[int, float]:
    """Layer -> how far hooks and the library's own record are apart, over the largest number; the last layer has no record."""
    last = bench.lm.n_layers - 1
    both = [instrumented(bench, read.context, min(max(layers), last - 1), kind) for kind in ("hooks", "hidden_states")]
    return {
        layer: float((both[0][layer] - both[1][layer]).abs().max() / both[0][layer].abs().max())
        for layer in layers
        if layer < last
    }


def _replayed(bench: Bench, node: Node, features: Sequence[Feature], settings: PathwaysConfig) -> dict[str, Any]:
    """The feature's own discovery, of few sources."""
    own = settings.discover.model_copy(update={"top_k": TOP_K})
    chosen = by_layer(Node(one.layer, one.feature_id) for one in features)
    sources = {
        layer: None if own.source_scope == "all" else [one.id for one in nodes]
        for layer, nodes in chosen.items()
        if layer < node.layer
    }
    seed = settings.runtime.seed
    rows = attribute(bench, [node], sources, own)
    nulled = [cast("NullRow", row) for batch in nulls(rows, own, seed) for row in batch.work(bench)]
    replayed = [cast("ReplayRow", row) for batch in replays(rows, own, seed) for row in batch.work(bench)]
    return {"pathways": judge(rows, replayed, nulled, bench.contexts, own), "replays": replayed, "scale": rows[0].scale}


def _judged(
    bench: Bench, node: Node, told: Mapping[str, Any], timing: dict[str, float], settings: PathwaysConfig
) -> SingleFeatureTest:
    healths: dict[int, Health] = told.get("health", {})
    replays: list[ReplayRow] = told.get("replays", [])
    candidates: list[Coactive] = told.get("upstream_candidates", [])
    pathways: list[Pathway] = told.get("pathways", [])
    noop = max((row.noop for row in replays), default=0.0)
    memory, agreed = _memory(bench), told.get("agreement", {})
    limit = settings.discover.replay.noop_tol * max(1.0, told.get("scale", 0.0))
    criteria = {
        "no_oom": not told.get("out_of_memory", False),
        "activations_recorded": bool(told.get("finite", False)) and told.get("target_activation", 0.0) > 0,
        "upstream_found": bool(candidates or pathways),
        "memory_ok": memory["peak_gb"] < settings.prototype.max_memory_gb,
        "replay_of_the_same_is_the_same": noop <= limit,
        "hooks_equal_hidden_states": all(one <= _agrees(bench) for one in agreed.values()),
        "autoencoders_fit": not any(one.findings for one in healths.values()),
    }
    return SingleFeatureTest(
        feature=node.name,
        instrumentation=settings.prototype.instrumentation,
        context=told.get("context"),
        target_activation=told.get("target_activation", 0.0),
        upstream_candidates=candidates,
        gradient_candidates=pathways,
        replay_checks={"noop": noop, "noop_limit": limit, "n_replayed": len(replays)},
        hook_equals_hidden_states={str(layer): one for layer, one in agreed.items()},
        sae_health={str(layer): one.model_dump(mode="json") for layer, one in healths.items()},
        memory=memory,
        memory_usage_gb=memory["peak_gb"],
        timing={name: round(seconds, 3) for name, seconds in timing.items()},
        criteria=criteria,
        warnings=[f"layer {layer}: {said}" for layer, one in healths.items() for said in one.findings],
        passed=all(criteria.values()),
    )


def _agrees(bench: Bench) -> float:
    """Two passes of weights with few digits round differently where their kernels do."""
    dtype = next(bench.lm.hf.parameters()).dtype
    return max(AGREE, 4 * torch.finfo(dtype).eps)


def _memory(bench: Bench) -> dict[str, float]:
    """In GB. held: by autoencoders that are in memory or on the device now"""
    shelves = [getattr(bench.store, name, None) for name in ("on_device", "in_memory")]
    held = sum(shelf.n_bytes for shelf in shelves if shelf is not None) / GB
    if bench.lm.device.type != "cuda":
        return {"peak_gb": peak_rss() / GB, "after_gb": peak_rss() / GB, "sae_resident_max": held}
    device = bench.lm.device
    peak, after = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    return {"peak_gb": peak / GB, "after_gb": after / GB, "sae_resident_max": held}
