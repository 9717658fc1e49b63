"""Pictures of StepD's scores: layers by heads with the best heads circled, and how many of the best lie in each layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fvcore import palette
from fvcore.experiments.folder import Folder
from fvcore.experiments.pictures import png
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.scores import Row, ranked, read_scores
from fvcore.plots import MOST_TICKS, heat_map, limit, whole_numbers

SIZE, DPI = (11, 6.5), 200
AT_MOST = 50


def run(
    folder: Folder, metric: str, topk: int, n_layers: int | None = None, n_heads: int | None = None, name: str = "all"
) -> list[Path]:
    """Draw both pictures from `aie_scores.csv`. The grid is as large as the model, where its sizes are given."""
    rows = read_scores(folder / layout.AIE, metric)
    grid = grid_of(rows, metric, n_layers, n_heads)
    best = ranked(rows, metric, min(AT_MOST, len(grid), len(rows)))
    pictures = {
        layout.heatmap(name): _heatmap(grid, ranked(rows, metric, topk), metric, name),
        layout.heads_by_layer(metric): _by_layer(best, len(grid), metric),
    }
    return folder.write(pictures)


def alone(root: Path, metric: str, top_heads: int, name: str) -> list[Path]:
    """The same without a model, under `aie_heatmap_<name>.png`, however much of that is given."""
    return run(Folder(root), metric, top_heads, name=Path(name).name.removesuffix(".png").removeprefix("aie_heatmap_"))


def grid_of(rows: Sequence[Row], metric: str, n_layers: int | None = None, n_heads: int | None = None) -> Any:
    """(layer, head); a head without a score is 0."""
    grid = np.zeros(
        (n_layers or 1 + max(row["layer"] for row in rows), n_heads or 1 + max(row["head"] for row in rows))
    )
    for row in rows:
        grid[row["layer"], row["head"]] = row[metric]
    return grid


def _heatmap(grid: Any, best: Sequence[Row], metric: str, name: str) -> bytes:
    outer = limit(grid, clipped=metric == "mean_delta_p")

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        heat_map(axes, grid, outer, [(row["layer"], row["head"]) for row in best], metric)
        axes.set_title(f"{metric} of every head ({name}), top {len(best)} circled")

    return png(paint, SIZE, DPI)


def _by_layer(best: Sequence[Row], n_layers: int, metric: str) -> bytes:
    counts = [sum(row["layer"] == layer for row in best) for layer in range(n_layers)]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.bar(range(n_layers), counts, color=palette.VECTOR)
        axes.set(xlabel="layer", ylabel="heads", title=f"the {len(best)} heads with the largest {metric}, by layer")
        whole_numbers(axes.xaxis, MOST_TICKS)
        whole_numbers(axes.yaxis, MOST_TICKS)

    return png(paint, SIZE, DPI)
