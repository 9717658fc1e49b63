"""`fvparity golden ...`: look after goldens. Nothing here removes one; what could be is printed for a person to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fvcore.formats import FormatError
from fvcore.gates import StageError

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
            _say(f"{row.path}: {row.state}: {row.what}")
        if row.remove:
            _say(f"  {row.remove}")
    _say(f"{len(rows)} golden(s)" if rows else "no golden")


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


# ---------------------------------------------------------------- split and fetch

Place = Annotated[Path, typer.Argument(help="A golden's own folder: golden/<dataset>/<trials>/<profile>.")]


@app.command()
def split(
    golden: Place,
    full_to: Annotated[str, typer.Option(help="Folder or URL (file://, s3://, hf://, ...) to store the full tier at.")],
    url: Annotated[
        str | None, typer.Option(help="URL that the manifest names (default: --full-to, if it is one).")
    ] = None,
) -> None:
    """Keep a core that fits git, and store the large tensors elsewhere."""
    from pytest_fvparity.golden_tiers import CORE_LIMIT
    from pytest_fvparity.golden_tiers import split as split_golden

    with _expected():
        sizes = split_golden(golden, full_to, url)
    large = f" (more than {_size(CORE_LIMIT)})" if sizes.core > CORE_LIMIT else ""
    _say(f"{golden}: core {_size(sizes.core)}{large}, full {_size(sizes.full)} at {full_to}")


@app.command()
def fetch(
    golden: Place, url: Annotated[str | None, typer.Option(help="Where to look instead of the manifest's URL.")] = None
) -> None:
    """Bring the full tier beside the core; every file is checked by size and sha256 before it gets its name."""
    from pytest_fvparity.golden_tiers import fetch as fetch_golden

    with _expected():
        fetched = fetch_golden(golden, url)
    for file in fetched:
        _say(f"{file}: {_size(file.stat().st_size)}, sha256 as recorded")
    if not fetched:
        _say(f"{golden}: all of it is here")


@contextmanager
def _expected() -> Iterator[None]:
    """What is wrong with a golden is one message, like what is wrong with a file."""
    from fvcore.models import ModelError

    try:
        yield
    except (StageError, ModelError) as error:
        raise FormatError(str(error)) from error


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.0f} KiB"
