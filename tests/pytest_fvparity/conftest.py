from __future__ import annotations

import pytest

from tests.pytest_fvparity.worlds import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny random llama with one trials file and its golden."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with two trials files."""
    return make_world(tmp_path_factory.mktemp("two"), seeds=(0, 1))


@pytest.fixture(autouse=True)
def _one_thread_and_no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    # Child processes: spinning thread pools are slow, and CI would refuse what the tests ask for.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CI", raising=False)
