"""Figures for a person: a table in the terminal, the page `docs/performance.md` and its plot.

    python benchmarks/sweep_page.py docs/performance.json

Several files make one page: figures of several machines stand one below the other.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import sweep_costs
import sweep_world
import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.table import Table
from sweep_results import LIBRARIES, Curve, Figures, Further, Run

from fvcore.fast import sweep
from fvcore.formats import write_bytes, write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"

app = typer.Typer(add_completion=False)


# ---------------------------------------------------------------- tables


def columns(run: Run) -> list[str]:
    counts = [f"{n} trial{'s' if n > 1 else ''}" for n in _ends(run)]
    return [
        "library",
        *(f"{count}, s" for count in counts),
        "reference takes",
        "fast is faster",
        "times the lower bound",
        "times the looser one",
        "TFLOP",
        "share of the rate",
        "memory, MB",
        "apart from fast",
    ]


def rows(run: Run) -> list[list[str]]:
    """One a library. Where a cell holds two numbers they are of one trial and of the most trials."""
    return [_row(run, library) for library in LIBRARIES if library in run.libraries]


def _row(run: Run, library: str) -> list[str]:
    each = partial(_each, run)
    return [
        LIBRARIES[library],
        *(_seconds(run, library, n) for n in _ends(run)),
        each(lambda n: run.ratio("reference", library, n), "{:.2f} x"),
        each(lambda n: run.ratio(library, "fast", n), "{:.1f} x"),
        each(lambda n: run.times_bound(library, n), "{:.2f}"),
        each(lambda n: run.times_looser(library, n), "{:.2f}"),
        each(lambda n: run.flops(library, n) / 1e12, "{:.3g}"),
        each(lambda n: run.share(library, n), "{:.0%}"),
        each(lambda n: run.memory(library, n) / 1e6, "{:.0f}"),
        "–" if library == "fast" else f"{run.agreement[library]:.1e}",
    ]


def _ends(run: Run) -> list[int]:
    """One trial, and the most."""
    return sorted({min(run.n_trials), max(run.n_trials)})


def _each(run: Run, value: Callable[[int], float | None], form: str) -> str:
    """A value of one trial and of the most trials."""
    values = [value(n) for n in _ends(run)]
    return " / ".join("–" if number is None else form.format(number) for number in values)


def _seconds(run: Run, library: str, n_trials: int) -> str:
    """`~` stands before what was scaled."""
    timed = run.timing(library, n_trials)
    measured = timed is not None and timed.n_heads == run.size.all_heads
    return f"{'' if measured else '~'}{run.seconds(library, n_trials):.3g}"


def summary(run: Run) -> list[str]:
    """Engine fast in a line."""
    each = partial(_each, run)
    return [
        f"{run.size.name}, {run.dtype}, {run.machine.device}",
        each(lambda n: run.seconds("fast", n), "{:.3g}"),
        each(lambda n: run.times_bound("fast", n), "{:.2f}"),
        each(run.plain_times, "{:.2f}"),
        each(lambda n: run.ratio("reference", "fast", n), "{:.1f} x"),
        each(lambda n: run.ratio("exact", "fast", n), "{:.1f} x"),
        f"{run.agreement['exact']:.1e}",
    ]


def title(run: Run) -> str:
    size = run.size
    return f"{size.name}: {size.n_layers} layers x {size.d_model}, {size.all_heads} heads, {run.dtype}, {where(run)}"


def where(run: Run) -> str:
    machine = run.machine
    return machine.device if machine.device != "cpu" else f"{machine.threads} threads of {machine.processor}"


def terminal_table(run: Run) -> Table:
    table = Table(title=title(run), caption=_caption(run))
    for name in columns(run):
        table.add_column(name, justify="left" if name == "library" else "right")
    for row in rows(run):
        table.add_row(*row)
    return table


def _caption(run: Run) -> str:
    bounds = [run.bound(n) for n in _ends(run)]
    words = [
        f"lower bound, {b.n_trials} trial(s): {b.flops / 1e9:.4g} GFLOP, {median(b.seconds):.3g} s "
        f"at {b.rate / 1e9:.4g} GFLOP/s"
        for b in bounds
    ]
    return "; ".join([*words, f"{run.machine.busy:.0%} of the machine was busy before"])


def further_lines(further: Further) -> list[str]:
    """The other stations, `screened`, and where the time goes: a line each, as Markdown."""
    screened = further.screened
    return [
        *(
            f"- {station.name}: {'~' if station.scaled else ''}{median(station.exact):.3g} s with exact, "
            f"{median(station.fast):.3g} s with fast: {station.times_faster:.1f} times faster, {station.apart:.1e} apart"
            for station in further.stations
        ),
        f"- engine `screened`: {screened.recall:.0%} of the true top {screened.k}; {screened.n_skipped} of {screened.n_heads} heads not "
        f"computed; {screened.seconds:.3g} s instead of {screened.all_seconds:.3g} s: "
        f"{screened.all_seconds / screened.seconds:.2f} times as fast",
        "- Where the time of one trial goes: " + ", ".join(f"{part.name} {part.share:.0%}" for part in further.parts),
        *([_together(further)] if further.together else []),
    ]


def _together(further: Further) -> str:
    seconds = {one.n_rows: median(one.seconds) for one in further.together}
    said = ", ".join(f"{n_rows} {taken / seconds[sweep.ROWS]:.2f}" for n_rows, taken in seconds.items())
    return f"- Rows that run together, and how many times as long a sweep over all trials takes as with {sweep.ROWS}: {said}"


# ---------------------------------------------------------------- curves


def straight(curve: Curve) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """How many, seconds, and the seconds of the straight line through them (least squares)."""
    many = np.array([getattr(timed, f"n_{curve.of}") for timed, _ in curve.points], float)
    seconds = np.array([median(timed.seconds) for timed, _ in curve.points])
    slope, start = np.polyfit(many, seconds, 1)
    return many, seconds, slope * many + start


def off_straight(curve: Curve) -> float:
    """How far a point lies from the straight line at most, as a share of the line's value there."""
    _, seconds, line = straight(curve)
    return float(np.abs(seconds / line - 1).max())


