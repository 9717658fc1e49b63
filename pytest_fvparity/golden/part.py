"""A golden may hold a part of a recording: then both sides are cut to that part, and what is left out is said.

Of a sliced leaf the golden has some indices along one axis; of an incomplete key it knows some leaves and not which
others there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fvcore.gates import Finding, Verdict
from pytest_fvparity.golden.manifest import Slice

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.artifacts import Artifact, Leaf
    from fvcore.compare import AxesOf

NOT_COMPARED = "not compared: "
"""How the warning of a key begins of which a part was not compared; such a run is PARTIAL at best."""


@dataclass(frozen=True)
class Part:
    """What of a recording is held: check key -> leaf -> slice, and the keys whose leaves are not all known."""

    slices: Mapping[str, Mapping[str, Slice]] = field(default_factory=dict)
    incomplete: Collection[str] = ()

    def whole(self, key: str) -> bool:
        """Whether every leaf of a key is held, and all of it."""
        return key not in self.incomplete and not self.slices.get(key)

    def cut(self, key: str, expected: Artifact, actual: Artifact, axes: AxesOf) -> tuple[Artifact, Artifact, str]:
        """Both sides without what is not held, and what that is in words. A tensor of another shape than the recorded one
        is left to fail."""
        from fvcore.artifacts import tensor_leaf

        if self.whole(key):
            return expected, actual, ""
        want, have, left_out = dict(expected), dict(actual), dict[str, None]()
        if key in self.incomplete:
            left_out |= dict.fromkeys(leaf.rpartition("/")[2] for leaf in have if leaf not in want)
            have = {leaf: value for leaf, value in have.items() if leaf in want}
        for leaf, piece in self.slices.get(key, {}).items():
            if leaf not in want or leaf not in have:
                continue
            if list(getattr(have[leaf], "shape", [])) == piece.shape:
                have[leaf] = taken(piece, have[leaf])
            else:
                # Of the recorded shape, to be told apart from one of another; it takes no memory.
                want[leaf] = tensor_leaf(want, leaf).new_zeros(()).expand(piece.shape)
            axis = [*axes(leaf), *["axis"] * len(piece.shape)][piece.axis]
            n_held = f"{len(piece.indices)} of {piece.shape[piece.axis]} {axis}s held"
            left_out[f"{leaf.rpartition('/')[2]} ({n_held})"] = None
        return want, have, ", ".join(left_out)

    def placed(self, key: str, verdict: Verdict, axes: AxesOf) -> Verdict:
        """Findings in a slice, at the places in the whole tensor."""

        def placed(finding: Finding) -> Finding:
            axis, indices = self.held(key, finding.where.partition("[")[0], axes)
            at = finding.coordinate.get(axis)
            if not isinstance(at, int):
                return finding
            where = finding.where.replace(f"{axis} {at}", f"{axis} {indices[at]}")
            return replace(finding, where=where, coordinate={**finding.coordinate, axis: indices[at]})

        return replace(verdict, findings=tuple(map(placed, verdict.findings)))

    def held(self, key: str, leaf: str, axes: AxesOf) -> tuple[str, Sequence[int]]:
        """Of a sliced leaf the axis, and which of its indices are held; no name where all of it is."""
        piece = self.slices.get(key, {}).get(leaf)
        return ("", ()) if piece is None else ("".join(axes(leaf)[piece.axis : piece.axis + 1]), piece.indices)


WHOLE = Part()


def taken(piece: Slice, tensor: Leaf) -> Tensor:
    """The slice of a whole tensor; the axis stays, as long as there are indices."""
    import torch

    assert isinstance(tensor, torch.Tensor)
    return tensor.index_select(piece.axis, torch.tensor(piece.indices, device=tensor.device)).contiguous()
