"""What has become of one q_id (qid_status.json), and what it must have to be completed: files, and trials as asked for."""

from typing import Any, ClassVar

from fvcore.experiments.errors import StepError
from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import files
from fvcore.experiments.status import UnitStatus, literally
from fvcore.experiments.steps import layout, sampled

COMPLETED = "all stages completed"


class QIdStatus(UnitStatus):
    """`config` repeats, in the plan's words, what `settings` says."""

    FILE: ClassVar[str] = files.STATUS
    KEYS: ClassVar[tuple[str, ...]] = (
        "q_id", "status", "created_at", "updated_at", "config", "q_row_count", "reason", "cause", "step",
        "expected_layers", "settings_digest", "settings", "files",
    )  # fmt: skip
    UNSEALED: ClassVar[tuple[str, ...]] = (layout.RUN_META,)  # the record that digests are taken from

    q_id: str
    config: dict[str, Any]
    q_row_count: int
    expected_layers: list[int]

    def required(self) -> list[str]:
        return required(str(self.config.get("model")), len(self.expected_layers), self.q_id)


def required(model: str, layers: int, q_id: str) -> list[str]:
    """Files of a completed q_id; a `*` stands for the part of a name that follows from the evaluation."""
    of_layer = [
        f"{layout.layer_dir(layer)}/{name}"
        for layer in range(layers)
        for name in (layout.step6_results(model, layer, "*"), *layout.OF_LAYER)
    ]
    return [
        layout.SAMPLED, layout.AIE, layout.CIE, layout.TRIAL_METRICS, layout.GLOBAL_MEAN, layout.q_mean(q_id),
        layout.TOP_HEADS, layout.FV, layout.FV_META, layout.FV_BY_LAYER, layout.STEP_E_EVAL, layout.ZERO_SHOT,
        *of_layer, layout.ALL_LAYERS, files.AIE_INTERVALS, files.INJECTION_INTERVALS, files.RANDOM_HEADS,
        files.RANDOM_FV, layout.RUN_META, layout.STEP_D_LOG,
    ]  # fmt: skip


def require_complete(folder: Folder, model: str, layers: int, q_id: str, n_trials: int) -> None:
    """Raises StepError if something is missing that a completed q_id must have."""
    missing = [name for name in required(model, layers, q_id) if not folder.names(literally(name))]
    if missing:
        without = [layer for layer in range(layers) if any(f"/layer_{layer}/" in name for name in missing)]
        raise StepError(
            f"step6 incomplete failed_layers=[] missing_layers={without}; missing files: {', '.join(missing)}"
        )
    n = len(sampled.read(folder / layout.SAMPLED).trials)
    if n != n_trials:
        raise StepError(f"{n} trials sampled, expected exactly {n_trials}")
