"""An evaluation for the eyes: accuracy over layers and by condition as pictures, and `report.html`, whole in itself."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fvcore import page, palette
from fvcore.experiments.evaluation.report import Evaluation, Result, title
from fvcore.experiments.evaluation.vectors import VECTOR
from fvcore.experiments.folder import Folder
from fvcore.experiments.pictures import NARROW, png
from fvcore.plots import banded_line, interval_bars, whole_numbers

PAGE = "report.html"
HEIGHT, BAR = 2.8, 0.24  # inches
COLOURS = {VECTOR: palette.VECTOR, "random_heads": palette.RANDOM, "gaussian": palette.SECOND, None: palette.FOURTH}
MARKS = {VECTOR: "o", "random_heads": "s", "gaussian": "^"}
SHOWN = 10  # tokens of a vector


def draw(report: Evaluation, folder: Path) -> list[Path]:
    """The pictures that the report has figures for, and the page; returns the files written."""
    pictures: dict[str, bytes] = {}
    regimes = list(_regimes(report.layers))
    if regimes:
        pictures["layers.png"] = _over_layers(regimes)
    if bars := report.nshot or report.baseline:
        pictures["nshot.png"] = png(
            lambda figure: _bars(figure.subplots(), bars), (1.7 * NARROW, 0.7 + BAR * len(bars))
        )
    values = {
        "report": report,
        "headline": headline(report),
        "pictures": pictures,
        "curves": {_regime(of): _over_layers([of]) for of in regimes},
        "tokens": list(_tokens(report)),
    }
    written = Folder(folder).write(pictures)
    return [*written, page.write(folder / PAGE, "fvcore.experiments.evaluation", "report.html.j2", values)]


def headline(report: Evaluation) -> str:
    """The finding in a sentence: what the vector does where no demonstration helps, beside its controls."""
    helpless = next(_regimes(report.layers), None) or next(_regimes(report.nshot), None)
    if helpless:
        return _gain(helpless)
    if report.portability:
        better = sum(_gains(port.with_vectors) for port in report.portability)
        return f"Under {better} of {len(report.portability)} templates the vector answers more than the prompt alone"
    if report.baseline:
        best = report.baseline[-1]
        return f"{title(best).capitalize()}: the model answers {best.accuracy:.0%} of {len(best.ranks)} questions"
    texts = [repr(row.text) for row in report.tokens[:3]]
    return f"The vector speaks most for {', '.join(texts)}"


def _gain(results: Sequence[Result]) -> str:
    without = next(result for result in results if result.vector is None)
    best = max((result for result in results if result.vector == VECTOR), key=lambda result: result.accuracy)
    controls = [
        f"{str(result.vector).replace('_', ' ')} {result.accuracy:.0%}"
        for result in results
        if result.vector not in {None, VECTOR} and result.layer == best.layer
    ]
    return (
        f"Behind layer {best.layer} the vector answers {best.accuracy:.0%} of {len(best.ranks)} questions, "
        f"against {without.accuracy:.0%} without it ({_regime(results)}{'; ' if controls else ''}{', '.join(controls)})"
    )


def _gains(results: Sequence[Result]) -> bool:
    """Whether the first prompt without help is answered more often with the vector."""
    first = next(_regimes(results), [])
    by = {result.vector: result.accuracy for result in first}
    return VECTOR in by and by[VECTOR] > by[None]


def _regimes(results: Sequence[Result]) -> Iterator[list[Result]]:
    """Results of one prompt each, without and with vectors, those that help least first."""
    for key in sorted({(result.n_shots, result.labels) for result in results}):
        yield [result for result in results if (result.n_shots, result.labels) == key]


def _regime(results: Sequence[Result]) -> str:
    return title(next(result for result in results if result.vector is None))


def _over_layers(regimes: Sequence[Sequence[Result]]) -> bytes:
    """A panel a regime."""

    def paint(figure: Any) -> None:
        for axes, results in zip(figure.subplots(1, len(regimes), squeeze=False)[0], regimes, strict=True):
            _curve(axes, results)

    return png(paint, (NARROW * len(regimes), HEIGHT))


def _curve(axes: Any, results: Sequence[Result]) -> None:
    """A line a vector, its interval shaded; without a vector a broken line of one height."""
    for name in dict.fromkeys(result.vector for result in results):
        line = sorted((r for r in results if r.vector == name), key=lambda r: r.layer or 0)
        if name is None:
            axes.axhline(line[0].accuracy, linestyle="--", color=COLOURS[None], linewidth=1.2, label="without")
            continue
        at, heights = [result.layer or 0 for result in line], [result.accuracy for result in line]
        style = {"color": COLOURS.get(name, palette.THIRD), "marker": MARKS.get(name, "D")}
        banded_line(axes, at, heights, *_ends(line), shade=0.12, outlined=False, label=name.replace("_", " "), **style)
    axes.set(xlabel="layer behind which the vector is added", ylabel="accuracy of the first token", ylim=(-0.02, 1.04))
    axes.set_title(_regime(results))
    whole_numbers(axes.xaxis)
    axes.legend()


def _bars(axes: Any, results: Sequence[Result]) -> None:
    """A bar a condition, in one colour a vector, with its interval."""
    labels = [f"{title(result)} (n={len(result.ranks)})" for result in results]
    colours = [COLOURS.get(result.vector, palette.THIRD) for result in results]
    interval_bars(axes, labels, [result.accuracy for result in results], *_ends(results), colours)
    axes.set(xlabel="accuracy of the first token", xlim=(0, 1.02))


def _ends(results: Sequence[Result]) -> tuple[list[float | None], list[float | None]]:
    return [r.summary["top1_low"] for r in results], [r.summary["top1_high"] for r in results]


def _tokens(report: Evaluation) -> Iterator[tuple[str, str, list[Any]]]:
    """(vector, way, its first tokens)."""
    for vector, way in dict.fromkeys((row.vector, row.way) for row in report.tokens):
        yield vector, way, [row for row in report.tokens if (row.vector, row.way) == (vector, way)][:SHOWN]
