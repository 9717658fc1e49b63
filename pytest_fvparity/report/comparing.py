"""`fvparity compare`: reports of now beside reports of before, for a person, for a program, and as an exit status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fvcore import exits

if TYPE_CHECKING:
    from rich.table import Table

    from pytest_fvparity.report.history import Comparison

STATUS = {"new": exits.FAILED, "not judged": exits.UNJUDGED, "nothing new": exits.PASSED}
COLOURS = {"new": "red", "still failing": "red", "fixed": "green", "not judged": "yellow", "gone": "yellow"}


def compare(
    before: Annotated[Path, typer.Argument(help="Report JSON file, or a folder of reports.")],
    now: Annotated[Path, typer.Argument(help="The same of a later run.")],
    drift: Annotated[
        float, typer.Option(min=1, help="Tell of what agrees and has come so many times nearer to its limit.")
    ] = 10.0,
    fail_on_drift: Annotated[bool, typer.Option("--fail-on-drift", help="Status 1 for such a drift too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead, for a comment.")] = False,
) -> None:
    """What is new, fixed, or drifts from one run to a later one. Status 1 if something is red that was not, 3 if a key or trials
    that had a verdict have none."""
    from fvcore.formats import json_text
    from pytest_fvparity.report import render
    from pytest_fvparity.report.history import all_compared
    from pytest_fvparity.report.markdown import COMMENT, within

    if as_json and as_markdown:
        raise exits.Expected("--json and --markdown exclude one another: each is all that is printed")
    later, earlier = (list(render.read_all([path]).values()) for path in (now, before))
    found = all_compared(later, earlier, drift)
    value = found.model_dump(mode="json")
    if as_json:
        typer.echo(json_text(value))
    elif as_markdown:
        text = render.environment().get_template("compare.md.j2").render(value)
        typer.echo(within(text, COMMENT, "`fvparity compare` prints the rest.").encode(errors="backslashreplace"))
    else:
        for one in found.reports:
            _print(one)
        exits.tell(
            *(f"{word}: {name}" for word, names in (("gone", found.gone), ("added", found.added)) for name in names)
        )
        exits.tell(found.sentence)
    drifted = fail_on_drift and any(one.drifts for one in found.reports)
    if status := exits.FAILED if drifted else STATUS[found.verdict]:
        raise typer.Exit(status)


def _print(one: Comparison) -> None:
    exits.tell(f"{one.name}: {one.sentence}")
    exits.tell(*(f"  {name}: {before} -> {now}" for name, (before, now) in one.changed.items()))
    if any(row.change != "same" for row in one.keys):
        Console(highlight=False).print(_table(one))
    for row in one.drifts:
        exits.tell(f"  drift: {row.key} {row.leaf}, of its tolerance {_shares(row.used_before, row.used_now)}")


def _table(one: Comparison) -> Table:
    from rich.table import Column, Table

    table = Table(Column("check key", no_wrap=True), "change", "before", "now", "of its tolerance", box=None)
    for row in one.keys:
        used = _shares(row.used_before, row.used_now)
        cells = exits.cells(row.key, row.change, row.before or "-", row.now or "-", used)
        table.add_row(*cells, style=COLOURS.get(row.change, ""))
    return table


def _shares(before: object, now: object) -> str:
    """As the pages write them."""
    from pytest_fvparity.report.render import environment

    written = environment().filters["share"]
    return "" if before is None is now else f"{written(before)} -> {written(now)}"
