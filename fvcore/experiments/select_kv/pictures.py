"""The page's pictures: how ON gains and OFF deltas are spread, what a budget buys, and in which layers a state works."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fvcore import palette
from fvcore.experiments.pictures import INK, NARROW, png
from fvcore.plots import banded_line, plain_numbers, spans, whole_numbers

SIZE = (NARROW, 2.8)  # inches
COLOURS = {
    "select": palette.VECTOR,
    "random": palette.RANDOM,
    "recent": palette.SECOND,
    "full": palette.THIRD,
    "attention_diversity_span": palette.VECTOR,
    "random_span": palette.RANDOM,
    "delimiter_span": palette.SECOND,
}
MARKS = {"random_span": "s", "delimiter_span": "^"}
OTHER = palette.FOURTH
LEAST = 1e-6  # nats: what is less is drawn here, for a logarithm has no zero
GOLDEN = 0.618034  # of the way round for each next point: no two beside one another at one height

Point = Mapping[str, Any]


def _one(paint: Callable[[Any], None], height: float = SIZE[1]) -> bytes:
    return png(lambda figure: paint(figure.subplots()), (SIZE[0], height))


def spread(
    values: Mapping[str, Sequence[float]],
    means: Mapping[str, Point],
    label: str,
    *,
    marks: Mapping[str, float] | None = None,
    limit: float | None = None,
    logarithmic: bool = False,
) -> bytes:
    """A row an arm: every value a point, the mean with its interval a bar, and what `marks` says a tick.

    limit: a threshold, as a line
    """

    def paint(axes: Any) -> None:
        for row, (arm, of_arm) in enumerate(values.items()):
            colour = COLOURS.get(arm, OTHER)
            shown = [max(value, LEAST) for value in of_arm] if logarithmic else list(of_arm)
            heights = [row + 0.28 * (2 * (at * GOLDEN % 1) - 1) for at in range(len(shown))]
            axes.scatter(shown, heights, s=7, color=colour, alpha=0.35, linewidths=0)
            point = means[arm]
            reach = spans([point["mean"]], [point["low"]], [point["high"]])
            axes.errorbar([point["mean"]], [row], xerr=reach, fmt="o", color=INK, markersize=4, capsize=3, zorder=5)
            if marks and arm in marks:
                axes.plot([max(marks[arm], LEAST)], [row + 0.4], marker="v", color=colour, markersize=7, zorder=6)
        if limit is not None:
            axes.axvline(max(limit, LEAST), color=INK, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(values)), [name.replace("_", " ") for name in values])
        axes.set(xlabel=label, ylim=(len(values) - 0.5, -0.5))
        if logarithmic:
            axes.set_xscale("log")
            plain_numbers(axes.xaxis)

    return _one(paint, 1.2 + 0.5 * len(values))


def budget_accuracy(methods: Mapping[str, Sequence[Point]], base: float, teacher: float) -> bytes:
    """ON accuracy over kept tokens, each method with its interval shaded."""

    def paint(axes: Any) -> None:
        for method, points in methods.items():
            at, of = [point["kept"] for point in points], [point["accuracy"] for point in points]
            means, lows, highs = ([one[name] for one in of] for name in ("mean", "low", "high"))
            style = {"label": method.replace("_", " "), "color": COLOURS.get(method, OTHER)}
            style["marker"] = MARKS.get(method, "o")
            banded_line(axes, at, means, lows, highs, shade=0.12, outlined=False, **style)
        axes.axhline(base, color=palette.RANDOM, linestyle=":", linewidth=1)
        axes.axhline(teacher, color=palette.RANDOM, linestyle="--", linewidth=1)
        axes.set(ylabel="ON accuracy", ylim=(-0.03, 1.05))
        _over_tokens(axes, methods)
        axes.legend(loc="lower right")

    return _one(paint)


def budget_off(methods: Mapping[str, Sequence[Point]], limit: float) -> bytes:
    """What OFF prompts pay at the 99th percentile over kept tokens, beside what the gate allows."""

    def paint(axes: Any) -> None:
        for method, points in methods.items():
            heights = [max(point["off_p99"], LEAST) for point in points]
            axes.plot(
                [point["kept"] for point in points],
                heights,
                marker=MARKS.get(method, "o"),
                color=COLOURS.get(method, OTHER),
                label=method.replace("_", " "),
            )
        axes.axhline(max(limit, LEAST), color=INK, linestyle="--", linewidth=1)
        axes.set(ylabel="OFF delta p99, nats", yscale="log")
        plain_numbers(axes.yaxis)
        _over_tokens(axes, methods)

    return _one(paint)


def _over_tokens(axes: Any, methods: Mapping[str, Sequence[Point]]) -> None:
    ticks = [point["kept"] for point in next(iter(methods.values()))]
    # A budget just below the whole demo has no room for its number.
    named = [tick for tick, after in zip(ticks, [*ticks[1:], math.inf], strict=True) if after >= 1.5 * tick]
    axes.set_xscale("log", base=2)
    axes.set_xticks(named, [f"{tick:.0f}" for tick in named])
    axes.minorticks_off()
    axes.set_xlabel("kept tokens of the demo")


def layer_accuracy(scopes: Sequence[Point], n_layers: int) -> bytes:
    """ON accuracy when one layer alone sees the state, and when two neighbours do; none and all as lines."""

    def paint(axes: Any) -> None:
        by = {tuple(one["layers"]): one["accuracy"] for one in scopes}
        singles = [by[layer,] for layer in range(n_layers)]
        heights = [one["mean"] for one in singles]
        reach = spans(heights, [one["low"] for one in singles], [one["high"] for one in singles])
        bars = {"color": palette.VECTOR, "width": 0.6, "capsize": 2, "label": "this layer alone"}
        axes.bar(range(n_layers), heights, yerr=reach, **bars)
        pairs = [
            (layer + 0.5, by[layer, layer + 1]["mean"]) for layer in range(n_layers - 1) if (layer, layer + 1) in by
        ]
        if pairs:
            axes.plot(
                *zip(*pairs, strict=True), marker="D", linestyle="none", color=palette.SECOND, label="with the next"
            )
        axes.axhline(by[tuple(range(n_layers))]["mean"], color=palette.RANDOM, linestyle="--", linewidth=1)
        axes.axhline(by[()]["mean"], color=palette.RANDOM, linestyle=":", linewidth=1)
        axes.set(xlabel="layer that sees the state", ylabel="ON accuracy", ylim=(0, 1.05))
        whole_numbers(axes.xaxis)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)

    return _one(paint)


def vector_accuracy(vector: Mapping[str, Any]) -> bytes:
    """The bare query's accuracy with the function vector behind each layer; below, where the vector's heads lie."""

    def paint(figure: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        points = vector["layers"]
        means, lows, highs = ([one[name] for one in points] for name in ("mean", "low", "high"))
        banded_line(above, range(len(points)), means, lows, highs, color=palette.VECTOR, markersize=3.5)
        above.axhline(vector["base"]["mean"], color=palette.RANDOM, linestyle=":", linewidth=1)
        above.set(ylabel="accuracy", ylim=(0, 1.05))
        below.bar(range(len(points)), vector["heads"], color=palette.RANDOM, width=0.6)
        below.set(xlabel="layer behind which the vector is added", ylabel="its heads")
        whole_numbers(below.xaxis)

    return png(paint, SIZE)
