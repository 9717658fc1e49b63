"""All steps in order in one folder, each stage's files written before the next starts.

A stage whose files are there with their digests, on inputs that are what they were, is not run again. Another experiment
(a q_id of a relation) brings its own source of trials and a folder, and the stages are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fvcore.experiments import record
from fvcore.experiments.progress import Progressing, Quiet
from fvcore.experiments.record import RunRecord, Stage
from fvcore.experiments.steps import heatmap, layout, sampled, step6, stepd, stepe, zeroshot
from fvcore.experiments.steps.layout import Folder
from fvcore.experiments.steps.sampled import ALL, SampledTrials
from fvcore.experiments.steps.settings import Settings, identity, settings_of
from fvcore.fast.chunks import Advance
from fvcore.formats import FormatError
from fvcore.model.model import LanguageModel
from fvcore.prompts import Tokenizer

STEPS = ("sample", "stepd", "heatmap", "stepe", "zeroshot", "step6")


class Source(Protocol):
    """Where trials come from: what it depends on, as plain values, and the trials under a tokenizer."""

    def settings(self) -> dict[str, Any]: ...
    def sample(self, tokenizer: Tokenizer) -> SampledTrials: ...


def run(
    lm: LanguageModel,
    root: Path,
    settings: Settings,
    source: Source | None = None,
    steps: Sequence[str] = STEPS,
    progress: Progressing | None = None,
    further: Sequence[Stage] = (),
) -> RunRecord:
    """Run the steps that are not done yet, then `further` stages of the caller's own, in the same record.

    Without `source` the folder's own sampled trials are used.

    Raises ModelError for settings that do not fit the model, OtherSettings for a folder of other ones, StepError for what
    a step refuses.
    """
    settings.require_fit(lm)
    plan = _Plan(lm, Folder(root), settings)
    if source is None and not (plan.folder / layout.SAMPLED).is_file():
        raise FormatError(f"{plan.folder / layout.SAMPLED}: no such file; the step stepd samples the trials")
    stages = [stage for step in steps for stage in plan.stages(step, source)] + list(further)
    record.begin(plan.folder, stages)
    shown = progress or Quiet()
    for stage in stages:
        if record.is_done(plan.folder, stage):
            shown.already(stage.name)
            continue
        with shown.running(stage.name, stage.total() if stage.total else None) as advance:
            files = stage.work(advance)
        record.finish(plan.folder, stage, files)
    return record.read(plan.folder)


@dataclass(frozen=True)
class _Plan:
    """The stages of each step, with what they read and what they depend on."""

    lm: LanguageModel
    folder: Folder
    settings: Settings

    def stages(self, step: str, source: Source | None) -> list[Stage]:
        if step == "sample":
            return [] if source is None else [self._sample(source)]
        return {
            "stepd": self._stepd,
            "heatmap": self._heatmap,
            "stepe": self._stepe,
            "zeroshot": self._zeroshot,
            "step6": self._step6,
        }[step]()

    @property
    def sampled(self) -> SampledTrials:
        return sampled.read(self.folder / layout.SAMPLED)

    def _settings(self, step: str) -> dict[str, Any]:
        return settings_of(step, self.settings, self.lm)

    def _sample(self, source: Source) -> Stage:
        def work(advance: Advance) -> list[Path]:
            path = self.folder / layout.SAMPLED
            sampled.write(path, source.sample(self.lm.tokenizer))
            return [path]

        tokenizer = {"tokenizer_sha": identity(self.lm, self.settings)["tokenizer_sha"]}
        return Stage("sample", source.settings() | tokenizer, (), work)

    def _stepd(self) -> list[Stage]:
        lm, settings = self.lm, self.settings

        def work(advance: Advance) -> list[Path]:
            return stepd.run(self.lm, self.sampled, settings, self.folder, advance)

        def total() -> int:
            return len(self.sampled.trials) * len(settings.layers_of(lm)) * len(settings.heads_of(lm))

        return [Stage("stepd", self._settings("stepd"), (layout.SAMPLED,), work, total)]

    def _heatmap(self) -> list[Stage]:
        lm, settings = self.lm, self.settings

        def work(advance: Advance) -> list[Path]:
            name = self._q_id.removeprefix("__").removesuffix("__")
            return heatmap.run(self.folder, settings.score_key, settings.topk, lm.n_layers, lm.n_heads, name)

        return [Stage("heatmap", self._settings("heatmap"), (layout.AIE,), work)]

    @property
    def _q_id(self) -> str:
        q_ids = self.sampled.q_ids
        return q_ids[0] if len(q_ids) == 1 else ALL

    def _stepe(self) -> list[Stage]:
        def work(advance: Advance) -> list[Path]:
            of_stepd = record.read(self.folder).stages.get("stepd")
            run_id = record.digest(of_stepd.settings)[:12] if of_stepd else ""
            return stepe.run(self.lm, self.sampled, self.settings, self.folder, run_id, advance)

        reads = (layout.SAMPLED, *stepe.SCORE_FILES, *stepe.MEAN_FILES, layout.MEANS_META)
        return [Stage("stepe", self._settings("stepe"), reads, work)]

    def _zeroshot(self) -> list[Stage]:
        def work(advance: Advance) -> list[Path]:
            trailing = self.settings.zeroshot_trailing_space
            return zeroshot.run(self.lm, self.sampled, trailing, self.folder)

        return [Stage("zeroshot", self._settings("zeroshot"), (layout.SAMPLED,), work)]

    def _step6(self) -> list[Stage]:
        lm, settings = self.lm, self.settings
        reads = (layout.ZERO_SHOT, layout.FV, layout.FV_META)
        own = "" if settings.edit_layer == "all" else f"/layer_{settings.edit_layer}"

        def work(advance: Advance) -> list[Path]:
            return step6.run(self.lm, settings, self.folder, advance)

        def summary(advance: Advance) -> list[Path]:
            return step6.write_all_layers(self.folder, self._q_id, range(lm.n_layers), settings.step6_score_key)

        summaries = tuple(f"{layout.layer_dir(layer)}/eval_summary.json" for layer in range(lm.n_layers))
        chosen = self._settings("step6")
        return [
            Stage(f"step6{own}", chosen, reads, work, lambda: settings.n_eval * len(settings.edit_layers(lm)), "step6"),
            Stage("step6/summary", chosen, summaries, summary),
        ]
