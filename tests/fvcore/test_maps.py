"""Heat maps of pages: every square has its colour and place, and a page does not grow with the number of heads."""

from __future__ import annotations

import base64
import io
import random

from matplotlib.image import imread

from fvcore import maps, page, palette


def drawn(n_rows: int, n_columns: int) -> tuple[list[list[float | str]], str]:
    noise = random.Random(0)
    grid: list[list[float | str]] = [[noise.uniform(-1, 1) for _ in range(n_columns)] for _ in range(n_rows)]
    grid[1][2], grid[0][1] = 7.0, "nan"
    parts = page.environment("fvcore").get_template("parts.html.j2").module
    rows = maps.cells(grid, "layer", "head")
    return grid, str(parts.heat_map(rows, range(n_columns), 7.0, "effects", ringed=[[3, 3]]))  # type: ignore[attr-defined]


def test_a_few_squares_are_drawn_one_by_one() -> None:
    _, small = drawn(4, 5)
    assert small.count('<rect class="cell"') == 20
    assert "<image" not in small
    assert ">?</text>" in small


def test_many_squares_are_one_picture_and_the_largest_say_what_they_are() -> None:
    grid, large = drawn(100, 120)
    assert len(large) < len(drawn(20, 20)[1]) * 2
    assert "layer 1, head 2: 7.0" in large
    assert "layer 3, head 3: " in large  # in a ring
    assert "12,000 squares" in large
    png = base64.b64decode(large.partition("base64,")[2].partition('"')[0])
    found = (imread(io.BytesIO(png)) * 255).round().astype(int).tolist()
    assert (len(found), len(found[0])) == (100, 120)
    for r, c in ((0, 0), (1, 2), (57, 119), (99, 0)):
        assert found[99 - r][c][:3] == list(palette.channels(palette.colour(grid[r][c], 7.0)))
    assert found[99][1][:3] == list(palette.channels(palette.RANDOM))
