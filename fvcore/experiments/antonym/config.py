"""What is chosen for a run of the steps on fixed trials, or on trials of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fvcore import names, shipped
from fvcore.experiments.config import ConfigError, Option, Words
from fvcore.experiments.model_choice import ModelChoice
from fvcore.experiments.steps.settings import STEPS, StepSettings

if TYPE_CHECKING:
    from fvcore.experiments.steps.run import Source


class AntonymConfig(StepSettings, ModelChoice):
    """Trials are fixed or sampled, not both."""

    trials: Annotated[Path | None, Option("fixed_trials_path")] = Field(
        default=None, description="Fixed trials; they set n_trials and n_shots."
    )
    dataset: Annotated[Path | None, Option("dataset_json")] = Field(
        default=None, description="Raw dataset that trials are sampled from."
    )
    n_trials: int | None = Field(default=None, ge=1, description="Of a dataset (default: 10).")
    n_shots: int | None = Field(default=None, ge=2, description="Of a dataset (default: 10).")
    out: Path | None = Field(default=None, description="The run's folder (default: under reports/runtime/).")
    steps: Words = Field(default=(), description=f"Some of {', '.join(STEPS)} (default: all).")
    pictures: Annotated[bool, Option("heatmap")] = Field(default=True, description="Draw the heat map (matplotlib).")
    out_name: str | None = Field(
        default=None, description="With heatmap alone: the picture is aie_heatmap_<name>.png (default: all)."
    )

    @property
    def source(self) -> Source | None:
        """None where the folder's own trials are used."""
        from fvcore.experiments.steps.sampled import DatasetSource, FixedSource

        drawn_here = not self.steps or "sample" in self.steps
        if (self.trials and self.dataset) or (drawn_here and not self.trials and not self.dataset):
            raise ConfigError("give either --trials FILE or --dataset FILE: trials are fixed or sampled, not both")
        if self.trials is not None:
            return FixedSource(shipped.file(self.trials))
        if self.dataset is not None:
            return DatasetSource(shipped.file(self.dataset), self.n_trials or 10, self.n_shots or 10, self.seed)
        return None

    @property
    def folder(self) -> Path:
        data = self.trials or self.dataset
        if self.out is None and data is None:
            raise ConfigError("--out: name the run's folder, with the earlier steps' files in it")
        return self.out or Path("reports", "runtime", names.made(data.stem) if data else "", names.of_model(self.model))
