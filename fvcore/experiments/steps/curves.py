"""Pictures for pages: every head's effect, and what the vector does behind each layer, beside random heads if there are some."""

from collections.abc import Sequence
from typing import Any

from fvcore import palette
from fvcore.experiments.pictures import INK, NARROW, png
from fvcore.experiments.steps.scores import Row
from fvcore.plots import banded_line, heat_map, whole_numbers

SIZE = (NARROW, 2.6)  # inches
VECTOR = {"marker": "o", "color": palette.VECTOR}
RANDOM = {"marker": "s", "color": palette.RANDOM, "label": "random heads"}


def effects(grid: Any, outer: float, heads: Sequence[tuple[int, int]], label: str) -> bytes:
    """(layer, head) on a scale that ends at `outer`, one for all maps that are compared; the top heads circled."""
    n_layers, n_heads = grid.shape
    size = max(NARROW, 0.17 * n_heads + 1.4), max(2.6, 0.13 * n_layers + 0.9)
    return png(lambda figure: heat_map(figure.subplots(), grid, outer, heads, label), size)


def effect_curve(top: Sequence[Row], metric: str, random: Sequence[Row] = ()) -> bytes:
    """What the vector adds to `metric`: rows of `layer`, `mean`, `low` and `high`."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        _line(axes, top, VECTOR | {"label": "top heads"})
        if random:
            _line(axes, random, RANDOM)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set(xlabel="layer", ylabel=metric.replace("_", " "))
        axes.legend()
        whole_numbers(axes.xaxis)

    return png(paint, SIZE)


def accuracy_curve(accuracy: Sequence[Row], base: float) -> bytes:
    """The accuracy that the vector gives, and without it."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        _line(axes, accuracy, VECTOR | {"label": "with the vector"})
        axes.axhline(base, color=palette.RANDOM, linestyle="--", linewidth=1.2, label="without")
        axes.set(xlabel="layer", ylabel="accuracy, zero-shot", ylim=(-0.02, 1.02))
        axes.legend()
        whole_numbers(axes.xaxis)

    return png(paint, SIZE)


def _line(axes: Any, rows: Sequence[Row], style: Row) -> None:
    at, means, lows, highs = ([row[name] for row in rows] for name in ("layer", "mean", "low", "high"))
    banded_line(axes, at, means, lows, highs, **style)
