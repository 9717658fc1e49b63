"""Where an artifact differs: one example of every kind, counts under each index of an axis, and maps of the error.

All of it is bounded: kinds, indices and rows of a map have a limit each, and what is left out is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fvcore.gates import Finding, Verdict
from pytest_fvparity.parity.refinements import known_by, named

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.artifacts import Artifact
    from fvcore.compare import AxesOf, Tolerance
    from pytest_fvparity.parity.checks import ParityRun

MOST = 12  # kinds, and indices of an axis
LONGEST = 128  # rows and columns of a map
COUNTED = ("trial", "prompt", "layer", "head", "slot", "rank")
MAPS = (("layer", "head"), ("slot", "layer"))

Labels = Mapping[str, Mapping[int, str]]
"""Axis -> index -> what it is known by."""


@dataclass
class Kind:
    """The leaves of one name: how many of their values are wrong, and the one that is off by most."""

    leaf: str
    count: int = 0
    compared: int = 0
    example: Finding | None = None

    def add(self, verdict: Verdict, example: Finding | None) -> None:
        self.count += verdict.mismatch_count
        self.compared += verdict.compared
        if example and (self.example is None or _size(example) > _size(self.example)):
            self.example = example


@dataclass
class Located:
    """What is gathered leaf by leaf."""

    labels: Labels
    kinds: dict[str, Kind] = field(default_factory=dict)
    counts: dict[str, Counter[int | str]] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    maps: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def count(self, axis: str, counted: Mapping[int | str, int], n: int) -> None:
        self.counts.setdefault(axis, Counter()).update(counted)
        self.n[axis] = max(n, self.n.get(axis, 0))

    def index(self, axis: str, at: int) -> int | str:
        """A trial is known by its key alone."""
        return self.labels.get(axis, {}).get(at, at) if axis == "trial" else at

    def details(self) -> dict[str, Any]:
        """Plain values alone, the axis with the fewest wrong indices first: that one tells most."""
        wrong = [vars(kind) for kind in self.kinds.values() if kind.count]
        axes = [_axis(axis, self.counts[axis], self.n[axis], self.labels) for axis in COUNTED if axis in self.counts]
        maps = [
            {**one, "labels": [self.labels.get(one["rows"], {}).get(row, "") for row in one["row_indices"]]}
            for one in self.maps.values()
        ]
        kinds = sorted(wrong, key=lambda kind: -kind["count"])
        return {"kinds": kinds[:MOST], "n_kinds": len(kinds), "axes": axes, "maps": maps}


def placed(run: ParityRun, key: str, verdict: Verdict, expected: Artifact, actual: Artifact, axes: AxesOf) -> Verdict:
    """A failed verdict with the places of its differences: `details["where"]`."""
    tied = frozenset(f.where.partition("[")[0] for f in verdict.findings if f.message.startswith("tie"))
    held = partial(run.part.held, key, axes=axes)

    def shown(example: Finding) -> Finding:
        (there,) = run.part.placed(key, Verdict((example,)), axes).findings
        return named(there, known)

    try:
        known = known_by(run, key)
        labels = {axis: {at: _label(names) for at, names in of.items()} for axis, of in known.items()}
        found = located(expected, actual, run.tolerances.of(key), axes, labels, held, tied)
    except Exception as error:  # an answer of any form may come here, and its verdict stands without its places
        note = f"the places of the differences were not found ({type(error).__name__}: {error})"
        return replace(verdict, findings=(*verdict.findings, Finding(key, note, blocking=False)))
    for kind in found["kinds"]:
        kind["example"] = asdict(shown(kind["example"])) if kind["example"] else None
    return replace(verdict, details={**verdict.details, "where": found})


def _label(names: Mapping[str, int | str]) -> str:
    match names:
        case {"slot_label": label}:
            return str(label)
        case {"trial_id": trial_id, "trial_idx": trial_idx}:
            return f"{trial_id}:{trial_idx}"
    return ", ".join(f"{name} {value}" for name, value in names.items())


def located(
    expected: Artifact,
    actual: Artifact,
    tolerance_of: Callable[[str], Tolerance],
    axes: AxesOf,
    labels: Labels,
    held: Callable[[str], tuple[str, Sequence[int]]] = lambda leaf: ("", ()),
    tied: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Of everything that differs. `held` says which indices of a leaf's axis are compared, `tied` which leaves do not count."""
    import torch

    from fvcore.artifacts import trial_of
    from fvcore.compare import beside, compare, largest_wrong

    found = Located(labels)
    n_trials = len({trial for leaf in expected if (trial := trial_of(leaf))})
    for leaf in (leaf for leaf in {**expected, **actual} if leaf not in tied):
        one, other = ({leaf: side[leaf]} if leaf in side else {} for side in (expected, actual))
        verdict, example = compare(one, other, tolerance_of, axes, most=1), None
        if not verdict.passed:
            example = verdict.first_mismatch
            want, have = expected.get(leaf), actual.get(leaf)
            if isinstance(want, torch.Tensor) and isinstance(have, torch.Tensor) and "largest" in verdict.details:
                example = largest_wrong(leaf, want, have, tolerance_of(leaf), axes(leaf))
                *_, difference, wrong = beside(want, have, tolerance_of(leaf))
                if len(names := axes(leaf)[: wrong.ndim]) == wrong.ndim:
                    _of_tensor(found, leaf, wrong, difference, names, held(leaf))
            if trial := trial_of(leaf):
                found.count("trial", {trial: verdict.mismatch_count}, n_trials)
            if len(parts := leaf.split("/")) == 3:
                found.count("prompt", {parts[1]: verdict.mismatch_count}, 0)
        name = leaf.rpartition("/")[2]
        found.kinds.setdefault(name, Kind(name)).add(verdict, example)
    return found.details()


