"""`fvcore pathways audit` and `fvcore pathways load`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import Field

from fvcore import exits
from fvcore.experiments.config import Option, add_command
from fvcore.experiments.sae.config import PathwaysConfig

if TYPE_CHECKING:
    from fvcore.experiments.progress import Progressing
    from fvcore.experiments.sae.schemas import Validation

app = typer.Typer(
    no_args_is_help=True,
    help="Pathways of sparse-autoencoder features: their data audited, features and contexts chosen.",
)


class AuditCommand(PathwaysConfig):
    """How the data is judged; no part of the settings."""

    policy: Literal["default", "v4"] = Field(
        default="default", exclude=True, description="v4: as the plan says it, to the first error."
    )
    strict: bool = Field(default=False, exclude=True, description="A warning is a failure, too.")
    as_json: Annotated[bool, Option(flag="json")] = Field(
        default=False, exclude=True, description="Print what is written, and nothing else."
    )


class LoadCommand(PathwaysConfig):
    force: bool = Field(default=False, exclude=True, description="Go on with data that did not pass; this is recorded.")


def progress_of(settings: PathwaysConfig) -> Progressing | None:
    """On the error stream, so that what is printed can be read by programs."""
    from rich.console import Console

    from fvcore.experiments.progress import Shown

    kind = settings.runtime.progress
    terminal = {"auto": None, "bar": True, "log": False}.get(kind)
    return None if kind == "none" else Shown(Console(stderr=True, force_terminal=terminal), unit="file")


def audit(command: AuditCommand) -> None:
    """Read every checkpoint and every response log to its end, and say what is wrong with them; exit status 1 on an error."""
    from fvcore.experiments.folder import locked
    from fvcore.experiments.sae import audit as step

    with locked(command.paths.out):
        validation = step.audit(command, command.policy, progress_of(command))
        path = step.write(command, validation)
    if command.as_json:
        from fvcore.formats import json_text

        typer.echo(json_text(validation.model_dump(mode="json")))
    else:
        for line in (*lines(validation), f"wrote {path}"):
            exits.tell(line)
    warned = command.strict and any(group.severity == "warning" for group in validation.issues)
    if warned or not validation.validated:
        raise typer.Exit(exits.FAILED)


def lines(validation: Validation) -> Iterator[str]:
    """What an audit found, in words: counts, then every code with its first places."""
    files = validation.files
    yield f"{files['checkpoints']} checkpoints, {validation.checkpoints['unique_features']} features"
    yield f"{files['response_logs']} response logs, {validation.total_trials:,} trials of {validation.total_response_features} features"
    yield (
        f"{validation.joinable_features} of {validation.total_causal_features} causal features stand in the logs "
        f"({validation.join_rate_percent:.1f} %)"
    )
    for group in validation.issues:
        yield f"{group.severity} {group.code}: {group.count:,}"
        yield from (f"  {row.message}" for row in group.first)
        if group.count > group.listed:
            yield f"  ... and {group.count - group.listed:,} more"
    yield "the data passes" if validation.validated else "the data does not pass"


def load(command: LoadCommand) -> None:
    """Choose the strongest features of each layer, and make contexts of the prompts and the logged responses."""
    from fvcore.experiments.sae.load import load as step

    for path in step(command, command.force, progress_of(command)):
        exits.tell(f"wrote {path}")
    if not command.prompts.texts():
        exits.tell("no contexts: the config has no prompts.safe and no prompts.risky")


add_command(app, "audit", AuditCommand, audit)
add_command(app, "load", LoadCommand, load)
