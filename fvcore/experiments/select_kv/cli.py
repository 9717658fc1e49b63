"""`fvcore select-kv`, and the plan's spelling of it, `python -m cedkv_mvp --phase 2`, which has the plan's exit status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import AfterValidator, Field

from fvcore import exits, terminal
from fvcore.escapes import line
from fvcore.experiments.config import Option, add_command
from fvcore.experiments.select_kv import files
from fvcore.experiments.select_kv.config import PLAN, TINY, Phase2, SelectKVConfig

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.run import Result

PLAN_STATUS = {exits.FAILED: 2, exits.USAGE: 4}
"""The plan's command says these in its own way; every other status is the project's."""


class Command(SelectKVConfig):
    """What a run is asked for, and where it goes; the latter is no part of its settings."""

    run_id: str | None = Field(
        default=None, exclude=True, description="The run's folder in runtime.output_root (default: time and commit)."
    )
    report_path: Path | None = Field(default=None, exclude=True, description="Write another copy of the report here.")
    overwrite: bool = Field(default=False, exclude=True, description="Begin anew in a folder that holds a run.")
    strict_hf: Annotated[bool, Option(flag="phase2_strict_hf")] = Field(
        default=False, exclude=True, description="Force runtime.allow_mock_fallback to false."
    )

    def resolve(self) -> Phase2:
        settings = super().resolve()
        return settings.changed({"runtime.allow_mock_fallback": False}) if self.strict_hf else settings


def run(command: Command) -> None:
    """Carry what a demonstration says by a few of its tokens, and judge what that does to queries and to other prompts."""
    from fvcore.experiments.progress import Shown
    from fvcore.experiments.select_kv.report import headline
    from fvcore.experiments.select_kv.run import run_phase2

    settings = command.resolve()
    for warning in settings.warnings:
        typer.echo(line(f"warning: {warning}"), err=True)
    result = run_phase2(
        settings,
        run_id=command.run_id,
        overwrite=command.overwrite,
        report_path=command.report_path,
        progress=Shown(terminal.console(stderr=True)),
    )
    for key, value in _lines(settings, result, command.report_path).items():
        exits.tell(f"{key}={value}")
    if "error" in result.report:
        exits.say(result.report["error"])
    elif "on" in result.report:
        exits.tell(headline(result.report))
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _lines(settings: Phase2, result: Result, report_path: Path | None) -> dict[str, Any]:
    """The plan's lines, and the first thing that failed."""
    report = result.report
    gates = report.get("gates", {}).values()
    failed = [check for gate in gates for check in gate["failed_checks"]]
    if report["status"] == "fail" and not failed:
        failed = [report["failure_reason"]]
    return {
        "run_id": result.run_id,
        "output_dir": result.folder,
        "gateA_pass": result.gateA_pass,
        "gateB_pass": result.gateB_pass,
        "select_mode": settings.select.mode,
        "positioning_mode": report.get("positioning_mode", settings.injection.positioning_mode),
        "report_path": report_path or result.folder / files.REPORT,
    } | ({"failed_checks": ",".join(failed)} if failed else {})


def register(app: typer.Typer, name: str = "select-kv", default: Path = TINY, kind: type[Command] = Command) -> None:
    said = f"{run.__doc__}\n\nWithout --config it is the shipped {default.name}, whose values come before the defaults below."
    add_command(app, name, kind, run, said, fixed={"run": {}}, default=default)


def show_faults(
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Carry a state wrongly in every known way; exit status 1 if one is not caught by what must catch it."""
    from fvcore.experiments.fault_table import show
    from fvcore.experiments.select_kv import faults

    show(faults.rows(), lambda row: row.number, faults.write, markdown, as_json)


def _second(phase: int) -> int:
    if phase != 2:
        raise ValueError("expected 2, Select-KV; the other phases are not here")
    return phase


class PlanCommand(Command):
    """The plan's command is for all phases, of which this is one."""

    phase: Annotated[int, AfterValidator(_second)] = Field(default=2, exclude=True, description="2: Select-KV.")


def plan_main() -> None:
    """`python -m cedkv_mvp`: 0 both gates passed, 2 one did not, 3 could not be judged, 4 wrong use or settings."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    register(app, "cedkv_mvp", PLAN, PlanCommand)
    try:
        exits.run("cedkv_mvp", app)
    except SystemExit as end:
        status = end.code
    raise SystemExit(PLAN_STATUS.get(status, status) if isinstance(status, int) else status)
