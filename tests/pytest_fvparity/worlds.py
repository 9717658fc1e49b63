"""A small world for pytester: a tiny random model on disk, its trials, and a golden recorded from `exact`.

What the real reference says is held by the shipped goldens; here the golden is our own, so that planted faults are the
only difference.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings
    from fvcore.trials.fixed import FixedTrials

    SETTINGS: Settings

PROVENANCE: dict[str, Any] = {
    "repository": "none",
    "commit": "none",
    "sources": {},
    "normalisations": {"applied": [], "already": []},
    "versions": {},
}


def __getattr__(name: str) -> Any:
    """`SETTINGS`, the settings of the goldens here: made when they are asked for, so that collection brings no torch."""
    if name != "SETTINGS":
        raise AttributeError(name)
    from fvcore.pipeline import Settings

    return Settings(edit_layer=1, n_top_heads=3)


@dataclass(frozen=True)
class World:
    """Paths of everything a run needs, and the options that name them."""

    model: Path
    trials: tuple[Path, ...]
    golden: Path

    @classmethod
    def below(cls, folder: Path) -> World:
        """The world that `make_world` made in `folder`."""
        (model,) = folder.glob("random-*")
        return cls(model, tuple(sorted(folder.glob("fixed_trials_*.json"))), folder / "golden")

    @property
    def options(self) -> list[str]:
        return [f"--fv-model={self.model}", *self.trial_options, f"--fv-golden={self.golden}"]

    @property
    def trial_options(self) -> list[str]:
        # With `=`: pytest takes an existing path that stands alone for a test path, and moves its rootdir there.
        return [f"--fv-trials={path}" for path in self.trials]


def make_world(folder: Path, family: str = "llama", seeds: tuple[int, ...] = (0,)) -> World:
    from fvcore.embedded.random_models import random_lm, trials_for
    from fvcore.model import model as models
    from fvcore.trials import fixed as trials

    directory = folder / f"random-{family}"
    random_lm(family, directory=directory)
    lm = models.load(str(directory))
    for seed in seeds:
        path = folder / f"fixed_trials_pairs_seed{seed}_{family}.json"
        trials.write(path, trials_for(lm, seed=seed).file)
        record(lm, trials.read(path), folder / "golden")
    return World.below(folder)


def record(lm: LanguageModel, fixed: FixedTrials, root: Path, settings: Settings | None = None) -> Path:
    """What --fv-regen-golden writes, with fvcore in the reference's place; `settings` are SETTINGS if not given."""
    from fvcore import pipeline
    from pytest_fvparity.golden import golden
    from pytest_fvparity.reference.reference import Recording

    settings = settings or __getattr__("SETTINGS")
    artifacts = pipeline.run(lm, fixed, settings)
    profile = pipeline.profile_of(lm, fixed, settings)
    path = root / golden.relative_path(fixed.dataset, fixed.id, settings.reference_profile)
    golden.write(Recording(artifacts, PROVENANCE, profile), path)
    return path


# A conftest that puts a faulty candidate in fvcore's place. `{method}` is a check key, `{fault}` changes its leaves.
FAULTY = """
import os, torch
from fvcore.pipeline import Pipeline

class Faulty(Pipeline):
    def {method}(self, *inputs):
        leaves = dict(super().{method}(*inputs))
        {fault}
        return leaves

def pytest_fvparity_candidate(lm, trials, settings):
    return Faulty(lm, trials, settings)
"""


def plant(pytester: pytest.Pytester, method: str, fault: str) -> None:
    pytester.makeconftest(FAULTY.format(method=method, fault=fault))


def reports(pytester: pytest.Pytester) -> list[dict[str, Any]]:
    """Every report the run wrote."""
    files = sorted(pytester.path.glob("reports/*/*/src_vs_fv_diff_report.json"))
    return [json.loads(file.read_text()) for file in files]


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {check["key"]: check["status"] for check in report["checks"]}
