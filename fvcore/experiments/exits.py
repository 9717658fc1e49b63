"""What a command's exit status says, in one table, and which error is which."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from fvcore.experiments.errors import FolderInUse, OtherSettings, StepError
from fvcore.formats import FormatError
from fvcore.model.spec import ModelError

PASSED = 0
FAILED = 1
"""A gate or a step failed."""
USAGE = 2
"""Wrong use, a wrong config, an unusable file or model, or a folder that holds results of other settings."""
UNJUDGED = 3
"""It could not be judged."""
INTERRUPTED = 130

EXPECTED = (FormatError, ModelError, StepError)
"""Errors that are one line and no traceback: they say what is wrong outside of the program."""


def of(error: BaseException) -> int:
    """The status that an error ends a command with."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return FAILED if isinstance(error, StepError) and not isinstance(error, OtherSettings | FolderInUse) else USAGE


@contextmanager
def told() -> Iterator[None]:
    """Around a command's work: what stops a step, or a person, is one red line and its status.

    An unusable setting, file or model is told by `fvcore.cli.main`, as it may come up before there is any work.
    """
    try:
        yield
    except (FormatError, ModelError):
        raise
    except KeyboardInterrupt as error:
        say("interrupted; started again, it goes on where it stands")
        raise typer.Exit(of(error)) from None
    except (StepError, RuntimeError) as error:  # torch says a wrong shape, and we a silent hook, by RuntimeError
        say(str(error))
        raise typer.Exit(of(error) if isinstance(error, StepError) else FAILED) from None


def say(text: str) -> None:
    """One red line, whatever the text holds."""
    line = f"fvcore: {' '.join(text.split())}"
    Console(stderr=True, highlight=False).print(line, style="red", soft_wrap=True, markup=False)
