"""Heat maps of a page: squares that say what they are when pointed at, and one picture of all where they are many.

A square takes about 200 bytes of a page, and a model of a hundred layers has ten thousand heads.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from fvcore import palette

MOST = 1100
"""Squares of a map that are drawn one by one."""

NAMED = 32
"""Squares that say what they are where there are more."""

WHITE = (255, 255, 255)

Cell: TypeAlias = tuple[float | str, float | str, str]
"""Its value, a word where it is no finite number; what is coloured; what is said of it."""

Rows: TypeAlias = Sequence[tuple[object, Sequence[Cell]]]
"""The label and the cells of each, the lowest first; a row may be shorter than others."""


def cells(
    grid: Sequence[Sequence[float | str]], row: str, column: str, number: Callable[[float | str], str] = str
) -> Rows:
    """A grid of values as rows of a map; `number` writes them."""
    return [
        (r, [(value, value, f"{row} {r}, {column} {c}: {number(value)}") for c, value in enumerate(values)])
        for r, values in enumerate(grid)
    ]


def are_many(rows: Rows) -> bool:
    return sum(len(row) for _, row in rows) > MOST


def squares(rows: Rows, ringed: Collection[Sequence[int]] = ()) -> list[tuple[int, int, Cell]]:
    """Those that are drawn one by one, by row and column: of many those in rings, and the largest."""
    every = [(r, c, cell) for r, (_, row) in enumerate(rows) for c, cell in enumerate(row)]
    if not are_many(rows):
        return every
    largest = sorted(every, key=lambda one: -_size(one[2]))[:NAMED]
    named = {(r, c) for r, c, _ in largest} | {(r, c) for r, c in ringed}
    return [one for one in every if one[:2] in named]


def _size(cell: Cell) -> float:
    return math.inf if isinstance(cell[1], str) else abs(cell[1])


def picture(rows: Rows, scale: float) -> str:
    """All squares of a map as the address of a picture, a dot each; what is no finite number is grey."""
    import numpy as np
    from matplotlib.image import imsave

    width = max((len(row) for _, row in rows), default=0)
    lines = [[_dot(shown, scale) for _, shown, _ in row] + [WHITE] * (width - len(row)) for _, row in rows]
    buffer = io.BytesIO()
    imsave(buffer, np.array(lines[::-1], np.uint8), format="png", metadata={"Software": "fvparity"})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _dot(value: float | str, scale: float) -> tuple[int, int, int]:
    return palette.channels(palette.RANDOM if isinstance(value, str) else palette.colour(value, scale))
