"""Where a milestone's files lie: in a folder of their own, or under the plan's own names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LAYOUTS = ("own", "plan")


@dataclass(frozen=True)
class Layout:
    """`own`: everything in one folder of these trials. `plan`: `results/` and `results_fv/`, as the plan names them."""

    root: Path
    kind: str
    dataset: str
    fixed_trials_id: str

    @property
    def _trials(self) -> Path:
        return Path(self.dataset, self.fixed_trials_id)

    @property
    def runs(self) -> Path:
        """What our side writes: M0, M2, M4, M6, and what ended how."""
        return self.root / ("results_fv" if self.kind == "plan" else "milestones") / self._trials

    @property
    def results(self) -> Path:
        """What the reference's side writes: M1 and M3. The dataset's and the trials' folders stand below it."""
        return self.root / "results" if self.kind == "plan" else self.root / "milestones"

    @property
    def reference(self) -> Path:
        return self.results / self._trials

    @property
    def diff(self) -> Path:
        """M5's report."""
        return self.root / "results_fv" / self.dataset if self.kind == "plan" else self.runs / "diff"

    @property
    def goldens(self) -> Path:
        """Goldens that M1 records."""
        return self.root / "golden"

    @property
    def state(self) -> Path:
        return self.runs / "milestones.json"
