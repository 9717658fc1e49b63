"""Pictures as bytes: a figure of a size is painted in one style and saved, and equal pictures are equal bytes."""

import io
from collections.abc import Callable
from typing import Any

from fvcore import palette
from fvcore.page import DENSITY

Paint = Callable[[Any], None]

DPI = 96 * DENSITY
"""Of a page's pictures: an inch is 96 of its pixels, and 8 points are 10.7 of them."""
NARROW = 3.6
"""Inches: as wide as a phone, so that nothing shrinks; two stand side by side on a desk."""

INK = palette.LIGHT["ink"]
STYLE: Any = {
    "text.parse_math": False,  # a dollar sign in a word is a dollar sign
    "font.size": 8,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {list(palette.SERIES)})",
    **{f"{part}color": INK for part in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")},
}


def png(paint: Paint, size: tuple[float, float], dpi: int = DPI) -> bytes:
    """What `paint` draws on a matplotlib Figure of `size` inches, with `dpi` dots an inch."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        paint(figure)
        # Without the name of the program that drew it: it changes with every release of matplotlib.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
