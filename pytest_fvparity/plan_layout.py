"""The file names of the milestone plans, read as leaves of our artifacts.

These files hold less than an artifact does: the numbers a run ends with, not what led to them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fvcore.artifacts import Artifact
from fvcore.formats import FormatError, read_json, read_pt


def read_plan_files(folder: Path, key: str) -> Artifact | None:
    """The leaves of a check key that the plans' files in `folder` hold, or None when there is no such file."""
    if key not in FILES:
        return None
    name, read = FILES[key]
    return read(folder / name) if (folder / name).is_file() else None


def _mean_activations(path: Path) -> Artifact:
    value = read_pt(path)
    if getattr(value, "ndim", None) != 4:
        shape = list(getattr(value, "shape", [])) or type(value).__name__
        raise FormatError(f"{path}: expected mean activations (layer, head, slot, d_head), found {shape}")
    return {"mean_activations": value}


def _top_heads(path: Path) -> Artifact | None:
    value = read_json(path)
    if isinstance(value, dict) and "meta" not in value:
        return None  # our own file of that name: its leaves are not rows
    rows: Any = value.get("heads") if isinstance(value, dict) else value
    try:
        heads = [[int(row["layer"]), int(row["head"])] for row in rows]
    except (TypeError, KeyError, ValueError):
        raise FormatError(f"{path}: expected heads, each with layer and head") from None
    return {"heads": heads}


def _fv_vector(path: Path) -> Artifact:
    value = read_pt(path)
    vector = value.get("fv_global_resid") if isinstance(value, dict) else value
    if vector is None or not hasattr(vector, "reshape"):
        raise FormatError(f"{path}: expected a tensor fv_global_resid (d_model,)")
    return {"function_vector": vector.reshape(-1)}


FILES: dict[str, tuple[str, Callable[[Path], Artifact | None]]] = {
    "mean_activations": ("mean_activations.pt", _mean_activations),
    "top_heads": ("top_heads.json", _top_heads),
    "fv_vector": ("fv_global_resid.pt", _fv_vector),
}
