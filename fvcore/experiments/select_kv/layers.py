"""Where a state works: its effect when one layer, two neighbours, all or none see it, beside the function vector's curve."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fvcore.experiments.select_kv.bench import Bench
from fvcore.experiments.select_kv.compute import Chosen
from fvcore.experiments.select_kv.data import OnSample
from fvcore.experiments.select_kv.metrics import rel_kl
from fvcore.experiments.select_kv.points import clusters, mean, share
from fvcore.experiments.select_kv.vector import vector_curve
from fvcore.fast.chunks import Advance, silent

Scope = tuple[int, ...]


def scopes(n_layers: int) -> Iterator[Scope]:
    """No layer, each one, each with the next, all."""
    yield ()
    yield from ((layer,) for layer in range(n_layers))
    if n_layers > 2:
        yield from ((layer, layer + 1) for layer in range(n_layers - 1))
    if n_layers > 1:
        yield tuple(range(n_layers))


def curve(bench: Bench, samples: Sequence[OnSample], advance: Advance = silent) -> dict[str, Any]:
    """ON accuracy and distance to the teacher for each scope, and the function vector's accuracy behind each layer.

    The state is the run's own. Layers outside a scope see the sink and the query alone.
    """
    n_layers = bench.runtime.info.n_layers
    asked = list(scopes(n_layers))
    hits: dict[Scope, list[bool]] = {scope: [] for scope in asked}
    rel: dict[Scope, list[float]] = {scope: [] for scope in asked}
    for sample in samples:
        chosen, base = Chosen.of(bench, sample), bench.base(sample.query_ids)
        prefix = bench.kept(sample, chosen.demo, chosen.selection.indices)
        seen = [replace(prefix, visible_layers=scope) for scope in asked]
        answers = bench.runtime.next_logits_of_prefixes(sample.query_ids, seen)
        for scope, one, logits in zip(asked, seen, answers, strict=True):
            hits[scope].append(bench.is_hit(sample, logits, sample.query_ids, one))
            rel[scope].append(float(rel_kl(logits, chosen.cached, base)))
        advance(0, 1)
    groups = clusters(samples)
    points = [
        {"layers": list(scope), "accuracy": share(hits[scope], groups), "rel_kl": mean(rel[scope], groups)}
        for scope in asked
    ]
    return {"n": len(samples), "n_layers": n_layers, "scopes": points, "vector": vector_curve(bench, samples)}
