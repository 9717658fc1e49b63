from __future__ import annotations

from pathlib import Path

import pytest

from tests.made_once import made_once, session_root


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of the shipped model, which passes; read only."""
    from tests.select_kv_run import RUN_ID, make_select_kv_run

    return made_once(session_root(tmp_path_factory), "select_kv", make_select_kv_run) / RUN_ID
