from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest import pytester

from tests.made_once import made_once, session_root

if TYPE_CHECKING:
    from tests.pytest_fvparity.transfer_world import TransferWorld
    from tests.pytest_fvparity.worlds import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny random llama with one trials file and its golden; read only."""
    from tests.pytest_fvparity.worlds import World, make_world

    return World.below(made_once(session_root(tmp_path_factory), "world", make_world))


@pytest.fixture(scope="session")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with two trials files; read only."""
    from tests.pytest_fvparity.worlds import World, make_world

    make = partial(make_world, seeds=(0, 1))
    return World.below(made_once(session_root(tmp_path_factory), "two_files", make))


@pytest.fixture(scope="session")
def transfer_world(tmp_path_factory: pytest.TempPathFactory) -> TransferWorld:
    """A relation run of the shipped model with the golden of one q_id; read only."""
    from tests.pytest_fvparity.transfer_world import TransferWorld, make_transfer_world

    return TransferWorld.below(made_once(session_root(tmp_path_factory), "relation", make_transfer_world))


@pytest.fixture(scope="session")
def select_kv_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Select-KV run that passes; read only."""
    from tests.select_kv_run import RUN_ID, make_select_kv_run

    return made_once(session_root(tmp_path_factory), "select_kv", make_select_kv_run) / RUN_ID


@pytest.fixture(scope="session", autouse=True)
def _libraries() -> None:
    """pytester forgets what a run in this process imported, and torch cannot be imported twice: all that a run needs of it
    is here before, the parts too that come with a model."""
    from importlib import import_module

    from fvcore.embedded.random_models import random_lm

    for name in (
        "fvcore.experiments.relation.run",
        "fvcore.experiments.select_kv.model_runtime",
        "fvcore.experiments.select_kv.run",
        "fvcore.model.leftovers",
        "hypothesis",  # its plugin asks it at the end of every run
        "pytest_fvparity.bundle.bundle",
        "pytest_fvparity.candidates.candidates",
        "pytest_fvparity.candidates.itself",
        "pytest_fvparity.golden.golden",
        "pytest_fvparity.parity.conditions",
        "pytest_fvparity.parity.at_hand",
        "pytest_fvparity.reference.reference",
        "pytest_fvparity.report.annotations",
        "pytest_fvparity.report.render",  # with its templates, compiled once
        "pytest_fvparity.report.screen",
    ):
        import_module(name)
    random_lm("llama")


@pytest.fixture(scope="session", autouse=True)
def _models_stay() -> Iterator[None]:
    """Of the library of models that a run imported for itself pytester would forget the module and transformers keep the
    class, whose source it looks at in that module."""
    forget = pytester.SysModulesSnapshot.restore

    def restore(snapshot: pytester.SysModulesSnapshot) -> None:
        kept = {name: module for name, module in sys.modules.items() if name.startswith("transformers.")}
        forget(snapshot)
        sys.modules.update(kept)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pytester.SysModulesSnapshot, "restore", restore)
        yield


@pytest.fixture(autouse=True)
def _one_thread_and_no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    # Child processes: spinning thread pools are slow, and CI would refuse what the tests ask for.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "RUNNER_TEMP", "GITLAB_CI"):
        monkeypatch.delenv(name, raising=False)
