"""A run over the q_ids of a relation: each is a unit, brought to its end by whoever computes (`workers`).

What is true of a q_id stands in its own folder. The run's folder holds what is true of all: the settings, how far it
came, what failed and why, and the pictures.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fvcore.experiments.errors import DeviceLost
from fvcore.experiments.folder import Folder, locked, require_same
from fvcore.experiments.progress import Log
from fvcore.experiments.relation import files, report
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.relation.data import Relation
from fvcore.experiments.relation.gates import QIdStatus
from fvcore.experiments.relation.unit import ModelFacts, Unit
from fvcore.experiments.status import Outcome
from fvcore.experiments.workers import Workers
from fvcore.formats import FormatError, digest, read_json, write_json
from fvcore.model.model import LanguageModel
from fvcore.provenance import now, versions

ENDED = ("completed", "skipped", "failed")


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended, or stands: outcomes in the order in which they came, and at what it stopped before its end."""

    root: Path
    outcomes: tuple[Outcome, ...] = ()
    stopped: str = ""

    def q_ids(self, state: str) -> list[str]:
        return sorted(outcome.name for outcome in self.outcomes if outcome.status == state)

    def write(self, relation: Relation, n_selected: int, state: str) -> None:
        value = {
            "updated_at": now(),
            "status": state,
            "relation_name": relation.path.stem,
            "n_selected_qids": n_selected,
            "processed": len(self.outcomes),
            **{f"{ended}_q_ids": self.q_ids(ended) for ended in ENDED},
            "out_root": self.root.as_posix(),
        }
        write_json(self.root / files.RUN_SUMMARY, value)


def units_of(relation: Relation, root: Path, settings: RelationSettings, q_ids: Sequence[str] | None) -> list[Unit]:
    """One for each q_id asked for. `root` is the relation's folder, each q_id's lies in it."""
    return [
        Unit(q_id, root / q_id, relation.pairs[q_id], relation.written, settings) for q_id in relation.chosen(q_ids)
    ]


def run(
    relation: Relation,
    root: Path,
    settings: RelationSettings,
    workers: Workers[LanguageModel],
    q_ids: Sequence[str] | None = None,
    stop_on_error: bool = False,
    ended: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """Bring the q_ids to their end, those that are completed excepted; returns what became of each.

    Raises RelationError for a q_id that is not there, ModelError for settings that do not fit the model, OtherSettings
    for a folder of other settings, FolderInUse for one that another run writes in; each before anything is computed.
    """
    units, facts = units_of(relation, root, settings, q_ids), workers.ask(partial(ModelFacts.of, settings=settings))
    with locked(root):
        # What does not fit the folder is refused; then its settings are written, and a status for each q_id without one.
        before = {unit.name: QIdStatus.read(Folder(unit.folder)) for unit in units}
        pending = {unit.name: unit.fresh(facts, before[unit.name]) for unit in units}
        _write_meta(relation, root, settings, facts)
        for pattern in (".*", "_status/.*"):
            Folder(root).remove_unfinished(pattern)
        for unit in units:
            if before[unit.name] is None:
                pending[unit.name].write(Folder(unit.folder), "pending")
        summary, log = Summary(root), Log(root / files.LOG)
        log.line(f"run of {relation.path}: {len(units)} q_ids, model {facts.model}, settings {settings.deciding()}")
        for number in relation.dropped:
            log.line(f"line {number} of {relation.path} lacks a cell and is dropped")
        summary.write(relation, len(units), "running")
        try:
            with closing(workers.map(units)) as outcomes:
                for outcome in outcomes:
                    summary = replace(summary, outcomes=(*summary.outcomes, outcome))
                    log.line(f"{outcome.name}: {outcome.status}, {outcome.reason}{'' if outcome.ran else ' (before)'}")
                    summary.write(relation, len(units), "running")
                    ended(outcome)
                    if stop_on_error and outcome.status == "failed":
                        summary = replace(summary, stopped="at the first failure")
                        break
        except DeviceLost as lost:
            log.line(str(lost))
            summary = replace(summary, stopped="without a device: start the same command again")
        _write_failures(relation, root)
        report.write_overview(root)
        if settings.pictures:
            report.write(root)
        state = "stopped" if summary.stopped else "failed" if summary.q_ids("failed") else "completed"
        summary.write(relation, len(units), state)
        log.line(f"run {state}")
    return summary


def _write_meta(relation: Relation, root: Path, settings: RelationSettings, facts: ModelFacts) -> None:
    """What the whole run is of; raises OtherSettings if the folder's is another.

    Another state of the CSV is none: each q_id answers for its own pairs.
    """
    path, deciding = root / files.RUN_META, settings.deciding() | facts.identity
    before: Any = read_json(path) if path.is_file() else {}
    if not isinstance(before, dict) or (before and not isinstance(before.get("settings"), dict)):
        raise FormatError(f"{path}: not the record of a run over a relation")
    if before:
        require_same(root, before["settings"], deciding)
    value = {
        "schema_version": 1,
        "created_at": before.get("created_at") or now(),
        "relation_name": relation.path.stem,
        "relation_csv_path": relation.written,
        "relation_csv_sha256": relation.sha256,
        "q_ids": {q_id: len(pairs) for q_id, pairs in relation.pairs.items()},
        "dropped_lines": list(relation.dropped),
        **{name: getattr(facts, name) for name in ("model", "model_spec", "n_layers", "n_heads")},
        "settings_digest": digest(deciding),
        "settings": deciding,
        "versions": versions(),
    }
    if value != before:
        write_json(path, value)


def _write_failures(relation: Relation, root: Path) -> None:
    """Every q_id that has failed, in this run or an earlier one, with its cause class; an empty list if there is none."""
    by_cause: dict[str, list[str]] = {}
    rows = []
    for q_id, one in QIdStatus.all_of(root).items():
        if one.status == "failed":
            by_cause.setdefault(one.cause or "code", []).append(q_id)
            log = f"{q_id}/{files.FAILURE_LOG}"
            rows.append({"q_id": q_id, "cause": one.cause, "step": one.step, "message": one.reason, "traceback": log})
    value = {"generated_at": now(), "relation_name": relation.path.stem, "by_cause": by_cause, "failures": rows}
    write_json(root / files.FAILURES, value)
