"""What a command's exit status says, in one table, and which errors are one line of its own."""

import os
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

from fvcore import escapes

PASSED = 0
FAILED = 1
"""A gate or a step failed."""
USAGE = 2
"""Wrong use, a wrong config, an unusable file or model, or a folder that holds results of other settings."""
UNJUDGED = 3
"""It could not be judged."""
INTERRUPTED = 130


LOUDNESS = ContextVar("LOUDNESS", default=0)
"""-1: results and errors alone; 1: errors with where they came from."""


class Expected(Exception):
    """One line and no traceback: it says what is wrong outside of the program. `status` is what a command ends with."""

    status = USAGE


def in_one_line(said: object) -> str:
    """The words of an error, or of another text, whatever white space stands between them."""
    return " ".join(str(said).split())


def system_words(error: Exception) -> str:
    """What the system says of a file, without its name."""
    return getattr(error, "strerror", None) or in_one_line(error) or type(error).__name__


def run(program: str, app: Callable[[], object], tell_error: Callable[[str], None] | None = None) -> None:
    """A console script: what is wrong outside of the program is one line and its exit status, not a traceback."""
    tell_error = tell_error or partial(say, program=program)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a locale of few characters stops no command
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Expected as error:
        if LOUDNESS.get() > 0:
            traceback.print_exc()
        tell_error(str(error))
        raise SystemExit(error.status) from None
    except OSError as error:  # what no room of its own has said better
        tell_error(f"{error.filename or 'the system'}: {system_words(error)}")
        raise SystemExit(USAGE) from None
    except MemoryError:
        tell_error("there is not enough memory for this; ask for less, or on a larger machine")
        raise SystemExit(FAILED) from None


def say(text: str, program: str = "fvcore") -> None:
    """One red line, whatever the text holds."""
    import typer

    typer.secho(f"{program}: {escapes.line(in_one_line(text))}", fg="red", err=True, color=colour())


def colour() -> bool | None:
    """None: where it is a terminal; never where NO_COLOR is set."""
    return False if os.environ.get("NO_COLOR") else None


def cells(*values: object) -> list[str]:
    """A row of a table of rich, whatever the values hold."""
    return [escapes.markup(value) for value in values]


def tell(*texts: object, err: bool = False) -> None:
    """A line for each text, whatever it holds."""
    import typer

    for text in texts:
        typer.echo(escapes.line(text), err=err)


def note(*texts: object, err: bool = False) -> None:
    """The same of what is no result, and unsaid where quiet was asked for."""
    if LOUDNESS.get() >= 0:
        tell(*texts, err=err)
