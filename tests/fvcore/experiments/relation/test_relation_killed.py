"""A run that is killed again and again, and taken up each time, ends in the very bytes of one that was not."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fvcore.experiments.folder import UNFINISHED, Folder
from fvcore.experiments.relation import files
from fvcore.experiments.relation.gates import QIdStatus
from fvcore.formats import read_json
from tests.late import RUNNING

if RUNNING:
    from tests.fvcore.experiments.relation.killing import killed_run, whole_run
    from tests.fvcore.experiments.relation.worlds import tree


N_KILLS = 10


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that begin with the libraries loaded and with nothing of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fvcore.experiments.relation.killing"])
    return context


def _end_of(processes: Any, target: Any, *args: Any) -> int:
    process = processes.Process(target=target, args=args)
    process.start()
    process.join(timeout=120)
    code = process.exitcode
    assert isinstance(code, int)
    return code


@pytest.mark.slow
def test_ten_kills_change_no_byte(processes: Any, tmp_path: Path) -> None:
    (whole, torn) = (tmp_path / "whole", tmp_path / "torn")
    for folder in (whole, torn):
        folder.mkdir()
    assert _end_of(processes, whole_run, whole) == 0
    expected = tree(whole / "out", files.LOG)
    rng, half_written, states = Random(1), 0, set()

    for seed in range(N_KILLS):
        assert _end_of(processes, killed_run, torn, seed, rng.randint(5, 40)) == -signal.SIGKILL
        half_written += any(UNFINISHED.fullmatch(path.name) for path in torn.rglob(".*"))
        found = QIdStatus.all_of(torn / "out")
        states |= {one.status for one in found.values()}
        for q_id, one in found.items():  # what says that it is complete is so at every moment
            assert one.status != "completed" or not one.damage(Folder(torn / "out" / q_id))
    assert half_written  # or no kill has hit a file
    assert {"pending", "running", "completed"} <= states  # or they have all hit the same place

    assert _end_of(processes, whole_run, torn) == 0

    found_bytes = tree(torn / "out", files.LOG)
    assert sorted(found_bytes) == sorted(expected)
    assert [name for name in expected if found_bytes[name] != expected[name]] == []
    assert read_json(torn / "out" / files.RUN_SUMMARY)["completed_q_ids"] == ["Q1", "Q10", "Q2"]
