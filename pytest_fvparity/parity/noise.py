"""How far the reference is from itself: the same run under its legal variations, measured when a golden is recorded.

A candidate on another attention kernel or processor, with more threads, or with its weights elsewhere in memory is no
worse than the reference so varied. What that changes is stored in the golden, per check key and leaf name, as the largest absolute
difference from the recording; `FACTOR` times it is the least that the default tolerances allow.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fvcore.artifacts import Artifact, Leaf
from fvcore.compare import Tolerance

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel

FACTOR = 4.0
RULE = f"noise of the reference x {FACTOR:g}"

# The kernels that every installation of torch has.
ATTENTION = ("eager", "sdpa")

# What another processor computes with, as far as this one can be made to: the libraries read it once, when they load.
# MKL, which multiplies the matrices, has a variable of its own.
OTHER_INSTRUCTIONS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}


@dataclass(frozen=True)
class Noise:
    """Check key -> leaf name -> largest absolute difference, and the variations it was seen under."""

    variations: tuple[str, ...] = ()
    largest: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def tolerance(self, key: str, leaf: str) -> Tolerance | None:
        """What the noise of a leaf allows, or None if none was seen."""
        seen = self.largest.get(key, {}).get(leaf, 0.0)
        return Tolerance(atol=FACTOR * seen, rule=RULE) if seen else None

    def __str__(self) -> str:
        figures = ", ".join(f"{key} {max(seen.values()):.1g}" for key, seen in self.largest.items())
        return f"noise under {', '.join(self.variations)}: {figures}" if self.variations else "no noise was measured"


def variations(lm: LanguageModel) -> list[dict[str, Any]]:
    """What is varied beside the recorded run, one thing at a time, as the reference's process is told of it.

    The repeat copies the weights: mapped from a file they are aligned otherwise, and some kernels round by alignment. A
    variation with an `environment` needs a process of its own.
    """
    recorded = {"attn_implementation": lm.attn_implementation, "threads": 1, "copies_weights": False, "environment": {}}
    changes: list[dict[str, Any]] = [{"name": "repeat", "copies_weights": True}]
    changes += [{"name": f"attn_implementation={other}", "attn_implementation": other} for other in other_attention(lm)]
    if lm.device.type == "cpu":
        changes.append({"name": "threads=2", "threads": 2})
        if has_other_instructions():
            changes.append({"name": "instructions=SSE41", "environment": OTHER_INSTRUCTIONS})
    return [recorded | change for change in changes]


def has_other_instructions() -> bool:
    """Whether this processor can be made to compute as a lesser one: an x86 that is not held back already."""
    import torch

    return platform.machine() in {"x86_64", "AMD64"} and torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def other_attention(lm: LanguageModel) -> list[str]:
    """The attention implementations that this model has beside the one it runs on."""
    has_sdpa = getattr(lm.hf, "_supports_sdpa", False)
    return [name for name in ATTENTION if name != lm.attn_implementation and (name == "eager" or has_sdpa)]


def measured(recorded: Mapping[str, Artifact], varied: Mapping[str, Mapping[str, Artifact]]) -> Noise:
    """Compare every number of every variation with the recording."""
    largest: dict[str, dict[str, float]] = {}
    for key, artifact in recorded.items():
        numbers = {leaf: value for leaf, value in artifact.items() if is_number(value)}
        for leaf, value in numbers.items():
            seen = largest.setdefault(key, {})
            name = leaf.rpartition("/")[2]
            off = [difference(value, artifacts[key][leaf]) for artifacts in varied.values()]
            seen[name] = max([seen.get(name, 0.0), *off])
    return Noise(tuple(varied), largest)


def is_number(value: Leaf) -> bool:
    """Whether a leaf is compared within a tolerance."""
    return isinstance(value, float) or hasattr(value, "dtype")


def difference(one: Any, other: Any) -> float:
    """Largest absolute difference of two numeric leaves, in float64."""
    import torch

    pair = [torch.as_tensor(value).detach().double().cpu() for value in (one, other)]
    return float((pair[0] - pair[1]).abs().max()) if pair[0].numel() else 0.0
