"""One q_id through all steps, in its own folder: the unit that is resumed, judged and handed to another process."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.exits import Expected, in_one_line
from fvcore.experiments.errors import Cause, OtherSettings, cause_of
from fvcore.experiments.folder import Folder, require_same
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.relation import control, files, gates, intervals
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.relation.data import Pairs, RelationSource
from fvcore.experiments.relation.gates import COMPLETED, QIdStatus
from fvcore.experiments.status import Outcome
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.run import record_of, stages_of
from fvcore.experiments.steps.settings import chosen_steps, identity
from fvcore.model.model import LanguageModel


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a run must know of the model, wherever it is loaded."""

    model: str
    model_spec: str
    n_layers: int
    n_heads: int
    identity: dict[str, Any]

    @classmethod
    def of(cls, lm: LanguageModel, settings: RelationSettings) -> ModelFacts:
        """Raises ModelError where the settings do not fit the model, `top_heads` above all."""
        settings.require_fit(lm)
        return cls(lm.name, lm.spec.name, lm.n_layers, lm.n_heads, identity(lm, settings))


@dataclass(frozen=True, slots=True)
class Unit:
    """One q_id and all that decides its results but the model: plain values, so that it can be sent anywhere.

    folder: the q_id's own     csv_path: as it is written down
    """

    name: str
    folder: Path
    pairs: Pairs
    csv_path: str
    settings: RelationSettings

    @property
    def source(self) -> RelationSource:
        chosen = self.settings
        return RelationSource(self.name, self.pairs, self.csv_path, chosen.n_trials, chosen.n_shots, chosen.seed)

    @property
    def too_small(self) -> str:
        """Why there are too few pairs; empty where there are enough."""
        n, needed = len(self.pairs), self.settings.n_shots + 1
        return f"insufficient rows ({n} < {needed})" if n < needed else ""

    def n_rows(self, n_layers: int, n_heads: int) -> int:
        """How many rows it makes the model compute, at most: it has no more unique queries than trials or pairs."""
        if self.too_small:
            return 0
        chosen = self.settings
        n_eval = chosen.n_eval if chosen.with_replacement else min(chosen.n_eval, chosen.n_trials, len(self.pairs))
        return n_layers * (chosen.n_trials * n_heads + n_eval * (1 + chosen.n_random))

    def run(self, lm: LanguageModel, progress: Progressing | None = None) -> Outcome:
        """Take the q_id up where it stands and bring it to completed, failed or skipped; its status file says so.

        Call it again after a crash, in any process: stages whose files are whole are not computed again. It never raises
        for what is wrong with the q_id. Raises OtherSettings, before anything is written, if the folder holds others.
        """
        before = QIdStatus.read(Folder(self.folder))
        current = self.fresh(ModelFacts.of(lm, self.settings), before)
        # Pictures that are asked for later are still to be drawn.
        drawn = not self.settings.pictures or (before is not None and layout.heatmap(self.name) in before.files)
        if drawn and before is not None and self._is_completed(before, current):
            return Outcome(self.name, "completed", COMPLETED, ran=False)
        if self.too_small:
            current.write(Folder(self.folder), "skipped", reason=self.too_small)
            return Outcome(self.name, "skipped", self.too_small)
        return self._run(lm, current, before, Watched(progress))

    def _is_completed(self, before: QIdStatus, current: QIdStatus) -> bool:
        """Whether what the status says is so, and of this q_id and all of the model's layers."""
        same = (before.q_id, before.expected_layers) == (current.q_id, current.expected_layers)
        return same and before.status == "completed" and not before.damage(Folder(self.folder))

    def fresh(self, facts: ModelFacts, before: QIdStatus | None) -> QIdStatus:
        """The q_id's status before it runs. Raises OtherSettings where there are results of other settings."""
        deciding = self.settings.deciding()
        settings = deciding | facts.identity | self.source.settings()
        if before is not None and before.status in ("running", "completed", "failed"):
            require_same(self.folder, before.settings, settings)
        config = {
            "model": facts.model,
            "model_spec": facts.model_spec,
            "relation_csv_path": self.csv_path,
            "n_trials_per_q": self.settings.n_trials,
            **{name: deciding[name] for name in ("n_demos", "topk", "score_key", "alpha", "n_eval", "seed")},
        }
        own = {"q_id": self.name, "q_row_count": len(self.pairs), "expected_layers": list(range(facts.n_layers))}
        return QIdStatus.pending(before, settings, config=config, **own)

    def _run(self, lm: LanguageModel, current: QIdStatus, before: QIdStatus | None, watch: Watched) -> Outcome:
        folder, settings = Folder(self.folder), self.settings
        folder.remove_unfinished()
        current.write(folder, "running")
        try:
            stages = stages_of(lm, folder, settings, self.source, chosen_steps((), settings.pictures))
            stages += [control.stage(lm, folder, settings), intervals.stage(folder, lm.n_layers, settings.confidence)]
            record = record_of(folder).run(stages, watch)
            gates.require_complete(folder, lm.name, lm.n_layers, self.name, settings.n_trials)
        except OtherSettings:
            was = before or current
            was.write(folder, was.status, reason=was.reason, cause=was.cause, step=was.step, files=was.files)
            raise
        except Exception as error:
            reason, log = in_one_line(error), "".join(traceback.format_exception(error))
            return self._fail(current, cause_of(error), watch.step, reason, log)
        (folder / files.FAILURE_LOG).unlink(missing_ok=True)
        every = {name: sha for one in record.stages.values() for name, sha in one.writes.items()}
        # Pictures may be gone: a run without them does not ask for them, nor claims them.
        there = {name: every[name] for name in sorted(every) if (folder / name).is_file()}
        current.write(folder, "completed", reason=COMPLETED, files=there)
        return Outcome(self.name, "completed", COMPLETED)

    def give_up(self, cause: Cause, reason: str) -> Outcome:
        """Whoever computed it died, again and again."""
        return self._fail(QIdStatus.read(Folder(self.folder)), cause, "actor", reason, f"{reason}\n")

    def _fail(self, current: QIdStatus | None, cause: Cause, step: str, reason: str, log: str) -> Outcome:
        """Say so in the log and the status. step: the stage that was at work"""
        folder = Folder(self.folder)
        try:
            folder.write({files.FAILURE_LOG: log})
            if current is not None:
                current.write(folder, "failed", reason=reason, cause=cause, step=step)
        except Expected as unwritten:  # a full disk: what is there is as a killed process leaves it, and said here
            reason = f"{reason}; and this could not be written down ({unwritten})"
        return Outcome(self.name, "failed", reason, cause=cause)
