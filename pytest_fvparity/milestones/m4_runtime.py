"""M4: the runtime's own outputs, from the fixed trials and from trials drawn from the raw dataset."""

from pathlib import Path

from fvcore import terminal
from fvcore.exits import in_one_line
from fvcore.experiments.errors import StepError
from fvcore.experiments.progress import Shown
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.run import Source
from fvcore.experiments.steps.run import run as run_steps
from fvcore.experiments.steps.sampled import DatasetSource, FixedSource
from fvcore.experiments.steps.settings import StepSettings
from fvcore.formats import FormatError
from fvcore.model import model as models
from fvcore.model.spec import ModelError
from pytest_fvparity.milestones.setup import Failed, MilestoneOutcome, Setup

MEANS = (layout.MEANS, layout.MEANS_META, layout.TOP_HEADS)
VECTORS = (layout.FV_BY_LAYER, layout.FV, layout.FV_META, layout.ALL_LAYERS)
TOPK = 20
"""The plan's heads of a vector."""
PER_LAYER = ("step6_results_*.json", "eval_summary.json", "eval_trials.jsonl", "eval_meta.json")


def run(setup: Setup) -> MilestoneOutcome:
    """Any target id, shape or hook that is wrong fails it, from whichever trials."""
    lm = models.load(setup.model, setup.device, setup.dtype, spec=setup.spec, quant=setup.quant)
    if lm.weights_sha != setup.compared_weights():
        raise Failed(f"{setup.model} has other weights than the model that M2 compared: run M2 again")
    n_heads = lm.n_layers * lm.n_heads
    topk = min(TOPK, n_heads) if setup.topk is None else setup.topk
    if topk > n_heads:
        raise Failed(f"M4's vector has {topk} heads, {setup.model} has {n_heads}: choose 1 to {n_heads} with --topk")
    settings = StepSettings(seed=setup.lock.locked.seed, top_heads=topk, n_eval=setup.n_eval)
    locked = setup.lock.locked
    sampled = DatasetSource(setup.raw_dataset(), locked.n_trials, locked.n_shots, locked.seed)
    sources: dict[str, Source] = {"fixed_trials": FixedSource(setup.trials_file), "dataset_sampled": sampled}
    files: list[Path] = []
    for name, source in sources.items():
        folder = setup.layout.runs / "runtime" / name
        try:
            run_steps(lm, folder, settings, source, progress=Shown(terminal.console(stderr=True)))
        except (StepError, ModelError, FormatError, RuntimeError) as error:
            raise Failed(f"{name}: {in_one_line(error)}") from error
        files += _delivered(folder, lm.n_layers)
    message = f"{' and '.join(sources)} through StepD, StepE and Step6 at {lm.n_layers} layers"
    return MilestoneOutcome(True, message, files)


def _delivered(folder: Path, n_layers: int) -> list[Path]:
    files = [folder / name for name in (*MEANS, *VECTORS)]
    for layer in (folder / layout.layer_dir(layer) for layer in range(n_layers)):
        files += [file for pattern in PER_LAYER for file in sorted(layer.glob(pattern)) or [layer / pattern]]
    if missing := [file for file in files if not file.is_file()]:
        raise Failed(f"{missing[0]}: not written")
    return files
