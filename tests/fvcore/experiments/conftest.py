from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fvcore.experiments.folder import Folder
    from fvcore.model.model import LanguageModel

ROOT = Path(__file__).parents[3]
NAMES = ("tiny-llama", "tiny-gpt2")


def trials_path(name: str) -> Path:
    tag = name.replace("-", "_")
    return ROOT / "datasets" / "fixed_trials" / f"fixed_trials_tiny_antonym_t10_s10_seed0_{tag}.json"


@pytest.fixture(scope="session")
def lms() -> dict[str, LanguageModel]:
    from fvcore.model import model as models

    return {name: models.load(name) for name in NAMES}


@pytest.fixture(scope="session", params=NAMES)
def lm(request: pytest.FixtureRequest, lms: dict[str, LanguageModel]) -> LanguageModel:
    return lms[request.param]


@pytest.fixture(scope="session")
def llama(lms: dict[str, LanguageModel]) -> LanguageModel:
    return lms["tiny-llama"]


@pytest.fixture(scope="session")
def done(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A whole run on the model's antonym trials; read only."""
    from fvcore.experiments.folder import Folder
    from fvcore.experiments.steps.run import run
    from fvcore.experiments.steps.sampled import FixedSource
    from fvcore.experiments.steps.settings import StepSettings

    root = tmp_path_factory.mktemp(lm.name)
    run(lm, root, StepSettings(top_heads=7), FixedSource(trials_path(lm.name)))
    return Folder(root)
