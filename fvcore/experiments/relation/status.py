"""qid_status.json: what has become of one q_id, with which settings, and the digests of its files.

pending -> skipped (too few rows) | running -> completed | failed. It is written whole or not at all, before the next
q_id starts. `completed` is a claim until every file it names is there with its digest; a folder of other settings is
refused, never mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from fvcore.experiments.errors import OtherSettings
from fvcore.experiments.record import digest
from fvcore.experiments.relation import files
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.layout import Folder
from fvcore.formats import read_json, sha256_file, validated, write_json
from fvcore.provenance import now

State: TypeAlias = Literal["pending", "running", "completed", "failed", "skipped"]
COMPLETED = "all stages completed"


class Status(BaseModel):
    """settings: all that the results depend on     cause, step: of a failure
    files: name in the q_id's folder -> sha256, once completed
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    q_id: str
    status: State
    created_at: str
    updated_at: str
    config: dict[str, Any]
    q_row_count: int
    reason: str = ""
    cause: str | None = None
    step: str | None = None
    expected_layers: list[int]
    settings_digest: str
    settings: dict[str, Any]
    files: dict[str, str] = {}


def read(folder: Folder) -> Status | None:
    path = folder / files.STATUS
    if not path.is_file():
        return None
    return validated(Status, read_json(path), path, "a q_id's status")


def all_of(root: Path) -> dict[str, Status]:
    """The statuses below a run's folder, q_ids sorted as strings."""
    found = {path.parts[-3]: read(Folder(path.parent.parent)) for path in root.glob(f"*/{files.STATUS}")}
    return {q_id: one for q_id, one in sorted(found.items()) if one is not None}


def write(folder: Folder, status: Status, state: State, **changes: Any) -> Status:
    """The status in another state; what belongs to one state alone is forgotten."""
    kept = status.model_copy(update={"reason": "", "cause": None, "step": None, "files": {}})
    found = kept.model_copy(update={"status": state, "updated_at": now()} | changes)
    write_json(folder / files.STATUS, found.model_dump(mode="json"))
    return found


def require_same(where: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises OtherSettings naming each setting that differs."""
    different = [
        f"{name} is {before.get(name)!r}, now {after.get(name)!r}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    if different:
        raise OtherSettings(
            f"{where} holds results of other settings: {'; '.join(different)}. Results of different settings are never "
            "mixed: use another --out, or remove the folder"
        )


def required(model: str, layers: int, q_id: str) -> list[str]:
    """What a completed q_id must have; a `*` stands for the part of a name that follows from the evaluation."""
    per_layer = [
        f"{layout.layer_dir(layer)}/{name}"
        for layer in range(layers)
        for name in (f"step6_results_{layout.safe_name(model)}_layer{layer}_n*.json", "eval_summary.json",
                     "eval_trials.jsonl", "eval_meta.json")
    ]  # fmt: skip
    return [
        layout.SAMPLED, layout.AIE, layout.CIE, layout.TRIAL_METRICS, layout.GLOBAL_MEAN, layout.q_mean(q_id),
        layout.TOP_HEADS, layout.FV, layout.FV_META, layout.FV_BY_LAYER, layout.STEP_E_EVAL, layout.ZERO_SHOT,
        *per_layer, layout.ALL_LAYERS, files.AIE_INTERVALS, files.INJECTION_INTERVALS, files.RANDOM_HEADS,
        files.RANDOM_FV, layout.RUN_META, layout.STEP_D_LOG,
    ]  # fmt: skip


def damage(folder: Folder, status: Status) -> list[str]:
    """Files that a completed q_id claims and that are missing or changed; empty if it is what it says."""
    return [
        name for name, sha in status.files.items() if not (folder / name).is_file() or sha256_file(folder / name) != sha
    ]


def digest_of(settings: Mapping[str, Any]) -> str:
    return digest(settings)
