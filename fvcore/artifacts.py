"""Artifact: what one station of the river says, a flat mapping from leaf name to value.

A leaf is a tensor, a number, a string, a boolean, or a nested list of those. Per-trial leaves start with
the trial's key, `<trial_id>:<trial_idx>/`. On disk an artifact is `<stem>.json`, every leaf in order, with
the tensors in `<stem>.safetensors`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from fvcore.formats import FormatError, json_text, read_json, read_safetensors, write_safetensors, write_text

Leaf: TypeAlias = Tensor | int | float | str | bool | list[Any] | None
Artifact: TypeAlias = Mapping[str, Leaf]

TENSOR = "$tensor"


def trial_of(leaf: str) -> str | None:
    """The trial key a leaf belongs to, or None for a leaf of the whole run."""
    head, separator, _ = leaf.partition("/")
    return head if separator and ":" in head else None


def limited_to(artifact: Artifact, trials: Collection[str]) -> dict[str, Leaf]:
    """The leaves of these trials, and all leaves that belong to no trial."""
    return {leaf: value for leaf, value in artifact.items() if trial_of(leaf) in {None, *trials}}


def is_dense(value: Any) -> TypeGuard[Tensor]:
    """Whether this is a tensor that holds one number an element: not sparse, quantized, nested or without memory."""
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)


def tensor_leaf(artifact: Artifact, leaf: str) -> Tensor:
    value = artifact[leaf]
    if not isinstance(value, Tensor):
        raise TypeError(f"leaf {leaf!r} is a {type(value).__name__}, expected a tensor")
    return value


def _description(tensor: Tensor) -> list[Any]:
    """What the JSON says in a tensor's place: its dtype and its sizes."""
    return [str(tensor.dtype).removeprefix("torch."), *tensor.shape]


def _shown(description: Any) -> str:
    if isinstance(description, list) and description:
        return f"{f'{description[0]} {description[1:]}':.200}"
    return "no tensor"


def described(artifact: Artifact) -> dict[str, Any]:
    """Every leaf as JSON has it: in a tensor's place stands what it is."""
    return {
        leaf: {TENSOR: _description(value)} if isinstance(value, Tensor) else value for leaf, value in artifact.items()
    }


def joined(leaves: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> dict[str, Leaf]:
    """What was `described`, with its tensors; raises FormatError when the two do not belong together."""
    # Any other object is a value of its own: a candidate may write its maps so.
    named = {leaf for leaf, value in leaves.items() if isinstance(value, dict) and TENSOR in value}
    if named != set(tensors):
        lone = f"{sorted(named ^ set(tensors))}"
        raise FormatError(f"{source}: tensors {lone:.200} stand in one of the two files only")
    for leaf in named:
        want, found = leaves[leaf].get(TENSOR), _description(tensors[leaf])
        if len(leaves[leaf]) > 1:
            raise FormatError(f"{source}: leaf {leaf!r:.80} is a tensor and more: {sorted(leaves[leaf])!r:.80}")
        if repr(want) != repr(found):  # in value and in type: 1, True and 1.0 are three sizes
            raise FormatError(f"{source}: leaf {leaf!r:.80} is described as {_shown(want)}, found {_shown(found)}")
    return {leaf: tensors.get(leaf, value) for leaf, value in leaves.items()}


def save(artifact: Artifact, stem: Path, compact: bool = False) -> list[Path]:
    """Write an artifact; returns the files written. `compact` JSON has no white space."""
    tensors = {leaf: value for leaf, value in artifact.items() if isinstance(value, Tensor)}
    written = [stem.with_suffix(".json")]
    write_text(written[0], json_text(described(artifact), compact))
    if tensors:
        written.append(stem.with_suffix(".safetensors"))
        write_safetensors(written[1], tensors)
    return written


def load(stem: Path) -> dict[str, Leaf]:
    """Read an artifact; raises FormatError when the two files do not belong together."""
    path = stem.with_suffix(".json")
    leaves = read_json(path, strict=False)  # a candidate's NaN is a value, and found to be wrong where it stands
    if not isinstance(leaves, dict):
        raise FormatError(f"{path}: expected an object of leaves, found {type(leaves).__name__}")
    tensors = any(isinstance(value, dict) and TENSOR in value for value in leaves.values())
    return joined(leaves, read_safetensors(stem.with_suffix(".safetensors")) if tensors else {}, str(path))
