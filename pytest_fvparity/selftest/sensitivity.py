"""The table of the smallest fault that is caught, leaf by leaf, on the shipped models.

    python -m pytest_fvparity.selftest.sensitivity docs/sensitivity.md

A fault here is one head, one effect, one term, one vector or one number that is too large by some share of itself, against
the committed golden, at the tolerances of a run. How small a share is still caught follows from the bounds, and a test
plants faults on either side of it.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvcore.compare import Tolerance
from fvcore.formats import write_text
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.parity.noise import is_number
from pytest_fvparity.parity.tolerances import Tolerances
from pytest_fvparity.report.render import environment
from pytest_fvparity.selftest.alarms import shipped_rigs
from pytest_fvparity.selftest.rig import Rig

ROWS = {"mean_activations": "head and slot", "head_terms": "head", "function_vector": "vector"}
"""Leaves that are held row by row, and what a row of one is; logits are held as one, all others number by number."""


@dataclass(frozen=True)
class Row:
    """One leaf of one model: its weakest part, and a middling one."""

    model: str
    key: str
    leaf: str
    part: str
    weakest: float  # the size of the weakest part: its norm, or its magnitude
    caught: float  # the smallest share of itself by which that may be off and is caught
    middling: float  # the same of the middling part


def shares(leaf: str, value: Tensor, tolerance: Tolerance) -> tuple[Tensor, Tensor]:
    """Sizes and smallest shares caught, one a part of the leaf; parts that are 0 are left out."""
    value = torch.as_tensor(value, dtype=torch.float64)
    size, share = (
        value.abs(),
        tolerance.allowed(value) / value.abs(),
    )  # a part is caught by its element that is caught first
    if leaf in ROWS:
        size, share = value.norm(dim=-1), share.amin(dim=-1)
    elif leaf.endswith("logits"):
        size, share = value.norm(), share.amin()
    kept = size.flatten() > 0
    return size.flatten()[kept], share.flatten()[kept]


def rows_of(rig: Rig) -> Iterator[Row]:
    """One row a numeric leaf, trials folded."""
    tolerances = Tolerances.read(None, (), rig.lm.dtype, rig.lm.device.type, rig.noise)
    for key in CHECK_KEYS:
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for leaf, value in rig.artifacts[key].items():
            name = leaf.rpartition("/")[2]
            if is_number(value) and name != "scores":
                number: Any = value
                found.setdefault(name, []).append(shares(name, number, tolerances.of(key)(leaf)))
        for name, pairs in found.items():
            size, share = (torch.cat(side) for side in zip(*pairs, strict=True))
            weakest = int(size.argmin())
            part = ROWS.get(name, "logits of a trial" if name.endswith("logits") else "number")
            yield Row(rig.lm.name, key, name, part, float(size[weakest]), float(share[weakest]), float(share.median()))


def rows() -> list[Row]:
    """Of each shipped model, against its golden of profile src."""
    return [row for rig in shipped_rigs() if rig.settings.reference_profile == "src" for row in rows_of(rig)]


def page(rows: Sequence[Row]) -> str:
    return environment().get_template("sensitivity.md.j2").render(rows=rows)


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), page(rows()))
