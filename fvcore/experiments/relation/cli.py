"""`fvcore relation ...`: a run over the q_ids of a relation file, its steps one by one, its state and its report."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import typer

from fvcore import terminal
from fvcore.experiments.config import PRINTED, ConfigError, Json, add_command, experiment
from fvcore.experiments.relation.config import RelationConfig
from fvcore.experiments.steps.settings import STEP_COMMANDS, chosen_steps
from fvcore.formats import FormatError

if TYPE_CHECKING:
    from fvcore.experiments.workers import Workers
    from fvcore.model.model import LanguageModel


def run(config: RelationConfig) -> None:
    """Every q_id through every step; what is completed is not run again. Exit status 1 if a q_id failed."""
    if config.steps:
        run_steps(config, chosen_steps(config.steps, config.pictures))
        return
    from fvcore.experiments.progress import Bar
    from fvcore.experiments.relation import data, files, report
    from fvcore.experiments.relation.run import ENDED, units_of
    from fvcore.experiments.relation.run import run as run_relation
    from fvcore.experiments.workers import Local, ray_workers

    relation, root = data.read(config.dataset), config.root
    units = units_of(relation, root, config, config.q)
    if config.ray is not None:
        if config.threads is not None:
            raise ConfigError("--threads: with --ray an actor has as many threads as CPUs; give --ray-cpus")
        workers: AbstractContextManager[Workers[LanguageModel]]
        workers = ray_workers(config.ray, config.loader(config.seed), config.device, config.ray_cpus)
        bar = Bar(terminal.console(), {unit.name: unit.n_rows(1, 1) for unit in units})
    else:
        lm = config.load(config.seed)
        bar = Bar(terminal.console(), {unit.name: unit.n_rows(lm.n_layers, lm.n_heads) for unit in units})
        workers = nullcontext(Local(lm, bar.of))
    with workers as computing, bar.progress:
        summary = run_relation(relation, root, config, computing, config.q, config.stop_on_error, bar.ended)
    counts = ", ".join(f"{len(summary.q_ids(state))} {state}" for state in ENDED)
    terminal.tell(f"{counts}{f'; stopped {summary.stopped}' if summary.stopped else ''}, in {root}")
    table = report.rows(root)
    terminal.tell(*filter(None, map(report.sentence, table)), report.headline(table))
    if config.pictures:
        terminal.tell(f"report: {root / files.REPORT}")
    if summary.q_ids("failed"):
        terminal.say(f"see {root / files.FAILURES}", "fvcore relation")
        raise typer.Exit(terminal.FAILED)


def run_steps(config: RelationConfig, steps: list[str]) -> None:
    """Some steps in the folder of each q_id; its status stands for whole runs alone and stays as it is."""
    if steps == ["heatmap"]:
        draw(config)
        return
    from fvcore.experiments.folder import locked
    from fvcore.experiments.progress import Shown
    from fvcore.experiments.relation import data
    from fvcore.experiments.relation.run import units_of
    from fvcore.experiments.steps.run import run as run_in_folder

    asked, root = config.asked, config.root
    units = units_of(data.read(config.dataset), root, config, asked) if "sample" in steps else []
    sources = {unit.name: unit.source for unit in units}
    lm = config.load(config.seed)
    with locked(root):
        for q_id in asked:
            run_in_folder(lm, root / q_id, config, sources.get(q_id), steps, Shown(terminal.console(), q_id))
            terminal.tell(f"{q_id}: {', '.join(steps)} done in {root / q_id}")


def draw(config: RelationConfig) -> None:
    """Heat maps alone; the model is not needed."""
    from fvcore.experiments.folder import Folder
    from fvcore.experiments.relation.gates import QIdStatus
    from fvcore.experiments.steps import heatmap

    chosen = (config.score_key, config.top_heads)
    for q_id in config.asked:
        status = QIdStatus.read(Folder(config.root / q_id))
        # A run's own picture is one of its files, with a digest: another choice gets another name.
        same = status is None or (status.config["score_key"], status.config["topk"]) == chosen
        name = config.out_name or (q_id if same else f"{q_id}_{config.score_key}_top{config.top_heads}")
        for path in heatmap.alone(config.root / q_id, *chosen, name):
            terminal.note(f"wrote {path}")


class StatusCommand(RelationConfig):
    """How it is shown."""

    as_json: Json = PRINTED


def show_status(config: StatusCommand) -> None:
    """A table of the q_ids; a completed one is checked against the digests of its files."""
    from fvcore.experiments.folder import Folder
    from fvcore.experiments.relation.gates import QIdStatus

    root = config.root
    statuses = QIdStatus.all_of(root)
    if not statuses:
        raise FormatError(f"{root}: holds no q_id of a run; `fvcore relation run` makes them")
    rows = []
    for q_id, one in statuses.items():
        damaged = one.damage(Folder(root / q_id))
        reason = f"{one.reason} ({one.cause}, {one.step})" if one.cause else one.reason
        note = f"missing or changed: {', '.join(damaged)}; run again" if damaged else reason
        status = "damaged" if damaged else one.status
        told = {"q_id": q_id, "status": status, "rows": one.q_row_count, "since": one.updated_at[:19], "reason": note}
        rows.append(told)
    terminal.show(rows, config.as_json)


def write_report(config: RelationConfig) -> None:
    """Write overview.csv and report.html again from the run's files; the model is not needed."""
    from fvcore.experiments.relation import report

    for path in (report.write(config.root), report.write_overview(config.root)):
        terminal.note(f"wrote {path}")


app = experiment(
    RelationConfig, run, "A relation file, q_id by q_id: run, single steps, status, report.", STEP_COMMANDS
)
PLACE = ("dataset", "out", "layout", "model")
add_command(app, "status", StatusCommand, show_status, only=(*PLACE, "as_json"))
add_command(app, "report", RelationConfig, write_report, only=PLACE)
