"""The report's pictures: a q_id's heads and its curves over layers, all q_ids side by side, and which heads they share."""

from collections.abc import Mapping, Sequence
from typing import Any

from fvcore import palette
from fvcore.experiments.pictures import INK, NARROW, png
from fvcore.experiments.relation.intervals import RANDOM, TOP
from fvcore.experiments.steps.scores import Row
from fvcore.plots import banded_line, heat_map, spans, whole_numbers

COLOURS = {TOP: palette.VECTOR, RANDOM: palette.RANDOM}
MARKS = {TOP: "o", RANDOM: "s"}
LABELS = {TOP: "top heads", RANDOM: "random heads"}
CURVE = (NARROW, 2.6)  # inches

Head = tuple[int, int]


def effects(grid: Any, outer: float, heads: Sequence[Head], label: str) -> bytes:
    """Every head's effect by layer and head on a scale that is shared, as `plots.limit` has it; the top heads circled."""
    n_layers, n_heads = grid.shape
    size = max(NARROW, 0.17 * n_heads + 1.4), max(2.6, 0.13 * n_layers + 0.9)
    return png(lambda figure: heat_map(figure.subplots(), grid, outer, heads, label), size)


def effect_curve(deltas: Mapping[str, Sequence[Row]], metric: str) -> bytes:
    """What the vector adds to `metric` behind each layer, beside random heads."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for heads, rows in deltas.items():
            _line(axes, rows, heads, LABELS[heads])
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set(xlabel="layer", ylabel=metric.replace("_", " "))
        axes.legend()
        whole_numbers(axes.xaxis)

    return png(paint, CURVE)


def accuracy_curve(accuracy: Sequence[Row], base: float) -> bytes:
    """The accuracy that the vector gives behind each layer, and without it."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        _line(axes, accuracy, TOP, "with the vector")
        axes.axhline(base, color=palette.RANDOM, linestyle="--", linewidth=1.2, label="without")
        axes.set(xlabel="layer", ylabel="accuracy, zero-shot", ylim=(-0.02, 1.02))
        axes.legend()
        whole_numbers(axes.xaxis)

    return png(paint, CURVE)


def bars(rows: Sequence[Row]) -> bytes:
    """Every q_id's effect behind its best layer, and that of random heads there, with their intervals."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for shift, name, heads in ((-0.2, "delta", TOP), (0.2, "random", RANDOM)):
            at = [i + shift for i in range(len(rows))]
            heights = [row[name] for row in rows]
            axes.bar(at, heights, width=0.4, color=COLOURS[heads], label=LABELS[heads])
            reach = spans(heights, [row[f"{name}_low"] for row in rows], [row[f"{name}_high"] for row in rows])
            axes.errorbar(at, heights, yerr=reach, fmt="none", ecolor=INK, elinewidth=0.8, capsize=2)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xticks(range(len(rows)), [row["q_id"] for row in rows], rotation=45 if len(rows) > 12 else 0)
        axes.set(ylabel=rows[0]["metric"].replace("_", " "))
        axes.legend()

    return png(paint, (max(NARROW, 0.55 * len(rows) + 1.5), 2.8))


def overlap(heads: Mapping[str, frozenset[Head]]) -> bytes:
    """How many of their heads two q_ids share: the number in each cell, its colour the share of all heads of both."""
    q_ids = list(heads)
    grid = [[shared(heads[a], heads[b]) for b in q_ids] for a in q_ids]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        image = axes.imshow(grid, cmap=palette.colour_map(from_zero=True), vmin=0, vmax=1)
        for y, a in enumerate(q_ids):
            for x, b in enumerate(q_ids):
                colour = "white" if grid[y][x] > 0.6 else INK
                axes.text(x, y, len(heads[a] & heads[b]), ha="center", va="center", color=colour)
        axes.set_xticks(range(len(q_ids)), q_ids, rotation=90)
        axes.set_yticks(range(len(q_ids)), q_ids)
        figure.colorbar(image, ax=axes, label="shared / all of both", shrink=0.8)

    side = max(NARROW - 0.9, 0.3 * len(q_ids) + 1.0)
    return png(paint, (side + 0.9, side))


def shared(a: frozenset[Head], b: frozenset[Head]) -> float:
    """Heads in both sets, as a share of those in either (Jaccard)."""
    return len(a & b) / len(a | b) if a | b else 0.0


def _line(axes: Any, rows: Sequence[Row], heads: str, label: str) -> None:
    at, means, lows, highs = ([row[name] for row in rows] for name in ("layer", "mean", "low", "high"))
    banded_line(axes, at, means, lows, highs, marker=MARKS[heads], color=COLOURS[heads], label=label)
