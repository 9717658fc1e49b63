"""Compare two artifacts in the order a person would ask: names, type, dtype, shape, values.

Nothing is coerced: not shape, not dtype, and not the device beyond copying to the CPU to subtract. NaN equals
only NaN. Everything is counted, the first `MAX_FINDINGS` disagreements are kept, in the artifact's own order.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvcore.artifacts import Artifact, Leaf, is_dense, trial_of
from fvcore.formats import parting
from fvcore.gates import Finding, Verdict, merge

MAX_FINDINGS = 100
MAX_ERROR_TABLES = 10
ENDED = "nothing: the list ends before it"
TEXT_AROUND = 30  # characters shown on either side of the place where two texts part
ZERO, NOT_FINITE = -999, 999  # decades of what has none
TRIAL_KEY = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`|actual - expected| <= max(atol, of_max * max|expected|, of_norm * ||expected||) + rtol * |expected|`.

    `of_max` is relative to the largest magnitude in the leaf, `of_norm` to the norm along its last axis.
    `rule` says where the numbers come from and travels into the report. With `measured`, the larger bound of the two
    counts.
    """

    rtol: float = 0.0
    atol: float = 0.0
    of_max: float = 0.0
    of_norm: float = 0.0
    rule: str = "exact"
    measured: Tolerance | None = None

    def allowed(self, expected: Tensor) -> Tensor:
        """The bound for every element of `expected` (float64)."""
        if expected.numel() == 0:
            return expected
        # An infinity excuses no difference, neither its own nor its neighbours'.
        size = torch.where(expected.isfinite(), expected.abs(), torch.zeros_like(expected))
        bound = torch.full_like(expected, max(self.atol, self.of_max * float(size.max())))
        if self.of_norm and expected.ndim:
            bound = torch.maximum(bound, self.of_norm * size.norm(dim=-1, keepdim=True))
        bound = bound + self.rtol * size
        return bound if self.measured is None else torch.maximum(bound, self.measured.allowed(expected))

    @property
    def own(self) -> Tolerance:
        """This tolerance without what was measured."""
        return replace(self, measured=None)

    def widened(self, expected: Tensor) -> Tensor:
        """Where the measured bound is the larger one."""
        if self.measured is None:
            return torch.zeros_like(expected, dtype=torch.bool)
        return self.measured.allowed(expected) > self.own.allowed(expected)

    def deciding(self, expected: Tensor, index: tuple[int, ...]) -> Tolerance:
        """The one of the two that gives the bound of an element."""
        return self.measured if self.measured is not None and bool(self.widened(expected)[index]) else self.own

    def __str__(self) -> str:
        parts = {"atol": self.atol, "rtol": self.rtol, "of_max": self.of_max, "of_norm": self.of_norm}
        return ", ".join(f"{name} {value:g}" for name, value in parts.items() if value) or "exact"


EXACT = Tolerance()

AxesOf = Callable[[str], Sequence[str]]


def compare(
    expected: Artifact,
    actual: Artifact,
    tolerance: Tolerance | Callable[[str], Tolerance] = EXACT,
    axes: AxesOf = lambda leaf: (),
    most: int = MAX_FINDINGS,
) -> Verdict:
    """Compare all leaves. `axes(leaf)` names a tensor's axes, so that a coordinate reads `layer 2, head 1`; `most` findings
    are kept.

    By leaf name, trials folded, the details hold `largest`: how large a difference was found, and how large it is beside
    what was allowed there (1.0 is on the limit); and `errors`, of the leaves that fail: their error tables.
    """
    tolerance_of = tolerance if callable(tolerance) else lambda leaf: tolerance
    verdicts, room = list[Verdict](), most
    for leaf, value in expected.items():
        if leaf in actual:
            found = compare_leaf(leaf, value, actual[leaf], tolerance_of(leaf), axes(leaf), room)
        else:
            found = _one(leaf, "missing in the candidate", value, None)
        verdicts.append(found)
        room = max(0, room - len(found.findings))
    verdicts += [_one(leaf, "not in the golden", None, actual[leaf]) for leaf in actual if leaf not in expected]
    verdict = merge(*verdicts)
    measurements: dict[str, float] = {}
    for name in ("max_abs_diff", "max_rel_diff"):
        measured = [v.measurements[name] for v in verdicts if name in v.measurements]
        measurements |= {name: _largest(*measured)} if measured else {}
    tables = islice(_folded(verdicts, "errors", operator.add).items(), MAX_ERROR_TABLES)
    errors = {name: _rows(counts) for name, counts in tables}
    largest = _folded(verdicts, "largest", lambda one, other: {name: _largest(one[name], other[name]) for name in one})
    details = {"largest": largest, "errors": errors}
    kept = {name: found for name, found in details.items() if found}
    return Verdict(verdict.findings[:most], verdict.compared, verdict.mismatch_count, measurements, kept)


