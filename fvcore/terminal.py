"""What commands have in common on a terminal: --version, -q and -v, completion, help of any width, a table or JSON."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from typer.core import TyperGroup

from fvcore import __version__, escapes, exits
from fvcore.exits import FAILED as FAILED
from fvcore.exits import note as note
from fvcore.exits import run as run
from fvcore.exits import say as say
from fvcore.exits import tell as tell
from fvcore.formats import json_text

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]

LOUDNESS = {"-q": -1, "--quiet": -1, "-v": 1, "--verbose": 1}


class _Program(TyperGroup):
    """-q and -v count wherever they stand on the line, as far as a `--`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        loud = [word for word in args[:end] if word in LOUDNESS]
        return super().parse_args(ctx, [*loud, *(word for word in args[:end] if word not in LOUDNESS), *args[end:]])


def program(name: str, help: str) -> typer.Typer:
    """The commands of a program. Their help is plain text, so that names of options stay whole whatever the width."""
    app = typer.Typer(name=name, cls=_Program, no_args_is_help=True, help=help, rich_markup_mode=None)

    def tell_versions(asked: bool) -> None:
        if asked:
            exits.tell(f"{name} {versions()}")
            raise typer.Exit

    @app.callback()
    def _common(
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=tell_versions, is_eager=True, help="Say which version this is, and end."
            ),
        ] = False,
        quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Results and errors alone, no progress.")] = False,
        verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Errors with where they came from.")] = False,
    ) -> None:
        exits.LOUDNESS.set(verbose - quiet)

    return app


def versions() -> str:
    """This project's version, and those of what numbers depend on; nothing of it is imported."""
    known = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    said = ", ".join(f"{name} {version}" for name, version in {"python": platform.python_version(), **known}.items())
    return f"{__version__} ({said})"


def console(stderr: bool = False, force_terminal: bool | None = None) -> Console:
    """Where progress is shown; nowhere where quiet was asked for."""
    quiet = exits.LOUDNESS.get() < 0
    return Console(stderr=stderr, force_terminal=force_terminal, highlight=False, quiet=quiet)


def show(rows: Sequence[Mapping[str, Any]], as_json: bool = False, title: str = "", whole: str = "") -> None:
    """Rows of one set of columns as a table, or as JSON. whole: a column that is never broken."""
    if as_json:
        typer.echo(json_text(list(rows)))
    elif rows:
        columns = (Column(name, overflow="fold", no_wrap=name == whole) for name in rows[0])
        table = Table(*columns, title=escapes.markup(title) or None, title_justify="left", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*exits.cells(*row.values()))
        Console(highlight=False).print(table)
