"""What a page shows of a key that has something to say, in words and numbers that are ready to be shown."""

from __future__ import annotations

from typing import Any

from pytest_fvparity.report.report import AxisCount, Check, ErrorMap, Mismatch
from pytest_fvparity.report.story import (
    concerned,
    drilled,
    examples,
    fault,
    measured,
    name_of,
    number,
    pair,
    parts,
    place,
)

MOST = 12  # kinds of differences
FEW_ROWS = 24  # of a map, which is turned where it would be high and narrow


def account(check: Check) -> dict[str, Any]:
    """The earliest failure, or another key that fails or says something."""
    (count, worst), found = parts(check), examples(check)
    return {
        "key": check.key,
        "status": check.status,
        "count": count,
        "worst": worst,
        "probably": check.signature,
        "drilled": drilled(check),
        "fault": fault(check),
        "axes": [(axis.axis, concerned(axis), _spread(axis)) for axis in check.where.axes] if check.where else [],
        "maps": [_drawn(one) for one in check.where.maps] if check.where else [],
        "examples": [_example(*one) for one in found[:MOST]],
        "more": len(found[MOST:]) + (check.where.n_kinds - len(check.where.kinds) if check.where else 0),
        "first": _first(check, found),
    }


def _first(check: Check, shown: list[tuple[str, int | None, Mismatch]]) -> dict[str, Any] | None:
    """The first difference in order, where it is none of the examples."""
    first = check.first_mismatch
    if first is None or not measured(first) or any(row.where == first.where for *_, row in shown):
        return None
    return _example(name_of(first), None, first)


def _example(leaf: str, count: int | None, row: Mismatch) -> dict[str, Any]:
    bare = row.expected is None and row.got is None
    values = ("", "") if bare else pair(row.expected, row.got)
    off = None if bare else row.abs_diff
    message = "" if measured(row) else row.message.partition(" (allowed: ")[0]
    return {"leaf": leaf, "count": count, "place": place(row), "values": values, "off": off, "message": message}


def _spread(axis: AxisCount) -> str:
    """How many values are wrong under which index, unless it is as many under each."""
    counts = {one.count for one in axis.places}
    if len(counts) == 1 < len(axis.places):
        return f"{counts.pop():,} in each{', at most' if axis.n_wrong > len(axis.places) else ''}"
    listed = [f"{one.index}{f' ({one.label})' if one.label else ''}: {one.count:,}" for one in axis.places]
    left = axis.n_wrong - len(listed)
    return ", ".join([*listed, *([f"and {left} more"] if left else [])])


def _drawn(one: ErrorMap) -> dict[str, Any]:
    """A map as it lies on a page: a cell is its value, what of it is coloured, and what is said of it."""
    down, across = (
        (one.rows, one.row_indices, one.labels),
        (one.columns, one.column_indices, [""] * len(one.column_indices)),
    )
    grid = [list(zip(*both, strict=True)) for both in zip(one.largest, one.outside, strict=True)]
    if len(down[1]) > max(2 * len(across[1]), FEW_ROWS):
        down, across, grid = across, down, [list(column) for column in zip(*grid, strict=True)]
    names = [
        [f"{axis} {at}{f' ({label})' if label else ''}" for at, label in zip(*rest, strict=True)]
        for axis, *rest in (down, across)
    ]
    cells = [
        [
            (
                value,
                value if n else 0.0,
                f"{row}, {column}: {f'{n:,} outside, ' if n else ''}largest difference {number(value)}",
            )
            for column, (value, n) in zip(names[1], line, strict=True)
        ]
        for row, line in zip(names[0], grid, strict=True)
    ]
    wrong = [shown for line in cells for _, shown, _ in line if isinstance(shown, float)]
    return {
        **{"leaf": one.leaf, "row": down[0], "column": across[0], "columns": across[1]},
        **{"rows": list(zip(down[1], cells, strict=True)), "scale": max(wrong, default=0.0)},
    }
