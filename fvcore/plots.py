"""Drawings: arrays and a matplotlib axis in, the axis out. Sizes, files and titles are whose picture it is.

The first three draw what the stations find; without an axis they make a figure of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.model.model import LanguageModel

MOST_TICKS = 24
OUTER = (1, 99)  # percentiles of the values that are not zero: beyond, colours do not grow
LINEAR = 20  # percentile of the absolute values, below which the colours grow linearly


def aie_map(aie: Any, heads: Sequence[Sequence[int]] = (), axes: Any = None) -> Any:
    """Average indirect effects (layer, head), those of some heads ([layer, head], ...) circled."""
    grid = np.asarray(aie, dtype=float)
    outer, linear = limits(grid)
    circled = [(int(layer), int(head)) for layer, head, *_ in heads]
    return heat_map(_axes(axes, (9, 5)), grid, outer, linear, circled, "average indirect effect")


def layer_curve(values: Any, axes: Any = None, label: str = "log-probability of the answer") -> Any:
    """What an injection behind each layer does: (1 + layer,), the first value without any, as `inject_logits` has them."""
    base, *with_vector = np.asarray(values, dtype=float).reshape(-1).tolist()
    axes = _axes(axes, (7, 4))
    axes.plot(range(len(with_vector)), with_vector, marker="o", label="with the vector")
    axes.axhline(base, color="grey", linestyle="--", label="without")
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
    axes.barh(range(k), [row["logit"] for row in best], color="#3b4cc0")
    axes.set_yticks(range(k), [repr(row["text"]) for row in best])
    axes.invert_yaxis()
    axes.set(xlabel="logit")
    return axes


def _axes(axes: Any, size: tuple[float, float]) -> Any:
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()


def limits(grid: Any, clipped: bool = True) -> tuple[float, float]:
    """(where the colours end on both sides of 0, below what they grow linearly); `clipped`: single extremes do not count."""
    values = grid[grid != 0]
    if not len(values):
        return 1.0, 1.0
    low, high = np.percentile(values, OUTER) if clipped else (values.min(), values.max())
    # Zero keeps the middle of the colours.
    outer = max(abs(float(low)), abs(float(high))) or 1.0
    linear = float(np.percentile(np.abs(values), LINEAR))
    return outer, min(linear, outer) or outer


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