def plot(run: Run) -> bytes:
    """An SVG: what the fast engine costs by trials and by heads, and the lower bound. The same bytes for the same figures."""
    import matplotlib
    from matplotlib.figure import Figure

    words = {"trials": "trials", "heads": "heads, in matrices of the same size"}
    with matplotlib.rc_context({"svg.hashsalt": "sweep", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.5 * len(run.curves), 3.6), layout="constrained")
        for axes, curve in zip(np.atleast_1d(figure.subplots(1, len(run.curves))), run.curves, strict=True):
            many, seconds, line = straight(curve)
            bound = [median(products.seconds) for _, products in curve.points]
            axes.plot(many, line, color="tab:blue", linewidth=1, label="straight line")
            axes.plot(many, seconds, "o", color="tab:blue", label="engine fast")
            axes.plot(many, bound, "s", color="tab:grey", markersize=4, label="lower bound")
            axes.set(xlabel=words[curve.of], ylabel="seconds", xlim=(0, None), ylim=(0, None), xticks=many)
            axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


# ---------------------------------------------------------------- the page


def page(runs: Sequence[Run], plots: dict[tuple[str, str, str], str]) -> str:
    """Markdown. plots: the key of a run with curves -> the name of its plot."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("sweep_page.md.j2").render(
        runs=runs,
        plots=plots,
        labels=LIBRARIES,
        peers=("transformer_lens", "nnsight"),
        n_trials=max(run.n_trials[-1] for run in runs),
        summary=summary,
        title=title,
        columns=columns,
        rows=rows,
        ends=_ends,
        median=median,
        off_straight=off_straight,
        further_lines=further_lines,
        n_shots=sweep_world.N_SHOTS,
        counted=" ".join((sweep_costs.__doc__ or "").split("\n\n")[1].split()),
    )


@app.command()
def main(
    figures: Annotated[list[Path], typer.Argument(help="What sweep.py wrote.")],
    out: Annotated[Path, typer.Option(help="The page; its plots lie beside it.")] = DOCS / "performance.md",
) -> None:
    """Write the page and its plots."""
    runs = [run for path in figures for run in Figures.read(path).runs]
    curved = [run for run in runs if run.curves]
    names = [f"{out.stem}.svg", *(f"{out.stem}-{number}.svg" for number in range(2, len(curved) + 1))]
    plots = {run.key: name for run, name in zip(curved, names, strict=False)}
    for run in curved:
        write_bytes(out.with_name(plots[run.key]), plot(run))
    write_text(out, page(runs, plots))


if __name__ == "__main__":
    app()