def unchanged(before: Artifact, after: Artifact) -> bool:
    """Whether all leaves are surely the same, told quickly; where not, `compare` says whether and where they differ."""
    return before.keys() == after.keys() and all(_surely(value, after[leaf]) for leaf, value in before.items())


def _surely(one: Leaf, other: Leaf) -> bool:
    if is_dense(one) and is_dense(other):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    return not isinstance(one, Tensor) and _same(one, other)


def _folded(verdicts: Sequence[Verdict], detail: str, together: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Leaf name -> a detail of the leaves of that name, over all trials."""
    folded: dict[str, Any] = {}
    for verdict in verdicts:
        for leaf, value in verdict.details.get(detail, {}).items():
            name = leaf.rpartition("/")[2]
            folded[name] = together(folded[name], value) if name in folded else value
    return folded


def _largest(*values: float) -> float:
    """A NaN, where there is one."""
    return float(np.max(values))


def compare_leaf(
    leaf: str, expected: Leaf, actual: Leaf, tolerance: Tolerance, axes: Sequence[str], most: int = MAX_FINDINGS
) -> Verdict:
    """One leaf. Of a tensor's values that differ all are counted, and the first `most` are findings."""
    if type(expected) is not type(actual):
        names = type(expected).__name__, type(actual).__name__
        return _one(leaf, f"type differs: expected {names[0]}, actual {names[1]}", expected, actual)
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        return _compare_tensors(leaf, expected, actual, tolerance, axes, most)
    if isinstance(expected, float) and isinstance(actual, float):
        scalar = torch.tensor(expected, dtype=torch.float64), torch.tensor(actual, dtype=torch.float64)
        return _compare_tensors(leaf, *scalar, tolerance, (), most)
    if isinstance(expected, list) and isinstance(actual, list):
        return _compare_lists(leaf, expected, actual)
    if isinstance(expected, str) and isinstance(actual, str) and expected != actual:
        return _compare_texts(leaf, expected, actual)
    return Verdict(compared=1) if expected == actual else _one(leaf, "differs", expected, actual)


def _compare_tensors(
    leaf: str, expected: Tensor, actual: Tensor, tolerance: Tolerance, axes: Sequence[str], most: int
) -> Verdict:
    kinds = [{"dtype": str(side.dtype), "shape": list(side.shape)} for side in (expected, actual)]
    for name, wanted in kinds[0].items():
        if wanted != (found := kinds[1][name]):
            return _one(leaf, f"{name} differs: expected {wanted}, actual {found}", wanted, found, expected.numel())
    want, have, difference, wrong = beside(expected, actual, tolerance)
    allowed = tolerance.allowed(want)
    relative = (difference / want.abs())[(want != 0) & difference.isfinite() & want.isfinite()]
    largest = {"max_abs_diff": _most(difference), "max_rel_diff": _most(relative)}
    used = torch.where(difference == 0, difference, difference / allowed)  # infinite where nothing is allowed
    measured = {"max_abs_diff": largest["max_abs_diff"], "used": _most(used)}
    details: dict[str, Any] = {"largest": {leaf: measured}}
    if (n_wrong := int(wrong.sum())) and want.ndim:  # a single number says all there is to say by itself
        details["errors"] = {leaf: error_table(want, torch.where(wrong, difference, 0.0))}
    shown = wrong.nonzero()[:most].tolist()
    would_pass = _would_pass(difference, want, tolerance) if shown else ""
    findings = (_element(leaf, tuple(index), want, have, difference, tolerance, would_pass, axes) for index in shown)
    return Verdict(tuple(findings), want.numel(), n_wrong, largest, details)


def beside(expected: Tensor, actual: Tensor, tolerance: Tolerance) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two tensors of one shape in float64 on the CPU, by how much they differ, and where that is more than is allowed."""
    # float64 holds every float32 and every half exactly, so the comparison adds no rounding of its own.
    want, have = expected.detach().double().cpu(), actual.detach().double().cpu()
    same, off = (want == have) | (want.isnan() & have.isnan()), (have - want).abs()  # inf == inf is no difference
    if not expected.is_floating_point():  # not every int64: of which two that differ are 1 apart at least
        same, off = expected.detach().cpu() == actual.detach().cpu(), off.clamp(min=1)
    difference = torch.where(same, torch.zeros_like(want), off)
    return want, have, difference, ~(difference <= tolerance.allowed(want))  # a NaN difference is wrong


def largest_wrong(
    leaf: str, expected: Tensor, actual: Tensor, tolerance: Tolerance, axes: Sequence[str]
) -> Finding | None:
    """Of two tensors of one shape the element that is outside its tolerance by the largest difference, if one is."""
    want, have, difference, wrong = beside(expected, actual, tolerance)
    if not wrong.any():
        return None
    size = torch.where(wrong, difference.nan_to_num(nan=math.inf, posinf=math.inf), torch.full_like(difference, -1.0))
    index = tuple(int(i) for i in torch.unravel_index(size.argmax(), size.shape))
    return _element(leaf, index, want, have, difference, tolerance, _would_pass(difference, want, tolerance), axes)


def _most(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _would_pass(difference: Tensor, want: Tensor, tolerance: Tolerance) -> str:
    """The smallest atol that would have passed, rtol as it is, in words."""
    if not bool((difference.isfinite() & want.isfinite()).all()):
        return "no tolerance would have passed"
    return f"atol {float((difference - tolerance.rtol * want.abs()).max()):.3g} would have passed"


def error_table(want: Tensor, difference: Tensor) -> Counter[tuple[int, int]]:
    """How many elements have which magnitude and which error, by decade.

    Small numbers that are far off and large ones that are a little off are two different stories. A zero has no decade:
    it stands under `ZERO`; what is not finite stands under `NOT_FINITE`.
    """

    def decades(values: Tensor) -> Tensor:
        found = values.abs().clamp(min=1e-300).log10().floor()
        found = torch.where(values == 0, torch.full_like(found, ZERO), found)
        return torch.where(values.isfinite(), found, torch.full_like(found, NOT_FINITE)).flatten().long()

    # A pair as one whole number: sorting pairs of a large tensor would take many times as long.
    width = 2 * NOT_FINITE + 1
    coded = decades(want) * width + decades(difference) + NOT_FINITE
    pairs, counts = torch.unique(coded, return_counts=True)
    decoded = [(pair // width, pair % width - NOT_FINITE) for pair in pairs.tolist()]
    return Counter(dict(zip(decoded, counts.tolist(), strict=True)))


def _rows(counts: Counter[tuple[int, int]]) -> list[dict[str, int]]:
    """One row a pair of decades that occurs."""
    return [{"magnitude": at[0], "error": at[1], "count": count} for at, count in sorted(counts.items())]


def _element(
    leaf: str,
    index: tuple[int, ...],
    want: Tensor,
    have: Tensor,
    difference: Tensor,
    tolerance: Tolerance,
    would_pass: str,
    axes: Sequence[str],
) -> Finding:
    expected, actual, off = float(want[index]), float(have[index]), float(difference[index])
    names = axes[: len(index)] if len(axes) >= len(index) else [f"axis{i}" for i in range(len(index))]
    coordinate = dict(zip(names, index, strict=True))
    decided = tolerance.deciding(want, index)
    place = f"[{', '.join(f'{name} {i}' for name, i in coordinate.items())}]" if coordinate else ""
    return Finding(
        where=f"{leaf}{place}",
        message=f"differs by {off:.3g} (allowed: {decided}; {decided.rule}; {would_pass})",
        expected=_jsonable(expected),
        actual=_jsonable(actual),
        coordinate=coordinate | _trial_coordinate(leaf),
        abs_diff=off if math.isfinite(off) else None,
        rel_diff=off / abs(expected) if expected and math.isfinite(off) and math.isfinite(expected) else None,
    )


def _compare_lists(leaf: str, expected: list[Any], actual: list[Any]) -> Verdict:
    """Element by element and type by type: 1, True and 1.0 are three values. Every difference counts."""
    n_elements = _n_elements(expected)
    if _same(expected, actual):
        return Verdict(compared=n_elements)
    n_changes = len(changes(expected, actual))
    position = next((i for i, pair in enumerate(zip(expected, actual, strict=False)) if not _same(*pair)), None)
    first = min(len(expected), len(actual)) if position is None else position
    if len(expected) != len(actual):
        message = f"position {first}; length {len(expected)} expected, {len(actual)} actual"
    else:
        message = f"position {first}; {n_changes} difference(s) in all"
    pair = [side[first] if first < len(side) else ENDED for side in (expected, actual)]
    n_wrong = max(1, n_changes)
    return Verdict((_parted(leaf, first, message, *pair),), max(n_elements, n_wrong), n_wrong)


def _parted(leaf: str, first: int, message: str, expected: Any, actual: Any) -> Finding:
    at = {"position": first} | _trial_coordinate(leaf)
    return Finding(f"{leaf}[{first}]", f"differs first at {message}", expected, actual, at)


def changes(before: Any, after: Any, *, separator: str = ".") -> dict[str, tuple[Any, Any]]:
    """Where two nested values differ, in value or in type: path -> (before, after); None stands for nothing there.

    A path is `noise.fv_vector.norm`; a key that holds the separator itself, such as a file's name, stands in quotes.
    """

    def path(keys: Iterable[Any]) -> str:
        return separator.join(f'"{key}"' if separator in str(key) else str(key) for key in keys)

    # DeepDiff takes as long to import as a model to load, where pandas is installed.
    if _same(before, after):
        return {}
    if _flat(before, after):
        return {path([name]): (before[name], after[name]) for name in before if not _same(before[name], after[name])}
    from deepdiff import DeepDiff
    from deepdiff.helper import notpresent

    def given(side: Any) -> Any:
        return None if side is notpresent else side

    # By position: aligned, one value put in front would count as one difference, and every id would still be wrong.
    rows = [row for group in DeepDiff(before, after, view="tree", zip_ordered_iterables=True).values() for row in group]
    return {path(row.path(output_format="list")): (given(row.t1), given(row.t2)) for row in rows}


def _flat(*sides: Any) -> bool:
    """Whether these are mappings of one set of names, and what differs in them is plain."""
    if not all(isinstance(side, dict) for side in sides) or len({frozenset(side) for side in sides}) > 1:
        return False
    one, other = sides
    differing = [value for name in one if not _same(one[name], other[name]) for value in (one[name], other[name])]
    return all(isinstance(value, str | int | float | None) for value in differing)


def _compare_texts(leaf: str, expected: str, actual: str) -> Verdict:
    """Two texts that differ: where, and what stands around it."""
    first = parting(expected, actual)
    message = f"character {first}; length {len(expected)} expected, {len(actual)} actual"
    finding = _parted(leaf, first, message, _around(expected, first), _around(actual, first))
    return Verdict((finding,), compared=1, mismatch_count=1)


def _around(text: str, place: int) -> str:
    """What stands around a place in a text; dots where it is cut."""
    first, last = max(0, place - TEXT_AROUND), place + TEXT_AROUND
    return ("..." if first else "") + text[first:last] + ("..." if last < len(text) else "")


def _n_elements(value: Any) -> int:
    """How many values a nested list holds; an empty list is one statement."""
    if not isinstance(value, list):
        return 1
    lists = [item for item in value if isinstance(item, list)]
    return max(1, len(value) - len(lists) + sum(map(_n_elements, lists)))


def _same(expected: Any, actual: Any) -> bool:
    """Equal in value and in type, all the way down."""
    return type(expected) is type(actual) and repr(expected) == repr(actual)


def _one(leaf: str, message: str, expected: Any, actual: Any, n_values: int | None = None) -> Verdict:
    """A leaf that as a whole is not what was expected: each of its values counts."""
    finding = Finding(leaf, message, _jsonable(expected), _jsonable(actual), _trial_coordinate(leaf))
    n_wrong = max(1, _n_values(actual if expected is None else expected) if n_values is None else n_values)
    return Verdict((finding,), compared=n_wrong, mismatch_count=n_wrong)


def _n_values(leaf: Any) -> int:
    return leaf.numel() if isinstance(leaf, Tensor) else _n_elements(leaf)


def _trial_coordinate(leaf: str) -> dict[str, int | str]:
    found = TRIAL_KEY.fullmatch(trial_of(leaf) or "")
    return {"trial_id": int(found[1]), "trial_idx": int(found[2])} if found else {}


def _jsonable(value: Any) -> Any:
    """JSON has no NaN and no tensors; both travel as text."""
    if isinstance(value, Tensor):
        return f"tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
