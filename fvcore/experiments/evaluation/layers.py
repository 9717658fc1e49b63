"""The injection at every layer: accuracy over layers, zero-shot and behind shuffled demonstrations.

Without the vector a prompt runs once, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fvcore.experiments.evaluation.bench import Bench
from fvcore.experiments.evaluation.draws import without_help
from fvcore.experiments.evaluation.results import Result


def sweep_layers(
    bench: Bench,
    vectors: Mapping[str, Tensor],
    n_shots: int,
    kept: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> list[Result]:
    """Each vector at each layer (all by default), and without: zero-shot, then behind n shuffled demonstrations."""
    every = range(bench.lm.n_layers) if layers is None else layers
    prompts = without_help(n_shots)
    return [result for n, labels in prompts for result in bench.ask(n, labels, kept, vectors, every)]
