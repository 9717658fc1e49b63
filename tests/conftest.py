from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.late import import_late

# Before torch is imported: spinning thread pools of a few processes on a few cores are many times slower than one thread.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and item.path.is_relative_to(Path(__file__).parent):
        import_late(item.module)
