"""Drawings: arrays and a matplotlib axis in, the axis out. Sizes, files and titles are whose picture it is."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_TICKS = 24


def whole_numbers(axis: Any, at_most: int = 16) -> None:
    """Ticks at whole numbers alone, where layers or heads are counted."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=at_most, min_n_ticks=1))


def heat_map(
    axes: Any, grid: Any, outer: float, linear: float, circled: Sequence[tuple[int, int]] = (), label: str = ""
) -> Any:
    """Values of (layer, head), layer 0 at the bottom; some heads circled; `label` says what the values are.

    Colours grow linearly up to `linear`, like a logarithm up to `outer`, and no more beyond; zero is their middle.
    """
    from matplotlib.colors import SymLogNorm

    norm = SymLogNorm(linthresh=linear, vmin=-outer, vmax=outer, base=10)
    image = axes.imshow(
        np.asarray(grid), aspect="auto", origin="lower", cmap="coolwarm", norm=norm, interpolation="nearest"
    )
    at = [head for _, head in circled], [layer for layer, _ in circled]
    ring = {"s": 110, "facecolors": "none"}
    axes.scatter(*at, **ring, edgecolors="black", linewidths=2.6)
    axes.scatter(*at, **ring, edgecolors="white", linewidths=1.4, label=f"top {len(circled)}")
    axes.set(xlabel="head", ylabel="layer")
    whole_numbers(axes.xaxis, MOST_TICKS)
    whole_numbers(axes.yaxis, MOST_TICKS)
    axes.figure.colorbar(image, ax=axes, label=label)
    return axes


def banded_line(
    axes: Any,
    at: Sequence[float],
    means: Sequence[float],
    lows: Sequence[Any],
    highs: Sequence[Any],
    shade: float = 0.18,
    outlined: bool = True,
    **style: Any,
) -> Any:
    """A line with its interval shaded, where every point has one; `outlined`: with a thin edge."""
    (line,) = axes.plot(at, means, marker="o", **style)
    if None not in (*lows, *highs):
        axes.fill_between(at, lows, highs, alpha=shade, **{"color" if outlined else "facecolor": line.get_color()})
    return axes


def interval_bars(
    axes: Any,
    labels: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    colours: Sequence[str],
) -> Any:
    """A horizontal bar a value with its interval, the first at the top."""
    axes.barh(range(len(values)), values, xerr=spans(values, lows, highs), capsize=2, height=0.7, color=list(colours))
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    return axes


def spans(heights: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None]) -> list[list[float]]:
    """[below, above]: how far an interval reaches from each bar's end, as matplotlib takes it; 0 where there is none."""
    below = [0.0 if low is None else max(0.0, height - low) for height, low in zip(heights, lows, strict=True)]
    above = [0.0 if high is None else max(0.0, high - height) for height, high in zip(heights, highs, strict=True)]
    return [below, above]
