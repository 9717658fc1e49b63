"""An error table as a grid: how large the expected values are, by how much those outside their tolerance are off, and how
many of them.

1. Magnitudes become rows, the largest first; sizes of error become columns, the smallest first. Every decade between two
   that occur has a place, and beyond `MOST` of them the lowest share one.
2. A cell is *much* where the error is of the same decade as the value, or of a higher one: there nothing is left of the
   value, whatever the tolerance. Elsewhere it is a little off.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 10  # decades with a place of their own, on either side

# The decades of what has none are those of fvcore.compare, which imports torch: a rendering does not.
ZERO, NOT_FINITE = -999, 999
BELOW = ZERO + 1

Counts = Sequence[Mapping[str, int]]
"""Rows of an error table: `magnitude`, `error` (decades) and `count`."""


@dataclass(frozen=True)
class GridCell:
    """`shade` is from 0 to 1, by the logarithm of the count: one value stays visible beside a million."""

    count: int
    much: bool
    equal: bool
    shade: float
    title: str


@dataclass(frozen=True)
class Grid:
    """What a template draws, rows by their labels; `sentence` says the same in words."""

    leaf: str
    sentence: str
    columns: tuple[str, ...]
    rows: dict[str, list[GridCell | None]]


def grids(errors: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """The error tables of a check, the worst first: most that is not finite, then most that is off by its own size."""

    def badness(table: Mapping[str, Any]) -> list[float]:
        counts = table["counts"]
        return [-_n(filter(kind, counts)) / max(1, _n(counts)) for kind in (_not_finite, _much, _differs)]

    return [grid(table["leaf"], table["counts"]) for table in sorted(errors, key=badness)]


def grid(leaf: str, counts: Counts) -> Grid:
    rows, columns = (_places(row[side] for row in counts) for side in ("magnitude", "error"))
    found: dict[tuple[int, int], int] = defaultdict(int)
    much = set()
    for row in counts:
        place = _place(row["magnitude"], rows), _place(row["error"], columns)
        found[place] += row["count"]
        much |= {place} if _much(row) else set()
    most = max(found.values(), default=1)

    def cell(row: int, column: int) -> GridCell | None:
        if (n := found.get((row, column), 0)) == 0:
            return None
        off = "within tolerance" if column == ZERO else f"off by {_said(column, columns, *RANGE)}"
        title = f"{n:,} expected {_said(row, rows, *RANGE)}, {off}"
        return GridCell(n, (row, column) in much, column == ZERO, math.log1p(n) / math.log1p(most), title)

    drawn = {_said(row, rows, "0", *LABEL): [cell(row, column) for column in columns] for row in reversed(rows)}
    return Grid(leaf, _sentence(counts), tuple(_said(column, columns, "within", *LABEL) for column in columns), drawn)


def _differs(row: Mapping[str, int]) -> bool:
    return row["error"] != ZERO


def _not_finite(row: Mapping[str, int]) -> bool:
    return row["error"] == NOT_FINITE


def _much(row: Mapping[str, int]) -> bool:
    """Off by the order of the value's own size, or more; what is expected to be 0 has no size."""
    return _differs(row) and row["error"] >= row["magnitude"]


def _n(counts: Iterable[Mapping[str, int]]) -> int:
    return sum(row["count"] for row in counts)


def _sentence(counts: Counts) -> str:
    off = [row for row in counts if _differs(row)]
    lost, much = [row for row in off if _not_finite(row)], [row for row in off if _much(row) and not _not_finite(row)]
    little = [row for row in off if not _much(row)]
    parts = [f"{_n(lost):,} by no finite number"] if lost else []
    if much:
        largest = max(row["magnitude"] for row in much)
        # Where there are larger values that are not off so.
        cut = largest != ZERO and any(row["magnitude"] > largest for row in counts)
        reach = f" (only values below {power(largest + 1)})" if cut else ""
        parts.append(f"{_n(much):,} by about the value itself or more{reach}")
    if little:
        bound = 1 + max(row["error"] - row["magnitude"] for row in little)
        size = f"{power(bound)} of the value" if bound else "the value itself"
        parts.append(f"{'the others' if parts else 'all'} by less than {size}")
    return f"{_n(off):,} of {_n(counts):,} values are outside their tolerance: {', '.join(parts)}"


def power(decade: int) -> str:
    """Ten to a whole number, as people write it."""
    return f"{10.0**decade:.{max(0, -decade)}f}" if -3 <= decade <= 3 else f"1e{decade}"


LABEL = ("not finite", "< {}", "{}")
RANGE = ("0", "no finite number", "less than {}", "{} to {}")


def _places(decades: Iterable[int]) -> list[int]:
    """The places of an axis in order: zero, all lower decades together, each of the others, what is not finite."""
    occurring = set(decades)
    finite = occurring - {ZERO, NOT_FINITE}
    axis = list(range(max(min(finite), max(finite) - MOST + 1), max(finite) + 1)) if finite else []
    lower = [BELOW] if finite and min(finite) < axis[0] else []
    return [*sorted(occurring & {ZERO}), *lower, *axis, *sorted(occurring & {NOT_FINITE})]


def _place(decade: int, places: Sequence[int]) -> int:
    return decade if decade in places else BELOW


def _said(place: int, places: Sequence[int], zero: str, not_finite: str, below: str, decade: str) -> str:
    """A place of an axis, in the words for zero, for no finite number, for all lower decades, and for a decade."""
    if place in (ZERO, NOT_FINITE):
        return zero if place == ZERO else not_finite
    if place == BELOW:
        return below.format(power(next(place for place in places if place > BELOW)))
    return decade.format(power(place), power(place + 1))
