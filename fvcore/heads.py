"""Station 4b: the heads with the largest average indirect effect."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Head(NamedTuple):
    layer: int
    head: int
    aie: float


def top_heads(aie: Tensor, k: int) -> list[Head]:
    """The `k` heads with the largest AIE, largest first; equal ones by (layer, head).

    Sorted on unrounded values. aie: (layer, head). Source: `compute_function_vector` in the reference's
    extract_utils.py, whose order among exactly equal values is left to the backend.
    """
    n_layers, n_heads = aie.shape
    if not 1 <= k <= aie.numel():
        raise ValueError(
            f"{k} top heads asked for, the model has {n_layers} layers x {n_heads} heads = {aie.numel()}; "
            f"ask for 1 to {aie.numel()}"
        )
    ranked = [Head(layer, head, float(aie[layer, head])) for layer in range(n_layers) for head in range(n_heads)]
    return sorted(ranked, key=lambda head: (-head.aie, head.layer, head.head))[:k]
