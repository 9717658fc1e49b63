"""`fvcore pathways ...`: the steps by name or all of them, what they would cost, how far they are, and what stands around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from fvcore import exits
from fvcore.experiments.config import Option, add_command
from fvcore.experiments.sae.commands import sae_info, train_sae
from fvcore.experiments.sae.config import Info, PathwaysConfig, Training

if TYPE_CHECKING:
    from fvcore.experiments.progress import Progressing
    from fvcore.experiments.sae.schemas import Validation

app = typer.Typer(
    no_args_is_help=True,
    help="Pathways of sparse-autoencoder features: data audited, causes found by replay, tokens, chains, a report.",
)


class Command(PathwaysConfig):
    """How a step is done; no part of its settings."""

    resume: bool = Field(default=True, exclude=True, description="Go on where an earlier run stands.")
    force: bool = Field(
        default=False,
        exclude=True,
        description="Pass a closed gate, which is recorded, and take away results of other settings.",
    )
    as_json: Annotated[bool, Option(flag="json")] = Field(
        default=False, exclude=True, description="Print JSON, and nothing else."
    )


class AuditCommand(PathwaysConfig):
    """How the data is judged."""

    policy: Literal["default", "v4"] = Field(
        default="default", exclude=True, description="v4: as the plan says it, to the first error."
    )
    strict: bool = Field(default=False, exclude=True, description="A warning is a failure, too.")
    as_json: Annotated[bool, Option(flag="json")] = Field(
        default=False, exclude=True, description="Print what is written, and nothing else."
    )


def progress_of(settings: PathwaysConfig) -> Progressing | None:
    """On the error stream, so that what is printed can be read by programs."""
    from rich.console import Console

    from fvcore.experiments.progress import Shown

    kind = settings.runtime.progress
    terminal = {"auto": None, "bar": True, "log": False}.get(kind)
    return None if kind == "none" else Shown(Console(stderr=True, force_terminal=terminal), unit="file")


def audit(command: AuditCommand) -> None:
    """Read every checkpoint and every response log to its end, and say what is wrong with them; exit status 1 on an error."""
    from fvcore.experiments.sae.run import Asked, run
    from fvcore.experiments.sae.steps import chosen, validation_of

    for _, (path,) in run(command, chosen("audit"), Asked(resume=False, policy=command.policy), progress_of(command)):
        validation = validation_of(path)
        if command.as_json:
            _print(validation.model_dump(mode="json"))
        else:
            for line in (*lines(validation), f"wrote {path}"):
                typer.echo(line)
    if command.strict and any(group.severity == "warning" for group in validation.issues):
        raise typer.Exit(exits.FAILED)


def _print(value: Any) -> None:
    from fvcore.formats import json_text

    typer.echo(json_text(value))


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


def load(command: Command) -> None:
    """Choose the strongest features of each layer, and make contexts of the prompts and the logged responses."""
    do(command, "load")
    if not command.prompts.texts():
        typer.echo("no contexts: the config has no prompts.safe and no prompts.risky")


def do(command: Command, steps: str, **asked: Any) -> None:
    """Bring steps to their end, and name each file as it is there."""
    from fvcore.experiments.sae.run import Asked, run
    from fvcore.experiments.sae.steps import chosen

    how = Asked(resume=command.resume, force=command.force, **asked)
    for _, files in run(command, chosen(steps), how, progress_of(command)):
        for path in files:
            typer.echo(f"wrote {path}")


add_command(app, "audit", AuditCommand, audit)
add_command(app, "load", Command, load)
add_command(app, "train-sae", Training, train_sae)
add_command(app, "sae-info", Info, sae_info)
