"""The report's pictures: the curve over layers of one q_id, all q_ids side by side, and which heads they share."""

from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.experiments.pictures import png
from fvcore.experiments.relation.intervals import RANDOM, TOP
from fvcore.experiments.steps.scores import Row
from fvcore.plots import banded_line, spans, whole_numbers

DPI = 110  # dots an inch
COLOURS = {TOP: "#3b4cc0", RANDOM: "#8a8a8a"}
LABELS = {TOP: "top heads", RANDOM: "random heads"}

Head = tuple[int, int]


def injection_curve(deltas: Mapping[str, Sequence[Row]], accuracy: Sequence[Row], base: float, metric: str) -> bytes:
    """Left what the vector adds to `metric` behind each layer, beside random heads; right the accuracy it gives."""

    def paint(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for heads, rows in deltas.items():
            _line(left, rows, COLOURS[heads], LABELS[heads])
        left.axhline(0, color="black", linewidth=0.6)
        left.set(xlabel="layer", ylabel=metric.replace("_", " "))
        left.legend(fontsize=8)
        _line(right, accuracy, COLOURS[TOP], "with the vector")
        right.axhline(base, color="grey", linestyle="--", linewidth=1, label="without")
        right.set(xlabel="layer", ylabel="accuracy, zero-shot", ylim=(-0.02, 1.02))
        right.legend(fontsize=8)
        for axes in (left, right):
            whole_numbers(axes.xaxis)

    return png(paint, (9.0, 3.2), DPI)


def bars(rows: Sequence[Row]) -> bytes:
    """Every q_id's effect behind its best layer, and that of random heads there, with their intervals."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for shift, name, heads in ((-0.2, "delta", TOP), (0.2, "random", RANDOM)):
            at = [i + shift for i in range(len(rows))]
            heights = [row[name] for row in rows]
            axes.bar(at, heights, width=0.4, color=COLOURS[heads], label=LABELS[heads])
            reach = spans(heights, [row[f"{name}_low"] for row in rows], [row[f"{name}_high"] for row in rows])
            axes.errorbar(at, heights, yerr=reach, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xticks(range(len(rows)), [row["q_id"] for row in rows], rotation=45 if len(rows) > 12 else 0)
        axes.set(ylabel=rows[0]["metric"].replace("_", " "))
        axes.legend(fontsize=8)

    return png(paint, (max(6.0, 0.55 * len(rows) + 1.5), 3.4), DPI)


def overlap(heads: Mapping[str, frozenset[Head]]) -> bytes:
    """How many of their heads two q_ids share: the number in each cell, its colour the share of all heads of both."""
    q_ids = list(heads)
    grid = [[shared(heads[a], heads[b]) for b in q_ids] for a in q_ids]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1)
        for y, a in enumerate(q_ids):
            for x, b in enumerate(q_ids):
                colour = "white" if grid[y][x] > 0.6 else "black"
                axes.text(x, y, len(heads[a] & heads[b]), ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(q_ids)), q_ids, rotation=90, fontsize=8)
        axes.set_yticks(range(len(q_ids)), q_ids, fontsize=8)
        figure.colorbar(image, ax=axes, label="shared / all of both", shrink=0.8)

    side = max(4.0, 0.36 * len(q_ids) + 1.6)
    return png(paint, (side + 1, side), DPI)


def shared(a: frozenset[Head], b: frozenset[Head]) -> float:
    """Heads in both sets, as a share of those in either (Jaccard)."""
    return len(a & b) / len(a | b) if a | b else 0.0


def _line(axes: Any, rows: Sequence[Row], colour: str, label: str) -> None:
    at, means, lows, highs = ([row[name] for row in rows] for name in ("layer", "mean", "low", "high"))
    banded_line(axes, at, means, lows, highs, markersize=3, color=colour, label=label)
