"""What is chosen for a run of a relation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fvcore.experiments.steps.settings import Settings


class RelationSettings(Settings):
    """The steps' settings and those of the q_ids; defaults are the plan's.

    n_random: vectors of random heads that each q_id's own is held against     confidence: of every interval
    pictures: whether heat maps are drawn; like `max_memory` it changes no result
    """

    n_trials: int = Field(default=25, ge=1)
    n_demos: int = Field(default=9, ge=1)
    n_random: int = Field(default=5, ge=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    pictures: bool = True

    @property
    def rows_needed(self) -> int:
        return self.n_demos + 1

    def deciding(self) -> dict[str, Any]:
        """Every setting that results depend on, as plain values."""
        return self.model_dump(mode="json", exclude={"max_memory", "pictures", "engine", "edit_layer"})
