"""All steps in order in one folder, each stage's files written before the next starts.

A stage whose files are there with their digests, on inputs that are what they were, is not run again. Another experiment
(a q_id of a relation) brings its own source of trials and a folder, and the stages are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fvcore.experiments.folder import Folder, locked
from fvcore.experiments.progress import Progressing
from fvcore.experiments.record import Record, RunRecord, Stage, digest
from fvcore.experiments.steps import heatmap, layout, sampled, step6, stepd, stepe, zeroshot
from fvcore.experiments.steps.sampled import ALL, SampledTrials
from fvcore.experiments.steps.settings import STEPS, StepSettings, settings_of
from fvcore.fast.chunks import Advance
from fvcore.formats import FormatError
from fvcore.model.model import LanguageModel
from fvcore.model.tokenizer import Tokenizer


class Source(Protocol):
    """Where trials come from: what it depends on, as plain values, and the trials under a tokenizer."""

    def settings(self) -> dict[str, Any]: ...
    def sample(self, tokenizer: Tokenizer) -> SampledTrials: ...


def run(
    lm: LanguageModel,
    root: Path,
    settings: StepSettings,
    source: Source | None = None,
    steps: Sequence[str] = STEPS,
    progress: Progressing | None = None,
) -> RunRecord:
    """Run the steps that are not done yet, and hold the folder meanwhile.

    Without `source` the folder's own sampled trials are used.

    Raises ModelError for settings that do not fit the model, OtherSettings for a folder of other ones, FolderInUse for one
    that another process writes in, StepError for what a step refuses.
    """
    settings.require_fit(lm, steps)
    stages = stages_of(lm, Folder(root), settings, source, steps)
    with locked(root):
        return record_of(Folder(root)).run(stages, progress)


def record_of(folder: Folder) -> Record:
    return Record(folder, layout.RUN_META)


def stages_of(
    lm: LanguageModel, folder: Folder, settings: StepSettings, source: Source | None, steps: Sequence[str]
) -> list[Stage]:
    if source is None and not (folder / layout.SAMPLED).is_file():
        raise FormatError(f"{folder / layout.SAMPLED}: no such file; the step stepd samples the trials")
    plan = _Plan(lm, folder, settings, source)
    return [stage for step in steps for stage in plan.stages(step)]


@dataclass(frozen=True)
class _Plan:
    """The stages of each step, with what they read and what they depend on."""

    lm: LanguageModel
    folder: Folder
    settings: StepSettings
    source: Source | None

    @property
    def sampled(self) -> SampledTrials:
        return sampled.read(self.folder / layout.SAMPLED)

    @property
    def _q_id(self) -> str:
        q_ids = self.sampled.q_ids
        return q_ids[0] if len(q_ids) == 1 else ALL

    def stages(self, step: str) -> list[Stage]:
        lm, settings, folder, reads = self.lm, self.settings, self.folder, (layout.SAMPLED,)
        match step:
            case "sample":
                return [self._sample(self.source)] if self.source else []
            case "stepd":
                n = len(settings.layers_of(lm)) * len(settings.heads_of(lm))
                return [
                    self._stage(
                        step,
                        reads,
                        lambda advance: stepd.run(lm, self.sampled, settings, folder, advance),
                        total=lambda: n * len(self.sampled.trials),
                    )
                ]
            case "heatmap":
                return [self._stage(step, (layout.AIE,), self._heatmap)]
            case "stepe":
                of_stepd = (*stepe.SCORE_FILES, *stepe.MEAN_FILES, layout.MEANS_META)
                return [self._stage(step, (*reads, *of_stepd), self._stepe)]
            case "zeroshot":
                space = settings.zeroshot_trailing_space
                return [self._stage(step, reads, lambda _: zeroshot.run(lm, self.sampled, space, folder))]
            case _:
                return self._step6()

    def _stage(
        self, name: str, reads: tuple[str, ...], work: Callable[[Advance], Sequence[Path]], **more: Any
    ) -> Stage:
        return Stage(name, settings_of(name.partition("/")[0], self.settings, self.lm), reads, work, **more)

    def _sample(self, source: Source) -> Stage:
        depends_on = source.settings() | {"tokenizer_sha": self.lm.tokenizer_sha}

        def work(_: Advance) -> list[Path]:
            return self.folder.write({layout.SAMPLED: source.sample(self.lm.tokenizer).model_dump(mode="json")})

        return Stage("sample", depends_on, (), work)

    def _heatmap(self, _: Advance) -> list[Path]:
        name, settings = self._q_id.removeprefix("__").removesuffix("__"), self.settings
        size = (self.lm.n_layers, self.lm.n_heads)
        return heatmap.run(self.folder, settings.score_key, settings.top_heads, *size, name)

    def _stepe(self, advance: Advance) -> list[Path]:
        of_stepd = record_of(self.folder).read().stages.get("stepd")
        run_id = digest(of_stepd.settings)[:12] if of_stepd else ""
        return stepe.run(self.lm, self.sampled, self.settings, self.folder, run_id, advance)

    def _step6(self) -> list[Stage]:
        lm, settings, folder = self.lm, self.settings, self.folder
        own = "" if settings.edit_layer == "all" else f"/layer_{settings.edit_layer}"
        reads = (layout.ZERO_SHOT, layout.FV, layout.FV_META)
        summaries = tuple(f"{layout.layer_dir(layer)}/eval_summary.json" for layer in range(lm.n_layers))

        def summarize(_: Advance) -> list[Path]:
            return step6.write_all_layers(folder, self._q_id, range(lm.n_layers), settings.step6_score_key)

        return [
            self._stage(
                f"step6{own}",
                reads,
                lambda advance: step6.run(lm, settings, folder, advance),
                total=lambda: settings.n_eval * len(settings.edit_layers(lm)),
                covered_by="step6",
            ),
            self._stage("step6/summary", summaries, summarize),
        ]
