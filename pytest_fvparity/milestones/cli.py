"""`fvparity milestone m0 ... m7`: the antonym plan, a command a milestone, and its transfer to a relation."""

from collections import Counter
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from fvcore import exits
from fvcore.escapes import line
from fvcore.formats import FormatError
from pytest_fvparity.golden.commands import say
from pytest_fvparity.milestones.setup import Setup

NAMES = ("M0", "M1", "M2", "M3", "M4", "M5", "M6")
TRANSFER = "M7"

Which = Annotated[str, typer.Argument(help="m0 to m7, or all in order: M7 with --relation-root.", metavar="m0..m7|all")]


def milestone(which: Which, **options: Any) -> None:
    """Run a milestone of the antonym plan and check its pass criterion. Status 1 if it does not meet it."""
    from pytest_fvparity.milestones.run import run_all

    rest = (TRANSFER,) if options["relation_root"] else ()
    names = (*NAMES, *rest) if which.lower() == "all" else (which.upper(),)
    if not set(names) <= {*NAMES, TRANSFER}:
        raise FormatError(f"no milestone {which!r}; expected {', '.join(NAMES)}, {TRANSFER} or all")
    first = ""
    for name, outcome in run_all(names, Setup(**options)):
        first = first or ("" if outcome.passed else f"{name} failed first: {outcome.message}")
        verdict = typer.style("PASS", fg="green") if outcome.passed else typer.style("FAIL", fg="red")
        typer.echo(f"{name} {verdict} {line(outcome.message)}", color=exits.colour())
        say(*(f"   {file}" for file in _told(outcome.files)))
    if first:
        say(first if len(names) > 1 else "")
        raise typer.Exit(exits.FAILED)


# typer reads a command's options off its signature: here they are the fields of the setup.
_PARAMETERS = [
    Parameter("which", Parameter.KEYWORD_ONLY, annotation=Which),
    *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in signature(Setup, eval_str=True).parameters.values()),
]
milestone.__signature__ = Signature(_PARAMETERS)  # type: ignore[attr-defined]
milestone.__annotations__ = {parameter.name: parameter.annotation for parameter in _PARAMETERS}

MANY = 8


def _told(files: list[Path]) -> list[str]:
    """The files, or how many there are of each folder, from the current one where they lie in it."""
    here = Path.cwd()
    shown = [path.relative_to(here) if path.is_relative_to(here) else path for path in files]
    if len(shown) <= MANY:
        return list(map(str, shown))
    folders = Counter(path.parent for path in shown)
    return [f"{folder}: {n} file{'s' if n > 1 else ''}" for folder, n in folders.items()]
