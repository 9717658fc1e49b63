"""All steps in order in one folder, each stage's files written before the next starts.

A stage whose files are there with their digests, on inputs that are what they were, is not run again. Another experiment
(a q_id of a relation) brings its own source of trials and a folder, and the stages are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from fvcore.experiments.folder import Folder, locked
from fvcore.experiments.progress import Progressing
from fvcore.experiments.record import Record, RunRecord, Stage
from fvcore.experiments.steps import heatmap, layout, sampled, step6, stepd, stepe, zeroshot
from fvcore.experiments.steps.sampled import ALL, SampledTrials
from fvcore.experiments.steps.settings import STEPS, StepSettings, settings_of
from fvcore.fast.chunks import Advance
from fvcore.formats import FormatError, digest
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
    return [stage for step in steps for stage in _stages(step, lm, folder, settings, source)]


def _stages(
    step: str, lm: LanguageModel, folder: Folder, settings: StepSettings, source: Source | None
) -> Iterator[Stage]:
    """A step's stages, with what they read and what they depend on. Trials are read when a stage is at work."""

    def stage(reads: Sequence[str], work: Callable[[Advance], Sequence[Path]], part: str = "", **more: Any) -> Stage:
        return Stage(step + part, settings_of(step, settings, lm), tuple(reads), work, **more)

    def trials() -> SampledTrials:
        return sampled.read(folder / layout.SAMPLED)

    def q_id() -> str:
        q_ids = trials().q_ids
        return q_ids[0] if len(q_ids) == 1 else ALL

    def heat_map(_: Advance) -> list[Path]:
        name, size = q_id().removeprefix("__").removesuffix("__"), (lm.n_layers, lm.n_heads)
        return heatmap.run(folder, settings.score_key, settings.top_heads, *size, name)

    def step_e(advance: Advance) -> list[Path]:
        of_stepd = record_of(folder).read().stages.get("stepd")
        run_id = digest(of_stepd.settings)[:12] if of_stepd else ""
        return stepe.run(lm, trials(), settings, folder, run_id, advance)

    def summarize(_: Advance) -> list[Path]:
        return step6.write_all_layers(folder, q_id(), range(lm.n_layers), settings.step6_score_key)

    match step:
        case "sample" if source is not None:
            depends_on = source.settings() | {"tokenizer_sha": lm.tokenizer_sha}
            yield Stage(
                step,
                depends_on,
                (),
                lambda _: folder.write({layout.SAMPLED: source.sample(lm.tokenizer).model_dump(mode="json")}),
            )
        case "stepd":
            n = len(settings.layers_of(lm)) * len(settings.heads_of(lm))
            yield stage(
                [layout.SAMPLED],
                lambda advance: stepd.run(lm, trials(), settings, folder, advance),
                total=lambda: n * len(trials().trials),
            )
        case "heatmap":
            yield stage([layout.AIE], heat_map)
        case "stepe":
            yield stage([layout.SAMPLED, *stepe.SCORE_FILES, *stepe.MEAN_FILES, layout.MEANS_META], step_e)
        case "zeroshot":
            space = settings.zeroshot_trailing_space
            yield stage([layout.SAMPLED], lambda _: zeroshot.run(lm, trials(), space, folder))
        case "step6":
            own = "" if settings.edit_layer == "all" else f"/layer_{settings.edit_layer}"
            yield stage(
                (layout.ZERO_SHOT, layout.FV, layout.FV_META),
                lambda advance: step6.run(lm, settings, folder, advance),
                own,
                total=lambda: settings.n_eval * len(settings.edit_layers(lm)),
                covered_by="step6",
            )
            layers = range(lm.n_layers)
            yield stage([f"{layout.layer_dir(layer)}/eval_summary.json" for layer in layers], summarize, "/summary")
