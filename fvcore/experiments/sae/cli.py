"""`fvcore pathways ...`: the steps by name or all of them, what they would cost, how far they are, and what stands around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import typer
from pydantic import Field

from fvcore.experiments.config import PRINTED, Json, add_command
from fvcore.experiments.sae import commands
from fvcore.experiments.sae.config import Info, PathwaysConfig, Training

if TYPE_CHECKING:
    from fvcore.experiments.progress import Progressing
    from fvcore.experiments.sae.schemas import Validation

app = typer.Typer(
    no_args_is_help=True,
    help="Pathways of sparse-autoencoder features: data audited, causes found by replay, tokens, chains, a report.",
)


class AuditCommand(PathwaysConfig):
    """How the data is judged; no part of the settings."""

    policy: Literal["default", "v4"] = Field(
        default="default", exclude=True, description="v4: as the plan says it, to the first error."
    )
    strict: bool = Field(default=False, exclude=True, description="A warning is a failure, too.")
    as_json: Json = PRINTED


class StepCommand(PathwaysConfig):
    """How a step is done."""

    resume: bool = Field(default=True, exclude=True, description="Go on where an earlier run stands.")
    force: bool = Field(
        default=False,
        exclude=True,
        description="Pass a closed gate, which is recorded, and take away results of other settings.",
    )
    limit_features: int | None = Field(
        default=None, ge=1, exclude=True, description="Only the first N features as targets."
    )


class RunCommand(StepCommand):
    """Which steps are done."""

    steps: str = Field(default="0-5", exclude=True, description="Numbers or names, such as 0-2 or discover,tokens.")
    dry_run: bool = Field(default=False, exclude=True, description="Say what it would cost, and compute nothing.")
    example: bool = Field(
        default=False, exclude=True, description="On data of the shipped model, made here; paths.out holds all of it."
    )
    strict: bool = Field(default=False, exclude=True, description="A warning of the audit is a failure, too.")
    as_json: Json = PRINTED


class DiscoverCommand(StepCommand):
    """How pathways are found, or judged once more."""

    rescore: bool = Field(
        default=False, exclude=True, description="Judge what is there by other thresholds, into a file beside it."
    )


class ShownCommand(PathwaysConfig):
    """How it is shown."""

    as_json: Json = PRINTED


def progress_of(settings: PathwaysConfig, each: str = "file") -> Progressing | None:
    """On the error stream, so that what is printed can be read by programs."""
    from fvcore import terminal
    from fvcore.experiments.progress import Shown

    kind = settings.runtime.progress
    drawn = {"auto": None, "bar": True, "log": False}.get(kind)
    return None if kind == "none" else Shown(terminal.console(stderr=True, force_terminal=drawn), unit=each)


def audit(command: AuditCommand) -> None:
    """Read every checkpoint and every response log to its end, and say what is wrong with them; exit status 1 on an error."""
    from fvcore.experiments.sae.run import Asked, run
    from fvcore.experiments.sae.steps import chosen, validation_of

    asked = Asked(resume=False, policy=command.policy)
    for _, (path,) in run(command, chosen("audit"), asked, partial(progress_of, command)):
        validation = validation_of(path)
        if command.as_json:
            _print(validation.model_dump(mode="json"))
        else:
            for line in (*lines(validation), f"wrote {path}"):
                commands.tell(line)
        _require_no_warning(validation, command.strict)


def _require_no_warning(validation: Validation, strict: bool) -> None:
    from fvcore.experiments.errors import StepError

    warned = [group.code for group in validation.issues if group.severity == "warning"]
    if strict and warned:
        raise StepError(f"--strict: the audit has warnings ({', '.join(warned)})")


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


def discover(command: DiscoverCommand) -> None:
    if command.rescore:
        from fvcore.experiments.sae.discover import rescore

        for path in rescore(command):
            commands.tell(f"wrote {path}")
    else:
        _do(command, command, "discover")


def step(name: str, said: str) -> Callable[[StepCommand], None]:
    """What brings one step to its end."""

    def work(command: StepCommand) -> None:
        _do(command, command, name)

    work.__doc__ = said
    return work


def _do(settings: PathwaysConfig, command: StepCommand, steps: str, strict: bool = False, quiet: bool = False) -> None:
    """Bring steps to their end, and name each file as it is there."""
    from fvcore.experiments.sae.audit import VALIDATION
    from fvcore.experiments.sae.run import Asked, run
    from fvcore.experiments.sae.steps import chosen, validation_of

    asked = Asked(resume=command.resume, force=command.force, limit=command.limit_features)
    for one, files in run(settings, chosen(steps), asked, partial(progress_of, settings)):
        for path in files if not quiet else []:
            commands.tell(f"wrote {path}")
        if one.name == "audit":
            _require_no_warning(validation_of(settings.paths.out / VALIDATION), strict)
        if one.name == "load" and not settings.prompts.texts():
            typer.echo("no contexts: the config has no prompts.safe and no prompts.risky", err=quiet)


def run_all(command: RunCommand) -> None:
    """All steps in order, each done once, with gates between them; exit status 1 where a step does not pass."""
    if command.dry_run:
        _plan(command)
        return
    from fvcore.experiments.sae.report import finding

    settings = _example(command) if command.example else command
    _do(settings, command, command.steps, command.strict, command.as_json)
    if command.as_json:
        from fvcore.experiments.sae.status import status

        _print(status(settings))
    elif found := finding(settings.paths.out):
        commands.tell(found)


def _example(command: RunCommand) -> PathwaysConfig:
    from fvcore.experiments.sae import example

    return example.prepare(command, progress_of(command, "layer"))


def _plan(command: RunCommand) -> None:
    from fvcore.experiments.sae import plan

    values = plan.Plan(command, command.limit_features).values()
    if command.as_json:
        _print(values)
    else:
        for line in plan.lines(values):
            commands.tell(line)


def show_status(command: ShownCommand) -> None:
    """How far each step is, and why: missing, partial, complete, stale, not passed."""
    from fvcore.experiments.sae.status import status

    rows = status(command)
    if command.as_json:
        _print(rows)
    for row in rows if not command.as_json else []:
        commands.tell(f"{row['step']}: {row['state']}" + (f" ({row['reason']})" if row["reason"] else ""))


def write_report(command: PathwaysConfig) -> None:
    """Draw the report once more from a run's files; no model is loaded."""
    from fvcore.experiments.sae import report

    for path in report.write(command.paths.out, command.integrate.report):
        commands.tell(f"wrote {path}")


STEPS = {
    "load": "Choose the strongest features of each layer, and make contexts of the prompts and the logged responses.",
    "prototype": "Follow one feature from end to end, with every check that a discovery stands on.",
    "discover": "Find by gradients which features cause which, and prove it by replay against two nulls.",
    "tokens": "Find the tokens that stand in more, or fewer, responses when a feature is patched.",
    "integrate": "Make chains, tokens and graphs of what was found, and the report.",
}

add_command(app, "run", RunCommand, run_all)
add_command(app, "audit", AuditCommand, audit)
discover.__doc__ = STEPS.pop("discover")
add_command(app, "discover", DiscoverCommand, discover)
for _name, _said in STEPS.items():
    add_command(app, _name, StepCommand, step(_name, _said))
add_command(app, "status", ShownCommand, show_status)
add_command(app, "report", PathwaysConfig, write_report)
add_command(app, "train-sae", Training, commands.train_sae)
add_command(app, "sae-info", Info, commands.sae_info)
app.command("selftest")(commands.selftest)
app.command("faults")(commands.show_faults)
app.command("init")(commands.init)
