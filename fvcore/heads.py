"""Station 4b: the heads with the largest average indirect effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


Scored = TypeVar("Scored")


class Head(NamedTuple):
    layer: int
    head: int
    aie: float


def top_heads(aie: Tensor, k: int, layers: Sequence[int] | None = None) -> list[Head]:
    """The `k` heads with the largest AIE, largest first; equal ones by (layer, head).

    Sorted on unrounded values. aie: (layer, head). layers: those that have heads, all by default. Source: `compute_function_vector` in the reference's
    extract_utils.py, whose order among exactly equal values is left to the backend.
    """
    n_layers, n_heads = aie.shape
    of = range(n_layers) if layers is None else layers
    heads = [Head(layer, head, float(aie[layer, head])) for layer in of for head in range(n_heads)]
    return best(heads, k, lambda head: (head.aie, head.layer, head.head))


def best(heads: Sequence[Scored], k: int, place: Callable[[Scored], tuple[float, int, int]]) -> list[Scored]:
    """The `k` with the largest score, largest first; equal ones by (layer, head). place: (score, layer, head) of one."""
    if not 1 <= k <= len(heads):
        raise ValueError(f"top {k} heads asked for, {len(heads)} are scored; ask for 1 to {len(heads)}")
    return sorted(heads, key=lambda one: (-place(one)[0], *place(one)[1:]))[:k]
