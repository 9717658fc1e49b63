"""The plans' files that people exchange: their names, and how means, heads and vector are read from them.

A run of the steps ends with three files in `artifacts/`; the reference's own run with files that bear the dataset's name.
They hold less than an artifact does: the numbers a run ends with, not what led to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.formats import FormatError, read_pt

if TYPE_CHECKING:
    from torch import Tensor

MEANS, TOP_HEADS, VECTOR = "mean_activations.pt", "top_heads.json", "fv_global_resid.pt"

VECTOR_KEYS = ("function_vector", "fv_global_resid")
"""Under which a file of several values holds the vector."""


@dataclass(frozen=True)
class ReferenceFiles:
    """The file names of one dataset. The first three are the reference's own, the others those of its later stations.

    `FIXED` says that the means are of the fixed trials; the public reference's own file, without it, is of trials drawn at
    random.
    """

    means: str
    labels: str
    effect: str
    vector: str = "src_fv.pt"
    heads: str = "top_heads_src.json"

    @classmethod
    def of(cls, dataset: str) -> ReferenceFiles:
        return cls(
            f"{dataset}_mean_head_activations_FIXED.pt", f"{dataset}_dummy_labels.json", f"{dataset}_indirect_effect.pt"
        )


def read_means(path: Path) -> Tensor:
    """(layer, head, slot, d_head). Raises FormatError, as all that follow."""
    return _tensor(read_pt(path), path, "mean activations (layer, head, slot, d_head)", n_axes=4)


def heads_in(value: Any, path: Path) -> list[list[int]]:
    """[layer, head] in rank order, of the rows in `path`."""
    rows: Any = value.get("heads") if isinstance(value, dict) else value
    try:
        heads = [[row["layer"], row["head"]] for row in rows]
    except (TypeError, KeyError):
        raise FormatError(f"{path}: expected heads, each with layer and head") from None
    if others := [number for head in heads for number in head if type(number) is not int]:
        raise FormatError(f"{path}: expected layer and head to be whole numbers, found {others[0]!r:.80}")
    return heads


def vector_in(value: Any, path: Path) -> Any:
    """What stands for the vector in `path`: the value itself, or the one under its key."""
    if not isinstance(value, Mapping):
        return value
    for key in VECTOR_KEYS:
        if key in value:
            return value[key]
    keys = " or ".join(VECTOR_KEYS)
    raise FormatError(f"{path}: no vector in it; expected a key {keys}, found {', '.join(map(str, value)) or 'none'}")


def read_vector(path: Path) -> Tensor:
    """(d_model,)"""
    return _tensor(vector_in(read_pt(path), path), path, f"a tensor {VECTOR_KEYS[1]} (d_model,)").reshape(-1)


def _tensor(value: Any, path: Path, expected: str, n_axes: int | None = None) -> Tensor:
    # Where a run's files lie is asked without torch.
    from torch import Tensor

    from fvcore.artifacts import is_dense

    if is_dense(value) and n_axes in {None, value.ndim}:
        return value
    shown = f"{list(value.shape)}" if is_dense(value) else f"a {type(value).__name__}"
    if isinstance(value, Tensor) and not is_dense(value):
        shown = "a tensor without plain numbers (sparse, quantized or meta)"
    raise FormatError(f"{path}: expected {expected}, found {shown}")
