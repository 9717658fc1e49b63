from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel


@pytest.fixture(scope="session")
def ran(llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run over the small file; read only."""
    from tests.fvcore.experiments.relation.worlds import run_small

    return run_small(llama, tmp_path_factory.mktemp("small")).root
