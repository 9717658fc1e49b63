"""Two pictures of an evaluation: accuracy over layers, and bars over numbers of shots with their intervals."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fvcore.experiments.evaluation.report import Report, title
from fvcore.experiments.evaluation.results import Result
from fvcore.formats import write_bytes

WIDTH, HEIGHT, DPI = 7.0, 4.0, 150  # inches, inches, dots an inch
BAR = 0.24  # inches


def draw(report: Report, folder: Path) -> list[Path]:
    """The pictures that the report has figures for; returns the files written."""
    heading = f"{report.task.name} on {report.model.name}"
    written = []
    if report.layers:
        written.append(_picture(folder / "layers.png", heading, HEIGHT, lambda axes: layer_curve(axes, report.layers)))
    if bars := report.nshot or report.baseline:
        height = 1.0 + BAR * len(bars)
        written.append(_picture(folder / "nshot.png", heading, height, lambda axes: shot_bars(axes, bars)))
    return written


def layer_curve(axes: Any, results: Sequence[Result]) -> None:
    """A line a vector and regime, its interval shaded; without the vector a broken line of one height."""
    layers = sorted({result.layer for result in results if result.layer is not None})
    for result in results:
        if result.vector is None:
            axes.axhline(result.accuracy, linestyle="--", color="grey", linewidth=1)
            axes.annotate(title(result), (layers[-1], result.accuracy), ha="right", va="bottom", fontsize=7)
    for name in dict.fromkeys(title(result) for result in results if result.vector is not None):
        line = sorted((r for r in results if title(r) == name), key=lambda r: r.layer or 0)
        at = [result.layer for result in line]
        axes.plot(at, [result.accuracy for result in line], marker="o", label=name)
        low, high = ([result.summary[f"top1_{end}"] for result in line] for end in ("low", "high"))
        axes.fill_between(at, low, high, alpha=0.15)
    axes.set(xlabel="block at whose output the vector is added", ylabel="accuracy of the first token", ylim=(0, 1.02))
    axes.set_xticks(layers)
    axes.legend(fontsize=8)


def shot_bars(axes: Any, results: Sequence[Result]) -> None:
    """A bar a condition, in one colour a vector, with its interval."""
    vectors = list(dict.fromkeys(result.vector for result in results))
    heights = [result.accuracy for result in results]
    ends = [(result.summary["top1_low"], result.summary["top1_high"]) for result in results]
    below = [max(0.0, height - low) for height, (low, _) in zip(heights, ends, strict=True)]
    above = [max(0.0, high - height) for height, (_, high) in zip(heights, ends, strict=True)]
    axes.barh(
        range(len(results)),
        heights,
        xerr=[below, above],
        capsize=2,
        height=0.7,
        color=[f"C{vectors.index(r.vector)}" for r in results],
    )
    labels = [f"{title(result)} (n={len(result.ranks)})" for result in results]
    axes.set_yticks(range(len(results)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy of the first token", xlim=(0, 1.02))


def _picture(path: Path, heading: str, height: float, paint: Callable[[Any], None]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    paint(axes)
    axes.set_title(heading, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path
