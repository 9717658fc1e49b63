"""Drawings: arrays and a matplotlib axis in, the axis out. Sizes, files and titles are whose picture it is.

The first three draw what the stations find; without an axis they make a figure of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fvcore import palette

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.model.model import LanguageModel

MOST_TICKS = 24
OUTER = (1, 99)  # percentiles of the values that are not zero: beyond, colours do not grow


def aie_map(aie: Any, heads: Sequence[Sequence[int]] = (), axes: Any = None) -> Any:
    """Average indirect effects (layer, head), those of some heads ([layer, head], ...) circled."""
    grid = np.asarray(aie, dtype=float)
    circled = [(int(layer), int(head)) for layer, head, *_ in heads]
    return heat_map(_axes(axes, (9, 5)), grid, limit(grid), circled, "average indirect effect")


def layer_curve(values: Any, axes: Any = None, label: str = "log-probability of the answer") -> Any:
    """What an injection behind each layer does: (1 + layer,), the first value without any, as `inject_logits` has them."""
    base, *with_vector = np.asarray(values, dtype=float).reshape(-1).tolist()
    axes = _axes(axes, (7, 4))
    axes.plot(range(len(with_vector)), with_vector, marker="o", color=palette.VECTOR, label="with the vector")
    axes.axhline(base, color=palette.RANDOM, linestyle="--", label="without")
    axes.set(xlabel="added behind layer", ylabel=label)
    axes.legend()
    whole_numbers(axes.xaxis)
    return axes


def vector_tokens(lm: LanguageModel, vector: Tensor, k: int = 10, axes: Any = None) -> Any:
    """The `k` words that a vector (d_model,) most speaks for.

    A ranking and no prediction: `decoding` reads it as if nothing but it stood in the residual stream.
    """
    from fvcore.decoding import top_tokens

    best = top_tokens(lm, vector, k)
    axes = _axes(axes, (6, 0.35 * k + 1))
    axes.barh(range(k), [row["logit"] for row in best], color=palette.VECTOR)
    axes.set_yticks(range(k), [repr(row["text"]) for row in best])
    axes.invert_yaxis()
    axes.set(xlabel="logit")
    return axes


def _axes(axes: Any, size: tuple[float, float]) -> Any:
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()


def limit(grid: Any, clipped: bool = True) -> float:
    """Where the colours end on both sides of 0; `clipped`: single extremes do not count.

    Maps that are compared have one: `grid` is then the values of all.
    """
    values = grid[grid != 0]
    if not len(values):
        return 1.0
    low, high = np.percentile(values, OUTER) if clipped else (values.min(), values.max())
    # Zero keeps the middle of the colours.
    return max(abs(float(low)), abs(float(high))) or 1.0


def whole_numbers(axis: Any, at_most: int = 16) -> None:
    """Ticks at whole numbers alone, where layers or heads are counted."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=at_most, min_n_ticks=1))


def plain_numbers(axis: Any) -> None:
    """Ticks of a logarithm as numbers, for its own are formulas, and a picture of words from files reads none."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def heat_map(axes: Any, grid: Any, outer: float, circled: Sequence[tuple[int, int]] = (), label: str = "") -> Any:
    """Values of (layer, head), layer 0 at the bottom; some heads circled; `label` says what the values are.

    Zero is white; colours grow by the root of a value up to `outer`, and no more beyond.
    """
    from matplotlib.colors import FuncNorm

    shown = np.asarray(grid)
    norm = FuncNorm((_root, _square), vmin=-outer, vmax=outer)
    image = axes.imshow(
        shown, aspect="auto", origin="lower", cmap=palette.colour_map(), norm=norm, interpolation="nearest"
    )
    at = [head for _, head in circled], [layer for layer, _ in circled]
    ring = {"s": _ring(axes, shown.shape), "facecolors": "none"}
    axes.scatter(*at, **ring, edgecolors="black", linewidths=2.2)
    axes.scatter(*at, **ring, edgecolors="white", linewidths=1.0, label=f"top {len(circled)}")
    axes.set(xlabel="head", ylabel="layer")
    whole_numbers(axes.xaxis, MOST_TICKS)
    whole_numbers(axes.yaxis, MOST_TICKS)
    beyond = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
    ends = beyond[bool((shown < -outer).any()), bool((shown > outer).any())]
    bar = axes.figure.colorbar(image, ax=axes, label=label, extend=ends)
    ticks = [-outer, -outer / 4, 0.0, outer / 4, outer]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.minorticks_off()
    return axes


def _root(values: Any) -> Any:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: Any) -> Any:
    return np.sign(values) * np.square(values)


def _ring(axes: Any, shape: tuple[int, ...]) -> float:
    """The area of a ring that fits a cell, in points squared, as a scatter takes it."""
    height, width = (
        72 * inches / cells for inches, cells in zip(axes.figure.get_size_inches()[::-1], shape, strict=True)
    )
    return float(np.clip(0.5 * min(height, width), 3, 10)) ** 2


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
    (line,) = axes.plot(at, means, **{"marker": "o"} | style)
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
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    return axes


def spans(heights: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None]) -> list[list[float]]:
    """[below, above]: how far an interval reaches from each bar's end, as matplotlib takes it; 0 where there is none."""
    below = [0.0 if low is None else max(0.0, height - low) for height, low in zip(heights, lows, strict=True)]
    above = [0.0 if high is None else max(0.0, high - height) for height, high in zip(heights, highs, strict=True)]
    return [below, above]
