"""Every colour of pages and pictures, one table: roles in light and in dark, a series' lines, and the scale around zero.

Text on `paper` and on `soft` has a contrast of at least 4.5 (WCAG AA), lines of a picture 3; roles and series are told
apart by all kinds of colour vision, and no colour says what no word says. `tests/test_eyes.py` computes all of it.
"""

import math
from typing import Any

LIGHT = {
    "paper": "#ffffff",
    "soft": "#f3f5f7",
    "line": "#cfd6dd",
    "ink": "#1b1f24",
    "quiet": "#57606a",
    "link": "#0a58a8",
    "good": "#006b57",
    "bad": "#b3261e",
    "wait": "#6b46b8",
    "plus": "#bf4a00",
    "minus": "#1a66ab",
}
DARK = {
    "paper": "#12161b",
    "soft": "#1c2229",
    "line": "#3a424c",
    "ink": "#e4e8ec",
    "quiet": "#a3adb8",
    "link": "#7db8ff",
    "good": "#3fc9c0",
    "bad": "#ff7a6b",
    "wait": "#c4a8ff",
    "plus": "#f5924a",
    "minus": "#74b4f7",
}

VECTOR, RANDOM, SECOND, THIRD, FOURTH = "#1a66ab", "#8c9199", "#bf4a00", "#49a26c", "#450269"
SERIES = (VECTOR, SECOND, FOURTH, THIRD, RANDOM)
"""Of pictures, which are drawn on white: a vector, random heads beside it, and what else there is."""

NEGATIVE = ("#ffffff", "#b5d3ec", "#5e9ccf", "#1a66ab", "#0b3a66")
POSITIVE = ("#ffffff", "#fbcfa8", "#f0934a", "#bf4a00", "#6e2a00")
"""From zero to the largest magnitude, in equal steps."""

SHADE = 0.5
"""The most of `plus` or `minus` that stands behind text."""


def channels(colour: str) -> tuple[int, int, int]:
    """#rrggbb -> red, green and blue, 0 to 255."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def around_zero(share: float) -> str:
    """A colour for -1 to 1, beyond as at the ends: blue below zero, white at it, orange above."""
    steps = POSITIVE if share > 0 else NEGATIVE
    at = min(1.0, abs(share)) * (len(steps) - 1)
    low = min(int(at), len(steps) - 2)
    pairs = zip(channels(steps[low]), channels(steps[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (at - low)):02x}" for a, b in pairs)


def colour(value: float | str, largest: float) -> str:
    """An effect's colour on the scale that ends at `largest`, by the root of its share: a quarter of it is halfway.

    What is not finite is a word, and has none.
    """
    if isinstance(value, str):
        return "none"
    share = value / largest if largest else 0.0
    return around_zero(math.copysign(math.sqrt(abs(share)), share))


def colour_map(from_zero: bool = False) -> Any:
    """The same scale for matplotlib; `from_zero`: its blue half, for what has no sign."""
    from matplotlib.colors import LinearSegmentedColormap

    steps = NEGATIVE if from_zero else (*reversed(NEGATIVE), *POSITIVE[1:])
    return LinearSegmentedColormap.from_list("around zero", steps)
