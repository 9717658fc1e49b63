"""n-shot accuracy: how well a model answers behind n demonstrations, and what a vector adds or puts in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fvcore.experiments.evaluation.bench import Bench
from fvcore.experiments.evaluation.draws import LABELS
from fvcore.experiments.evaluation.results import Result


@dataclass(frozen=True)
class NShot:
    """`baseline`: clean labels, no vector, every question. `with_vectors`: only those that the filter kept."""

    baseline: list[Result]
    with_vectors: list[Result]
    kept: list[int]


def evaluate(
    bench: Bench, shots: Sequence[int], vectors: Mapping[str, Tensor], layer: int, filtered: bool = True
) -> NShot:
    """All numbers of shots, with clean labels and, from two shots on, with shuffled ones.

    filtered: questions are those that the model gets right behind the largest number of clean demonstrations.
    """
    rising = sorted(set(shots))
    baseline = [bench.ask(n, "clean")[0] for n in rising]
    kept = bench.kept(baseline[-1]) if filtered else bench.positions
    regimes = [(n, labels) for n in rising for labels in LABELS if n > 1 or labels == "clean"]
    found = [bench.ask(n, labels, kept, vectors, [layer]) for n, labels in regimes] if vectors else []
    return NShot(baseline, [result for results in found for result in results], kept)
