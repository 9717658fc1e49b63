"""The file names of the milestone plans, read as leaves of our artifacts.

These files hold less than an artifact does: the numbers a run ends with, not what led to them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fvcore.artifacts import Artifact, is_dense
from fvcore.formats import FormatError, read_json, read_pt


def read_plan_files(folder: Path, key: str) -> Artifact | None:
    """The leaves of a check key that the plans' files in `folder` hold, or None when there is no such file."""
    if key not in FILES:
        return None
    name, read = FILES[key]
    return read(folder / name) if (folder / name).is_file() else None


def _mean_activations(path: Path) -> Artifact:
    value = read_pt(path)
    if not is_dense(value) or value.ndim != 4:
        raise FormatError(f"{path}: expected mean activations (layer, head, slot, d_head), found {_shown(value)}")
    return {"mean_activations": value}


def _top_heads(path: Path) -> Artifact | None:
    value = read_json(path)
    if isinstance(value, dict) and "meta" not in value:
        return None  # our own file of that name: its leaves are not rows
    rows: Any = value.get("heads") if isinstance(value, dict) else value
    try:
        heads = [[row["layer"], row["head"]] for row in rows]
    except (TypeError, KeyError):
        raise FormatError(f"{path}: expected heads, each with layer and head") from None
    if others := [number for head in heads for number in head if type(number) is not int]:
        raise FormatError(f"{path}: expected layer and head to be whole numbers, found {others[0]!r:.80}")
    return {"heads": heads}


def _fv_vector(path: Path) -> Artifact:
    value = read_pt(path)
    vector = value.get("fv_global_resid") if isinstance(value, dict) else value
    if not is_dense(vector):
        raise FormatError(f"{path}: expected a tensor fv_global_resid (d_model,), found {_shown(vector)}")
    return {"function_vector": vector.reshape(-1)}


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{list(value.shape)}" if is_dense(value) else "a tensor without plain numbers (sparse, quantized or meta)"


FILES: dict[str, tuple[str, Callable[[Path], Artifact | None]]] = {
    "mean_activations": ("mean_activations.pt", _mean_activations),
    "top_heads": ("top_heads.json", _top_heads),
    "fv_vector": ("fv_global_resid.pt", _fv_vector),
}