Held = tuple[str, Sequence[int]]
"""Of a sliced leaf its axis and the indices that are held; no name where all of it is."""


def _of_tensor(found: Located, leaf: str, wrong: Tensor, difference: Tensor, names: Sequence[str], held: Held) -> None:
    """Counts along the axes that have a name, and maps that no earlier leaf gave."""
    for at, axis in enumerate(names):
        if axis in COUNTED:
            counts = _over(wrong.long(), (at,)).tolist()
            places = zip(_placed(held, axis, range(len(counts))), counts, strict=True)
            found.count(axis, {found.index(axis, place): n for place, n in places if n}, len(counts))
    for pair in (pair for pair in MAPS if pair not in found.maps and {*pair} <= {*names}):
        both = [names.index(axis) for axis in pair]
        outside, largest = _over(wrong.long(), both), _over(difference, both)
        rows, columns = (_worst(outside.sum(dim=1 - dim)) for dim in (0, 1))
        found.maps[pair] = {
            "leaf": leaf,
            "rows": pair[0],
            "columns": pair[1],
            "row_indices": _placed(held, pair[0], rows),
            "column_indices": _placed(held, pair[1], columns),
            "outside": outside[rows][:, columns].tolist(),
            "largest": [[float(f"{x:.3g}") for x in row] for row in largest[rows][:, columns].tolist()],
        }


def _placed(held: Held, axis: str, indices: Iterable[int]) -> list[int]:
    """Indices of what is compared, as those of the whole."""
    return [held[1][index] if held[0] == axis else index for index in indices]


def _over(values: Tensor, kept: Sequence[int]) -> Tensor:
    """Counts summed, differences at their largest, over all axes but these, in their order."""
    front = values.movedim(list(kept), list(range(len(kept))))
    rows = front.reshape(*front.shape[: len(kept)], -1)
    return rows.amax(dim=-1) if rows.is_floating_point() else rows.sum(dim=-1)


def _worst(counts: Tensor) -> list[int]:
    """Of an axis all indices, or those with most wrong, in their order."""
    return sorted(counts.topk(min(LONGEST, len(counts))).indices.tolist())


def _axis(axis: str, counts: Counter[int | str], n: int, labels: Labels) -> dict[str, Any]:
    known = labels.get(axis, {})
    places = [
        {"index": at, "label": known.get(at, "") if isinstance(at, int) else "", "count": count}
        for at, count in counts.most_common(MOST)
    ]
    return {"axis": axis, "n": n or len(counts), "n_wrong": len(counts), "places": places}


def _size(finding: Finding) -> float:
    """What has no number is no question of size: the first of those stays."""
    return float("inf") if finding.abs_diff is None else finding.abs_diff
