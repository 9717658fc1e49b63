"""The page `docs/scale.md` and its picture, of the figures in `docs/scale.json`.

python benchmarks/scale_page.py
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from fvcore.formats import read_json, write_bytes, write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
MB = 10**6


class Point(BaseModel):
    n: int
    seconds: float
    memory: int
    sizes: dict[str, int]


class Curve(BaseModel):
    """Cost by the number of something; `bound` is the memory that was allowed, in bytes."""

    name: str
    of: str
    bound: int | None = None
    points: list[Point]

    @property
    def off(self) -> float:
        """How far a point lies from the straight line at most, as a share: the line that is nearest to all in shares."""
        many, seconds = np.array([(one.n, one.seconds) for one in self.points]).T
        return float(np.abs(np.polyval(np.polyfit(many, seconds, 1, w=1 / seconds), many) / seconds - 1).max())

    def exponent(self, what: str) -> float:
        """Of `seconds` or `memory` at the large end: 1 of a line, 2 of a parabola."""
        grown = [max(getattr(one, what), 1e-9) for one in self.points[-2:]]
        return float(np.log(grown[1] / grown[0]) / np.log(self.points[-1].n / self.points[-2].n))


class Figures(BaseModel):
    date: str
    processor: str
    torch: str
    curves: list[Curve]


def picture(figures: Figures) -> bytes:
    """An SVG: seconds and memory, both axes logarithmic, so that what is linear is a line of slope one."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "scale", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        for axes, what in zip(figure.subplots(1, 2), ("seconds", "memory"), strict=True):
            for at, curve in enumerate(figures.curves):
                values = [max(one.memory / MB, 1) if what == "memory" else one.seconds for one in curve.points]
                style = f"{'--' if curve.bound else '-'}o"
                axes.plot(
                    [one.n for one in curve.points],
                    values,
                    style,
                    color=f"C{at}",
                    label=title(curve).replace("`", ""),
                    markersize=4,
                )
            axes.set(
                xscale="log",
                yscale="log",
                xlabel="trials, heads or suites",
                ylabel=f"{what}{', MB' * (what == 'memory')}",
            )
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def title(curve: Curve) -> str:
    return f"{curve.name}, by {curve.of}{f', {curve.bound // MB} MB allowed' if curve.bound else ''}"


def table(curve: Curve) -> str:
    names = list(curve.points[0].sizes)
    head = [curve.of, "seconds", f"ms a {curve.of[:-1]}", "memory, MB", *(f"{name}, kB" for name in names)]
    rows = [
        [f"{one.n:,}", f"{one.seconds:.3g}", f"{1000 * one.seconds / one.n:.3g}", f"{one.memory / MB:.0f}"]
        + [f"{one.sizes[name] / 1000:,.0f}" for name in names]
        for one in curve.points
    ]
    kept = max(one.memory for one in curve.points)
    bound = f"Of {curve.bound / MB:.0f} MB allowed it took {kept / MB:.0f}." if curve.bound else ""
    bound = f" **{bound}**" if curve.bound and kept > curve.bound else f" {bound}".rstrip()
    ends = f"exponents at the end: seconds {curve.exponent('seconds'):.2f}, memory {curve.exponent('memory'):.2f}"
    said = f"No point lies further than {curve.off:.0%} from a straight line; {ends}.{bound}"
    lines = ["|".join(["", *row, ""]) for row in (head, ["---:"] * len(head), *rows)]
    return "\n".join([f"## {title(curve)[0].upper()}{title(curve)[1:]}", "", *lines, "", said, ""])


PAGE = """# Scale

What grows with trials, heads and suites, and how. Written by `benchmarks/scale.py`, all of it in one command:

<!-- not run: a clone of this project -->
```bash
python benchmarks/scale.py
```

Every point has a process of its own. Seconds are those that one thread of the processor worked; memory is what the work took
beside what was there. Exponent: 1 is linear, 2 quadratic, below 1 is dear only at the start. Sizes are of one report, and of
the summary of all. {date}; {processor}; torch {torch}.

![Seconds and memory by trials, heads and suites](scale.svg)

{tables}"""


def write_page(figures: Figures, out: Path) -> None:
    said = figures.model_dump(include={"date", "processor", "torch"})
    write_bytes(out / "scale.svg", picture(figures))
    write_text(out / "scale.md", PAGE.format(**said, tables="\n".join(map(table, figures.curves))))


if __name__ == "__main__":
    write_page(Figures.model_validate(read_json(DOCS / "scale.json")), DOCS)
