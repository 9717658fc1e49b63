"""Where a pathway graph's nodes and edges stand in its picture: a column a layer, few crossings, a width an effect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from fvcore.experiments.sae.pathways import Node as Feature
from fvcore.experiments.sae.pathways import Pathway

MOST_EDGES, MOST_CONTROLS = 60, 30
BOX = (84.0, 22.0)
STEP = (190.0, 34.0)
MARGIN = (12.0, 40.0)
SWEEPS = 8
GAP = "|"
WIDTHS = (1.2, 8.0)
FULL = 1.0
"""An effect as large as the target is as wide as can be."""


@dataclass(frozen=True)
class Box:
    """x, y: its upper left corner, in the picture's units"""

    name: str
    layer: int
    x: float
    y: float


@dataclass(frozen=True)
class Line:
    """path: SVG's     sign: up, down, or control where nothing was shown     said: the edge in words"""

    path: str
    width: float
    sign: str
    passthrough: bool
    said: str


@dataclass(frozen=True)
class Drawing:
    """left_out: validated edges beyond the `MOST_EDGES` strongest     layers: layer -> x of its column"""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    layers: dict[int, float]
    left_out: int


def draw(pathways: Sequence[Pathway]) -> Drawing:
    """The strongest validated pathways, and behind them the strongest of those between the same features that were not."""
    validated = sorted((one for one in pathways if one.validated), key=_by_effect)
    shown = validated[:MOST_EDGES]
    names = {name for one in shown for name in (one.source, one.target)}
    others = [one for one in pathways if not one.validated and one.rel_effect is not None]
    controls = sorted((one for one in others if {one.source, one.target} <= names), key=_by_effect)[:MOST_CONTROLS]
    columns = sorted({feature.layer for feature in map(Feature.of, names)})
    ways = {(one.source, one.target): _way(one, columns) for one in shown}
    places = _placed(list(ways.values()), columns)
    most = min(max((one.rel_effect or 0.0 for one in shown), default=0.0), FULL)
    lines = [_line(one, [one.source, one.target], places, 0.0) for one in reversed(controls)]
    lines += [_line(one, ways[one.source, one.target], places, most) for one in reversed(shown)]
    boxes = tuple(Box(name, Feature.of(name).layer, *places[name]) for name in sorted(names))
    return Drawing(
        width=max((x for x, _ in places.values()), default=0.0) + BOX[0] + MARGIN[0],
        height=max((y for _, y in places.values()), default=0.0) + BOX[1] + MARGIN[0],
        boxes=boxes,
        lines=tuple(lines),
        layers={box.layer: box.x for box in sorted(boxes, key=lambda box: box.layer)},
        left_out=len(validated) - len(shown),
    )


def _by_effect(one: Pathway) -> tuple[float, str, str]:
    return -(one.rel_effect or 0.0), one.source, one.target


def _way(edge: Pathway, columns: Sequence[int]) -> list[str]:
    """Its ends, and between them a gap in each column that it passes, so that no box hides it."""
    passed = [layer for layer in columns if edge.source_layer < layer < edge.target_layer]
    return [edge.source, *(f"{GAP}{layer}|{edge.source}|{edge.target}" for layer in passed), edge.target]


def _placed(ways: Sequence[Sequence[str]], columns: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Name of a feature or a gap -> its upper left corner."""
    found: dict[str, tuple[float, float]] = {}
    order = _ordered(ways)
    tall = {layer: sum(_height(name) for name in names) for layer, names in order.items()}
    for at, layer in enumerate(columns):
        y = MARGIN[1] + (max(tall.values()) - tall[layer]) / 2
        for name in order[layer]:
            found[name] = (MARGIN[0] + at * STEP[0], y)
            y += _height(name)
    return found


def _height(name: str) -> float:
    return STEP[1] if not name.startswith(GAP) else STEP[1] / 2


def _layer(name: str) -> int:
    return int(name[1:].split("|")[0]) if name.startswith(GAP) else Feature.of(name).layer


def _ordered(ways: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    """Layer -> names from top to bottom: again and again each beside the mean of its neighbours, so that few edges cross."""
    beside: dict[str, list[str]] = {}
    for one, other in (pair for way in ways for pair in pairwise(way)):
        beside.setdefault(one, []).append(other)
        beside.setdefault(other, []).append(one)
    columns: dict[int, list[str]] = {}
    for name in sorted(beside):
        columns.setdefault(_layer(name), []).append(name)
    for _ in range(SWEEPS):
        at = {name: row - len(names) / 2 for names in columns.values() for row, name in enumerate(names)}
        near = {name: fmean(at[one] for one in names) for name, names in beside.items()}
        columns = {layer: sorted(names, key=lambda name: (near[name], name)) for layer, names in columns.items()}
    return columns


def _line(edge: Pathway, way: Sequence[str], places: Mapping[str, tuple[float, float]], most: float) -> Line:
    share = min(edge.rel_effect or 0.0, FULL) / most if most else 0.0
    return Line(
        path=_path([places[name] for name in way]),
        width=round(WIDTHS[0] + share * (WIDTHS[1] - WIDTHS[0]), 2) if edge.validated else WIDTHS[0] / 2,
        sign=sign(edge) if edge.validated else "control",
        passthrough=edge.passthrough,
        said=_said(edge),
    )


def _path(corners: Sequence[tuple[float, float]]) -> str:
    """From the right side of the first place to the left side of the last, level where it passes one between."""
    middle = [(x, y + BOX[1] / 2) for x, y in corners]
    path = f"M{middle[0][0] + BOX[0]:.1f} {middle[0][1]:.1f}"
    for at, ((x0, y0), (x1, y1)) in enumerate(pairwise(middle)):
        x0, bend = x0 + BOX[0], (x1 - x0 - BOX[0]) / 2
        path += f"C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        path += f"H{x1 + BOX[0]:.1f}" if at < len(middle) - 2 else ""
    return path


def sign(edge: Pathway) -> str:
    """up where ablation lowers the target, so that the source drives it; down where it raises it."""
    return "up" if (edge.delta_mean or 0.0) < 0 else "down"


def _said(edge: Pathway) -> str:
    what = f"{edge.source} \u2192 {edge.target}"
    if edge.delta_mean is None or edge.rel_effect is None:
        return f"{what}: {edge.status.replace('_', ' ')}"
    q = "" if edge.q_value is None else f", q {edge.q_value:.1g}"
    return f"{what}: ablation changes it by {edge.delta_mean:+.3g} ({edge.rel_effect:.0%}){q}, {edge.status.replace('_', ' ')}"
