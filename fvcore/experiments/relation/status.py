"""qid_status.json: what has become of one q_id."""

from __future__ import annotations

from typing import Any, ClassVar

from fvcore.experiments.relation import files
from fvcore.experiments.status import UnitStatus

COMPLETED = "all stages completed"


class QIdStatus(UnitStatus):
    """`config` repeats, in the plan's words, what `settings` says."""

    FILE: ClassVar[str] = files.STATUS
    KEYS: ClassVar[tuple[str, ...]] = (
        "q_id", "status", "created_at", "updated_at", "config", "q_row_count", "reason", "cause", "step",
        "expected_layers", "settings_digest", "settings", "files",
    )  # fmt: skip

    q_id: str
    config: dict[str, Any]
    q_row_count: int
    expected_layers: list[int]
