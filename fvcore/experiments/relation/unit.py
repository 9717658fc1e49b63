"""One q_id through all steps, in its own folder: the unit that is resumed, judged and handed to another process.

`run_unit` is all that whoever distributes the work must call, with a model that stays loaded. It never raises for what
is wrong with the q_id: that is an outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.experiments.clock import now
from fvcore.experiments.errors import OtherSettings, StepError
from fvcore.experiments.progress import Progressing, Quiet
from fvcore.experiments.record import RunRecord
from fvcore.experiments.relation import control, files, intervals, status
from fvcore.experiments.relation.causes import Failure
from fvcore.experiments.relation.sampling import RelationSource
from fvcore.experiments.relation.settings import RelationSettings
from fvcore.experiments.relation.status import State, Status
from fvcore.experiments.steps import layout, sampled
from fvcore.experiments.steps.layout import Folder
from fvcore.experiments.steps.run import STEPS
from fvcore.experiments.steps.run import run as run_steps
from fvcore.experiments.steps.settings import identity
from fvcore.fast.chunks import Advance
from fvcore.formats import write_text
from fvcore.model.model import LanguageModel
from fvcore.trials import WordPair


@dataclass(frozen=True, slots=True)
class Unit:
    """One q_id and all that decides its results but the model: plain values, so that it can be sent anywhere.

    folder: the q_id's own     csv_path: as it is written down
    """

    q_id: str
    folder: Path
    pairs: tuple[WordPair, ...]
    csv_path: str
    settings: RelationSettings

    @property
    def source(self) -> RelationSource:
        chosen = self.settings
        return RelationSource(self.q_id, self.pairs, self.csv_path, chosen.n_trials, chosen.n_demos, chosen.seed)

    @property
    def too_small(self) -> bool:
        return len(self.pairs) < self.settings.rows_needed


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a run must know of the model, wherever it is loaded."""

    name: str
    spec: str
    n_layers: int
    n_heads: int
    identity: dict[str, Any]

    @classmethod
    def of(cls, lm: LanguageModel, settings: RelationSettings) -> ModelFacts:
        """Raises ModelError where the settings do not fit the model, `topk` above all."""
        settings.require_fit(lm)
        return cls(lm.name, lm.spec.name, lm.n_layers, lm.n_heads, identity(lm, settings))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a q_id. `ran` is false where it was completed already."""

    q_id: str
    status: State
    reason: str
    ran: bool = True
    failure: Failure | None = None


def run_unit(lm: LanguageModel, unit: Unit, progress: Progressing | None = None) -> Outcome:
    """Take one q_id up where it stands and bring it to completed, failed or skipped; its status file says so.

    Call it again after a crash, in any process: stages whose files are whole are not computed again. Raises
    OtherSettings, before anything is written, if the folder holds results of other settings.
    """
    folder, before = Folder(unit.folder), status.read(Folder(unit.folder))
    current = fresh(unit, ModelFacts.of(lm, unit.settings), before)
    if before is not None and _is_done(unit, folder, before):
        return Outcome(unit.q_id, "completed", status.COMPLETED, ran=False)
    if unit.too_small:
        reason = f"insufficient rows ({len(unit.pairs)} < {unit.settings.rows_needed})"
        status.write(folder, current, "skipped", reason=reason)
        return Outcome(unit.q_id, "skipped", reason)
    return _run(lm, unit, folder, current, before, _Watch(progress or Quiet()))


def _is_done(unit: Unit, folder: Folder, before: Status) -> bool:
    """Completed, and each file as it was; pictures that are asked for later are still to be drawn."""
    drawn = layout.heatmap(unit.q_id) in before.files or not unit.settings.pictures
    return before.status == "completed" and drawn and not status.damage(folder, before)


def fresh(unit: Unit, facts: ModelFacts, before: Status | None) -> Status:
    """The q_id's status before it runs. Raises OtherSettings where there are results of other settings."""
    chosen = unit.settings
    settings = chosen.deciding() | facts.identity | unit.source.settings()
    if before is not None and before.status in ("running", "completed", "failed"):
        status.require_same(unit.folder, before.settings, settings)
    config = {
        "model": facts.name,
        "model_spec": facts.spec,
        "relation_csv_path": unit.csv_path,
        "n_trials_per_q": chosen.n_trials,
        **{name: getattr(chosen, name) for name in ("n_demos", "topk", "score_key", "alpha", "n_eval", "seed")},
    }
    return Status(
        q_id=unit.q_id,
        status="pending",
        created_at=now() if before is None else before.created_at,
        updated_at=now(),
        config=config,
        q_row_count=len(unit.pairs),
        expected_layers=list(range(facts.n_layers)),
        settings_digest=status.digest_of(settings),
        settings=settings,
    )


def _run(
    lm: LanguageModel, unit: Unit, folder: Folder, current: Status, before: Status | None, watch: _Watch
) -> Outcome:
    files.remove_unfinished(unit.folder, "**/.*")
    status.write(folder, current, "running")
    further = [control.stage(lm, folder, unit.settings), intervals.stage(folder, unit.settings, lm.n_layers)]
    steps = [step for step in STEPS if unit.settings.pictures or step != "heatmap"]
    try:
        record = run_steps(lm, unit.folder, unit.settings, unit.source, steps, watch, further)
        written = _complete(unit, folder, current, record)
    except OtherSettings:
        was = before or current
        status.write(folder, was, was.status, reason=was.reason, cause=was.cause, step=was.step, files=was.files)
        raise
    except Exception as error:
        failure = Failure.of(unit.q_id, watch.step, error)
        write_text(folder / files.FAILURE_LOG, failure.traceback)
        status.write(folder, current, "failed", reason=failure.message, cause=failure.cause, step=failure.step)
        return Outcome(unit.q_id, "failed", failure.message, failure=failure)
    (folder / files.FAILURE_LOG).unlink(missing_ok=True)
    status.write(folder, current, "completed", reason=status.COMPLETED, files=written)
    return Outcome(unit.q_id, "completed", status.COMPLETED)


def _complete(unit: Unit, folder: Folder, current: Status, record: RunRecord) -> dict[str, str]:
    """Digests of all that was written; raises StepError if something is missing that a completed q_id must have."""
    wanted = status.required(current.config["model"], len(current.expected_layers), unit.q_id)
    missing = [pattern for pattern in wanted if not folder.names(_glob(pattern))]
    if missing:
        layers = [layer for layer in current.expected_layers if any(f"/layer_{layer}/" in name for name in missing)]
        raise StepError(
            f"step6 incomplete failed_layers=[] missing_layers={layers}; missing files: {', '.join(missing)}"
        )
    n = len(sampled.read(folder / layout.SAMPLED).trials)
    if n != unit.settings.n_trials:
        raise StepError(f"{n} trials sampled, expected exactly {unit.settings.n_trials}")
    # Pictures may be gone: whoever runs without them does not ask for them, and must not claim them.
    written = {
        name: sha for one in record.stages.values() for name, sha in one.writes.items() if (folder / name).is_file()
    }
    return dict(sorted(written.items()))


def _glob(pattern: str) -> str:
    """A `*` is the only wild card; a q_id may hold brackets."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


class _Watch:
    """Passes progress on and remembers the step, for the failure report."""

    def __init__(self, progress: Progressing) -> None:
        self.progress, self.step = progress, "start"

    @contextmanager
    def running(self, step: str, total: int | None) -> Iterator[Advance]:
        self.step = step
        with self.progress.running(step, total) as tell:
            yield tell

    def already(self, step: str) -> None:
        self.progress.already(step)
