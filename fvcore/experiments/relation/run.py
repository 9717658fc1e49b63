"""A run over the q_ids of a relation: each brought to its end by `unit.run_unit`, by whoever computes (`Workers`).

What is true of a q_id stands in its own folder. The run's folder holds what is true of all: the settings, how far it
came, what failed and why, and the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from fvcore.experiments.progress import Progressing, Quiet
from fvcore.experiments.relation import files, overview, report, status
from fvcore.experiments.relation.data import Relation
from fvcore.experiments.relation.log import Log
from fvcore.experiments.relation.settings import RelationSettings
from fvcore.experiments.relation.unit import ModelFacts, Outcome, Unit, fresh, run_unit
from fvcore.experiments.steps.layout import Folder
from fvcore.formats import FormatError, read_json, write_json
from fvcore.model.model import LanguageModel
from fvcore.provenance import now, versions


class Workers(Protocol):
    """Who computes: one process with its model, or many."""

    def facts(self, settings: RelationSettings) -> ModelFacts:
        """The model's facts; raises ModelError where the settings do not fit it."""

    def map(self, units: Sequence[Unit]) -> Generator[Outcome]:
        """`run_unit` on every unit, an outcome as each ends, in any order. Closing the generator stops what is left."""


@dataclass(frozen=True, slots=True)
class Local:
    """This process, one q_id after the other, the model loaded once."""

    lm: LanguageModel
    progress: Callable[[Unit], Progressing] = field(default=lambda unit: Quiet())

    def facts(self, settings: RelationSettings) -> ModelFacts:
        return ModelFacts.of(self.lm, settings)

    def map(self, units: Sequence[Unit]) -> Generator[Outcome]:
        for unit in units:
            yield run_unit(self.lm, unit, self.progress(unit))


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended, or stands: outcomes in the order in which they came."""

    root: Path
    outcomes: tuple[Outcome, ...] = ()
    stopped: bool = False

    def q_ids(self, state: str) -> list[str]:
        return sorted(outcome.q_id for outcome in self.outcomes if outcome.status == state)


def units_of(relation: Relation, root: Path, settings: RelationSettings, q_ids: Sequence[str] | None) -> list[Unit]:
    """One for each q_id asked for. `root` is the relation's folder, each q_id's lies in it."""
    return [
        Unit(q_id, root / q_id, relation.pairs[q_id], relation.path.as_posix(), settings)
        for q_id in relation.chosen(q_ids)
    ]


def run(
    relation: Relation,
    root: Path,
    settings: RelationSettings,
    workers: Workers,
    q_ids: Sequence[str] | None = None,
    stop_on_error: bool = False,
    ended: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """Bring the q_ids to their end, those that are completed excepted; returns what became of each.

    Raises RelationError for a q_id that is not there, ModelError for settings that do not fit the model, OtherSettings
    for a folder of other settings; each before anything is computed.
    """
    units, facts = units_of(relation, root, settings, q_ids), workers.facts(settings)
    _begin(relation, root, settings, facts, units)
    summary, log = Summary(root), Log(root / files.LOG)
    log.line(f"run of {relation.path}: {len(units)} q_ids, model {facts.name}, settings {settings.deciding()}")
    for number in relation.dropped:
        log.line(f"line {number} of {relation.path} lacks a cell and is dropped")
    _write_summary(relation, summary, len(units), "running")
    with closing(workers.map(units)) as outcomes:
        for outcome in outcomes:
            summary = replace(summary, outcomes=(*summary.outcomes, outcome))
            log.line(f"{outcome.q_id}: {outcome.status}, {outcome.reason}" + ("" if outcome.ran else " (before)"))
            _write_summary(relation, summary, len(units), "running")
            ended(outcome)
            if stop_on_error and outcome.status == "failed":
                summary = replace(summary, stopped=True)
                break
    _write_failures(relation, root)
    overview.write(root)
    if settings.pictures:
        report.write(root)
    state = "stopped" if summary.stopped else "failed" if summary.q_ids("failed") else "completed"
    _write_summary(relation, summary, len(units), state)
    log.line(f"run {state}")
    return summary


def _begin(
    relation: Relation, root: Path, settings: RelationSettings, facts: ModelFacts, units: Sequence[Unit]
) -> None:
    """Refuse what does not fit the folder, then write the run's settings and a status for every q_id that has none."""
    before = {unit.q_id: status.read(Folder(unit.folder)) for unit in units}
    pending = {unit.q_id: fresh(unit, facts, before[unit.q_id]) for unit in units}
    _write_meta(relation, root, settings, facts)
    for pattern in (".*", "_status/.*"):
        files.remove_unfinished(root, pattern)
    for unit in units:
        if before[unit.q_id] is None:
            status.write(Folder(unit.folder), pending[unit.q_id], "pending")


def _write_meta(relation: Relation, root: Path, settings: RelationSettings, facts: ModelFacts) -> None:
    """What the whole run is of; raises OtherSettings if the folder's is another. Another state of the CSV is none:

    each q_id answers for its own pairs.
    """
    path, deciding = root / files.RUN_META, settings.deciding() | facts.identity
    before: Any = read_json(path) if path.is_file() else {}
    if not isinstance(before, dict) or (before and not isinstance(before.get("settings"), dict)):
        raise FormatError(f"{path}: not the record of a run over a relation")
    if before:
        status.require_same(root, before["settings"], deciding)
    value = {
        "schema_version": 1,
        "created_at": before.get("created_at") or now(),
        "relation_name": relation.name,
        "relation_csv_path": relation.path.as_posix(),
        "relation_csv_sha256": relation.sha256,
        "q_ids": {q_id: len(pairs) for q_id, pairs in relation.pairs.items()},
        "dropped_lines": list(relation.dropped),
        "model": facts.name,
        "model_spec": facts.spec,
        "n_layers": facts.n_layers,
        "n_heads": facts.n_heads,
        "settings_digest": status.digest_of(deciding),
        "settings": deciding,
        "versions": versions(),
    }
    if value != before:
        write_json(path, value)


def _write_summary(relation: Relation, summary: Summary, n_selected: int, state: str) -> None:
    value = {
        "updated_at": now(),
        "status": state,
        "relation_name": relation.name,
        "n_selected_qids": n_selected,
        "processed": len(summary.outcomes),
        "completed_q_ids": summary.q_ids("completed"),
        "skipped_q_ids": summary.q_ids("skipped"),
        "failed_q_ids": summary.q_ids("failed"),
        "out_root": summary.root.as_posix(),
    }
    write_json(summary.root / files.RUN_SUMMARY, value)


def _write_failures(relation: Relation, root: Path) -> None:
    """Every q_id that has failed, in this run or an earlier one, with its cause class; an empty list if there is none."""
    failed = [(q_id, found) for q_id, found in status.all_of(root).items() if found.status == "failed"]
    by_cause: dict[str, list[str]] = {}
    for q_id, found in failed:
        by_cause.setdefault(found.cause or "code", []).append(q_id)
    rows = [
        {
            "q_id": q_id,
            "cause": found.cause,
            "step": found.step,
            "message": found.reason,
            "traceback": f"{q_id}/{files.FAILURE_LOG}",
        }
        for q_id, found in failed
    ]
    value = {"generated_at": now(), "relation_name": relation.name, "by_cause": by_cause, "failures": rows}
    write_json(root / files.FAILURES, value)
