"""What is chosen for a run of a relation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fvcore import names
from fvcore.experiments.config import ConfigError, Option, Words
from fvcore.experiments.model_choice import ModelChoice, one_thread_if_small
from fvcore.experiments.relation.files import LAYOUTS
from fvcore.experiments.steps.settings import STEPS, StepSettings

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel


class RelationSettings(StepSettings):
    """The steps' settings and those of the q_ids; defaults are the plan's, and so are the names in files."""

    n_trials: Annotated[int, Option("n_trials_per_q")] = Field(default=25, ge=1, description="Trials of each q_id.")
    n_shots: Annotated[int, Option("n_demos")] = Field(
        default=9, ge=1, serialization_alias="n_demos", description="Demonstrations in a trial."
    )
    n_random: int = Field(default=5, ge=1, description="Vectors of random heads beside each vector.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of the intervals, between 0 and 1.")
    pictures: Annotated[bool, Option("heatmap")] = Field(
        default=True, description="Heat maps and report; they change no result."
    )

    def deciding(self) -> dict[str, Any]:
        """Every setting that results depend on, as plain values."""
        names = set(RelationSettings.model_fields) - {"max_memory", "pictures", "engine", "edit_layer"}
        return self.model_dump(mode="json", by_alias=True, include=names)


class RelationConfig(RelationSettings, ModelChoice):
    """A run, or some steps of it, over the q_ids of a relation file."""

    dataset: Annotated[Path, Option("relation_csv", "relation_csv_path")] = Field(
        default=Path("datasets", "relation", "relationA_ex.csv"), description="Relation file: q_id and two words a row."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads (default: 1 for a small model, else all cores)."
    )
    q: Annotated[Words | None, Option("q_list")] = Field(default=None, description="Such as Q3,Q5 (default: all).")
    steps: Words = Field(
        default=(), description=f"Some of {', '.join(STEPS)} in the q_ids' folders (default: whole runs with status)."
    )
    out: Path | None = Field(
        default=None, description="The run's folder, in which each q_id has its own (default: by --layout)."
    )
    layout: Literal["own", "plan"] = Field(
        default="own", description="own: reports/relation/<REL>/<model>/; plan: results_fv/relation_qwise/<REL>/."
    )
    stop_on_error: bool = Field(default=False, description="End at the first q_id that fails.")
    ray: Annotated[str | None, Option(alone="local", metavar="[ADDRESS]")] = Field(
        default=None, description="On Ray actors: of this machine, or of the Ray at an address."
    )
    ray_cpus: int = Field(default=1, ge=1, description="CPUs, and threads, of each actor.")
    out_name: str | None = Field(
        default=None, description="With heatmap alone: the picture's name (default: aie_heatmap_<Q>.png)."
    )

    def load(self, seed: int) -> LanguageModel:
        lm = super().load(seed)
        if self.threads is None:
            one_thread_if_small(lm)
        return lm

    @property
    def root(self) -> Path:
        """The run's folder."""
        if self.out is not None:
            return self.out
        root = LAYOUTS[self.layout] / names.made(self.dataset.stem)
        if self.layout == "plan":
            return root
        if not self.model:
            raise ConfigError(
                f"the run's folder lies by model below {root}: name it with --model, or the folder with --out"
            )
        return root / names.of_model(self.model)

    @property
    def asked(self) -> tuple[str, ...]:
        """q_ids of a step, of which there must be one."""
        if self.q:
            return tuple(names.part(q_id, "--q") for q_id in self.q)
        raise ConfigError("--q: no q_id asked for; such as --q Q3,Q5")
