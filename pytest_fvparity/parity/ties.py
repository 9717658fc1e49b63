"""Near ties: the only rule for when another order is no fault, of heads as of tokens, in parity as in transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.compare import Tolerance

Heads = Sequence[Sequence[int]]
"""(layer, head), in rank order."""


def may_swap(gap: float, off: float, off_other: float) -> bool:
    """Whether two values so far apart may legally change places.

    Each of the two may be off by what is allowed at it, and the larger one downwards while the smaller one goes up: only a
    gap beyond the sum of both cannot close so. Whether either is off by more than that is no question of order, and a
    fault of its own, found where the values themselves are compared.
    """
    return gap <= off + off_other


def tied_heads(want: Heads, have: Heads, aie: Tensor, own: Tensor, tolerance: Tolerance) -> bool:
    """Whether the order is left open: `have` ranks by its `own` effects, and each rank's head may by the effects `aie` that
    it is held against, (layer, head), change places with the head of that rank in `want`."""
    if own.shape != aie.shape or len(set(map(tuple, have))) != len(have) or len(want) != len(have):
        return False
    n_layers, n_heads = aie.shape
    if not all(0 <= layer < n_layers and 0 <= head < n_heads for layer, head in have):
        return False
    aie = aie.detach().double().cpu()
    allowed = tolerance.allowed(aie)

    def open_at(one: Sequence[int], other: Sequence[int]) -> bool:
        at, there = tuple(one), tuple(other)
        return may_swap(float((aie[at] - aie[there]).abs()), float(allowed[at]), float(allowed[there]))

    return all(map(open_at, want, have)) and _ranked(have, own)


def _ranked(heads: Heads, aie: Tensor) -> bool:
    """Whether these are the largest of `aie`, largest first, up to the rounding of a mean in fp32."""
    import torch

    aie = aie.detach().double().cpu()
    slack = 8 * torch.finfo(torch.float32).eps * float(aie.abs().max())
    chosen = torch.stack([aie[tuple(head)] for head in heads])
    best = aie.flatten().topk(len(heads)).values
    return bool(((chosen - best).abs() <= slack).all())
