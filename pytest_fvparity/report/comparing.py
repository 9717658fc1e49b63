"""`fvparity compare`: reports of now beside reports of before, for a person, for a program, and as an exit status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fvcore import exits, terminal

if TYPE_CHECKING:
    from pytest_fvparity.report.history import Comparison

STATUS = {"new": exits.FAILED, "not judged": exits.UNJUDGED, "nothing new": exits.PASSED}


def compare(
    before: Annotated[Path, typer.Argument(help="Report JSON file, or a folder of reports.")],
    now: Annotated[Path, typer.Argument(help="The same of a later run.")],
    drift: Annotated[
        float, typer.Option(min=1, help="Tell of what agrees and has come so many times nearer to its limit.")
    ] = 10.0,
    fail_on_drift: Annotated[bool, typer.Option("--fail-on-drift", help="Status 1 for such a drift too.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write it there too, in the size of a comment.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """What is new, fixed, or drifts from one run to a later one. Status 1 if something is red that was not, 3 if a key or trials
    that had a verdict have none."""
    from fvcore.formats import json_text, write_text
    from pytest_fvparity.report import render
    from pytest_fvparity.report.history import all_compared
    from pytest_fvparity.report.markdown import COMMENT, within

    later, earlier = (list(render.read_all([path]).values()) for path in (now, before))
    found = all_compared(later, earlier, drift)
    value = found.model_dump(mode="json")
    if markdown:
        text = render.environment().get_template("compare.md.j2").render(value)
        write_text(markdown, within(text, COMMENT, "`fvparity compare` prints the rest."))
    if as_json:
        typer.echo(json_text(value))
    else:
        for one in found.reports:
            _print(one)
        exits.tell(*(f"{word}: {name}" for word in ("gone", "added") for name in value[word]))
        exits.tell(found.sentence)
    drifted = fail_on_drift and any(one.drifts for one in found.reports)
    if status := exits.FAILED if drifted else STATUS[found.verdict]:
        raise typer.Exit(status)


def _print(one: Comparison) -> None:
    exits.tell(f"{one.name}: {one.sentence}")
    exits.tell(*(f"  {name}: {before} -> {now}" for name, (before, now) in one.changed.items()))
    if any(row.change != "same" for row in one.keys):
        shares = ((row, _shares(row.used_before, row.used_now)) for row in one.keys)
        rows: list[dict[str, Any]] = [
            {
                "check key": row.key,
                "change": row.change,
                "before": row.before or "-",
                "now": row.now or "-",
                "used": used,
            }
            for row, used in shares
        ]
        terminal.show(rows, whole="check key")
    for row in one.drifts:
        exits.tell(f"  drift: {row.key} {row.leaf}, of its tolerance {_shares(row.used_before, row.used_now)}")


def _shares(before: object, now: object) -> str:
    """Of a tolerance, as the pages write them."""
    from pytest_fvparity.report.render import environment

    written = environment().filters["share"]
    return "" if before is None is now else f"{written(before)} -> {written(now)}"
