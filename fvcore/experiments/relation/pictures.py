"""The report's pictures: all q_ids side by side, and which heads they share."""

from collections.abc import Mapping, Sequence
from typing import Any

from fvcore import palette
from fvcore.experiments.pictures import INK, NARROW, png
from fvcore.experiments.relation.intervals import RANDOM, TOP
from fvcore.experiments.steps.scores import Row
from fvcore.plots import spans

COLOURS = {TOP: palette.VECTOR, RANDOM: palette.RANDOM}
LABELS = {TOP: "top heads", RANDOM: "random heads"}

Head = tuple[int, int]


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
