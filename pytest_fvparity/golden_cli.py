"""`fvparity golden ...`: look after goldens. Nothing here removes one; what could be is printed for a person to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

    from pytest_fvparity.golden_list import Row

app = typer.Typer(no_args_is_help=True, help="Look after goldens: list, split in two tiers, fetch, export, import.")

console = Console(highlight=False)

COLOURS = {"current": "green", "stale": "red", "damaged": "red", "unused": "yellow", "leftover": "yellow"}


# ---------------------------------------------------------------- list


@app.command("list")
def list_goldens(
    root: Annotated[list[Path] | None, typer.Option(help="Folder of goldens (default: golden).")] = None,
    trials: Annotated[
        list[Path] | None, typer.Option(help="Folder of trials files (default: datasets/fixed_trials).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    strict: Annotated[bool, typer.Option(help="Status 1 if a golden is stale or damaged.")] = False,
) -> None:
    """Every golden: current, stale, damaged or unused, and what killed recordings left. Nothing is removed."""
    import json

    from pytest_fvparity import golden_list

    known = golden_list.trials_under(trials or [Path("datasets", "fixed_trials")])
    rows = golden_list.rows(root or [Path("golden")], known)
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in rows], indent=2))
    else:
        _print(rows)
    if strict and any(row.state in {"stale", "damaged"} for row in rows):
        raise typer.Exit(1)


def _print(rows: Sequence[Row]) -> None:
    console.print(_table(rows))
    for row in rows:
        if row.what:
            console.print(f"{row.path}: {row.state}: {row.what}", soft_wrap=True, markup=False)
        if row.remove:
            console.print(f"  {row.remove}", soft_wrap=True, markup=False)
    console.print(f"{len(rows)} golden(s)" if rows else "no golden", markup=False)


def _table(rows: Sequence[Row]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from pytest_fvparity.manifest import SCHEMA_VERSION

    table = Table()
    table.add_column("golden", overflow="fold")
    for name in ("model", "schema", "core", "full", "state"):
        table.add_column(name)
    for row in rows:
        schema = "-" if row.schema_version is None else str(row.schema_version)
        behind = SCHEMA_VERSION - row.schema_version if row.schema_version is not None else 0
        full = f"{_size(row.full_bytes_here)} of {_size(row.full_bytes)}" if row.full_bytes else "-"
        table.add_row(
            escape(row.path),
            escape(row.model or "-"),
            f"{schema} ({behind} behind)" if behind > 0 else schema,
            _size(row.core_bytes),
            full,
            f"[{COLOURS[row.state]}]{row.state}[/]",
        )
    return table


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.0f} KiB"
