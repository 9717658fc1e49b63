"""`fvparity ...`: plant the faults, merge reports, render them again. Verdicts are pytest's; these commands read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fvcore.formats import FormatError, write_text
from fvcore.gates import StageError
from fvcore.model.spec import ModelError
from pytest_fvparity.golden import commands as golden_cli
from pytest_fvparity.milestones import cli as milestones_cli
from pytest_fvparity.report.markdown import LEAST

if TYPE_CHECKING:
    from rich.table import Table

    from pytest_fvparity.report.history import Comparison
    from pytest_fvparity.report.report import Report
    from pytest_fvparity.selftest.run import Row

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The parity harness: its self-test and its reports.")
app.add_typer(golden_cli.app, name="golden")
app.command()(milestones_cli.milestone)

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Reports = Annotated[list[Path], typer.Argument(help="Report JSON files, or folders that hold some.")]

COLOURS = {"caught": "green", "wrong key": "red", "missed": "red", "not run here": "yellow"}


class Unusable(Exception):
    """The arguments do not fit together; the message names the way out."""


# ---------------------------------------------------------------- selftest


@app.command()
def selftest(
    ids: Annotated[list[str] | None, typer.Argument(help="Faults by id (default: all).")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table there, as Markdown.")] = None,
) -> None:
    """Plant every fault of the catalogue and check that the harness finds it at its key. Status 1 if it does not."""
    from pytest_fvparity.selftest.run import catalogue, counted, faults_markdown, red

    known = catalogue()
    if unknown := [id for id in ids or () if id not in known]:
        raise Unusable(f"no fault {', '.join(unknown)} in the catalogue; known: {', '.join(known)}")
    rows = _run_faults(list(dict.fromkeys(ids or known)))
    console.print(_fault_table(rows))
    console.print(counted(rows))
    if markdown:
        write_text(markdown, faults_markdown(rows, known) + "\n")
    if red(rows):
        raise typer.Exit(1)


def _run_faults(ids: Sequence[str]) -> list[Row]:
    """One line of progress a fault, on stderr."""
    from pytest_fvparity.selftest import run

    found: list[Row] = []
    for row in run.rows(
        ids, lambda fault: errors.print(f"[{len(found) + 1}/{len(ids)}] {fault.id}: ", end="", markup=False)
    ):
        found.append(row)
        errors.print(row.verdict, style=COLOURS[row.verdict])
    return found


def _fault_table(rows: Sequence[Row]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("id", "hazard", "expected", "seen", "verdict")
    for row in rows:
        verdict = f"[{COLOURS[row.verdict]}]{row.verdict}[/]"
        table.add_row(row.fault.id, *map(escape, (row.fault.hazard, row.fault.expected, row.seen_words)), verdict)
    return table


# ---------------------------------------------------------------- merge


@app.command()
def merge(
    reports: Reports,
    out: Annotated[Path, typer.Option(help="Folder for the merged reports.")],
) -> None:
    """Make one set of reports of several: shards by -k, by machine or by trials. Status 1 if a merged one is red."""
    from pytest_fvparity.report.merge import merge as merged_of
    from pytest_fvparity.report.render import read_report, write_all
    from pytest_fvparity.report.report import GREEN

    paths = _report_files(reports)
    merged = merged_of([(str(path), read_report(path)) for path in paths])
    write_all(merged, out)
    for report in merged:
        console.print(f"{report.dataset}/{report.fixed_trials_id}: {report.headline}", soft_wrap=True, markup=False)
    console.print(
        f"{len(paths)} report(s) merged into {len(merged)}: {out / 'summary.html'}", soft_wrap=True, markup=False
    )
    if any(report.overall_status not in GREEN for report in merged):
        raise typer.Exit(1)


# ---------------------------------------------------------------- render


@app.command()
def render(
    reports: Reports,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for all reports and their summary, laid out as a run does (default: each in place)."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Earlier report of the same trials, or a folder of some.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=LEAST, help="Print Markdown of at most so many bytes instead (a comment on GitHub: 65536)."),
    ] = None,
    annotations: Annotated[bool, typer.Option("--annotations", help="Print GitHub annotations instead.")] = False,
) -> None:
    """Write all files of reports again, from their JSON alone; or print one rendering for GitHub."""
    from pytest_fvparity.report.annotations import workflow_commands
    from pytest_fvparity.report.render import read_report

    if (budget is not None) + annotations + (out is not None) > 1:
        raise Unusable("--out, --budget and --annotations exclude one another: the last two print and write no file")
    found = {path: read_report(path) for path in _report_files(reports)}
    comparisons = _comparisons(list(found.values()), against) if against else {}
    if annotations:
        for line in workflow_commands(list(found.values())):
            typer.echo(line)
    elif budget is not None:
        _print_markdown(list(found.values()), budget, comparisons)
    else:
        _write(found, out, comparisons)


Comparisons = dict[tuple[str, str], "Comparison"]


def _print_markdown(reports: Sequence[Report], budget: int, comparisons: Comparisons) -> None:
    from pytest_fvparity.report.render import markdown

    if len(reports) > 1:
        raise Unusable(f"--budget prints one report, and {len(reports)} were given")
    (report,) = reports
    text = markdown(report, budget, comparisons.get((report.dataset, report.fixed_trials_id)))
    typer.echo(text.encode("utf-8", errors="backslashreplace"), nl=False)


def _write(found: dict[Path, Report], out: Path | None, comparisons: Comparisons) -> None:
    from pytest_fvparity.report.render import write_all, write_report

    _require_distinct(list(found), list(found.values()), out)
    if out:
        write_all(list(found.values()), out, comparisons)
        return
    for path, report in found.items():
        write_report(report, path.parent, comparisons.get((report.dataset, report.fixed_trials_id)))


def _require_distinct(paths: Sequence[Path], reports: Sequence[Report], out: Path | None) -> None:
    """Two reports must not be written over one another."""
    places = [str(path.parent) for path in paths]
    if out:
        places = [f"{out}/{report.dataset}/{report.fixed_trials_id}" for report in reports]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise Unusable(f"two reports would be written to {twice}; make one of them with `fvparity merge`, or name one")


def _comparisons(reports: Sequence[Report], against: Path) -> Comparisons:
    from pytest_fvparity.report.history import compared
    from pytest_fvparity.report.render import read_report

    earlier = {(r.dataset, r.fixed_trials_id): r for r in map(read_report, _report_files([against]))}
    found = {(r.dataset, r.fixed_trials_id): r for r in reports}
    common = {name: compared(report, earlier[name]) for name, report in found.items() if name in earlier}
    if not common:
        names = " and ".join(", ".join(f"{d}/{i}" for d, i in side) for side in (found, earlier))
        raise Unusable(f"--against {against}: no report of the same trials ({names})")
    return common


def _report_files(paths: Sequence[Path]) -> list[Path]:
    """Files as given, once each; of a folder, every report under it."""
    from pytest_fvparity.report.render import REPORT

    found: dict[Path, None] = {}
    for path in paths:
        inside = sorted(path.rglob(f"{REPORT}.json")) if path.is_dir() else [path]
        if not inside:
            raise Unusable(f"{path}: no {REPORT}.json under this folder")
        found |= dict.fromkeys(inside)
    return list(found)


def main() -> None:
    """The console script: an expected error is one message and exit status 2, not a traceback."""
    from pytest_fvparity.report.merge import Contradiction

    try:
        app()
    except (FormatError, ModelError, StageError, Contradiction, Unusable) as error:
        errors.print(f"fvparity: {error}", style="red", soft_wrap=True, markup=False)
        raise SystemExit(2) from None
