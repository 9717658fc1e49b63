"""Pictures as bytes: a figure of a size is painted and saved, and equal pictures are equal bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

Paint = Callable[[Any], None]


def png(paint: Paint, size: tuple[float, float], dpi: int) -> bytes:
    """What `paint` draws on a matplotlib Figure of `size` inches, with `dpi` dots an inch."""
    from matplotlib.figure import Figure

    figure, buffer = Figure(figsize=size, dpi=dpi, layout="constrained"), io.BytesIO()
    paint(figure)
    # Without the name of the program that drew it: it changes with every release of matplotlib.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG as the `src` of an image, for pages that are whole in themselves."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def whole_numbers(axis: Any, at_most: int = 16) -> None:
    """Ticks at whole numbers alone, where layers or heads are counted."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=at_most, min_n_ticks=1))


def banded_line(
    axes: Any, at: Sequence[float], means: Sequence[float], lows: Sequence[Any], highs: Sequence[Any], **style: Any
) -> None:
    """A line with its interval shaded, where every point has one."""
    (line,) = axes.plot(at, means, marker="o", **style)
    if None not in (*lows, *highs):
        axes.fill_between(at, lows, highs, color=line.get_color(), alpha=0.18)


def spans(heights: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None]) -> list[list[float]]:
    """[below, above]: how far an interval reaches from each bar's end, as matplotlib takes it; 0 where there is none."""
    below = [0.0 if low is None else max(0.0, height - low) for height, low in zip(heights, lows, strict=True)]
    above = [0.0 if high is None else max(0.0, high - height) for height, high in zip(heights, highs, strict=True)]
    return [below, above]
