from __future__ import annotations

from pathlib import Path

import pytest

from fvcore.model.model import LanguageModel
from tests.fvcore.experiments.relation.worlds import run_small


@pytest.fixture(scope="session")
def ran(llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run over the small file; read only."""
    return run_small(llama, tmp_path_factory.mktemp("small")).root
