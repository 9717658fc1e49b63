from __future__ import annotations

import os

import pytest

# Before torch is imported: spinning thread pools of a few processes on a few cores are many times slower than one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
