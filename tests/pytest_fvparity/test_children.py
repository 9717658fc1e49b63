"""A child ends with whoever started it, also with one that is killed, and is otherwise the program that was asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pytest_fvparity.children import following

PARENT = """
import subprocess, sys
from pytest_fvparity.children import following
child = subprocess.Popen(following([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]))
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells a child that its parent is gone")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        said = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        (pid,) = (int(word) for word in said - {"up"})
        child = psutil.Process(pid)
        os.kill(parent.pid, how)

    child.wait(timeout=60)
    assert not psutil.pid_exists(pid)


def test_a_child_is_the_program_that_was_asked_for(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-c",
        "import os, sys; print(sys.argv, os.environ['WORD'], os.getcwd()); sys.exit(7)",
        "a b",
    ]
    how = {"env": os.environ | {"WORD": "told"}, "cwd": tmp_path, "capture_output": True, "text": True, "check": False}

    done = subprocess.run(following(words), **how)

    assert (done.returncode, done.stdout.strip()) == (7, f"['-c', 'a b'] told {tmp_path}")


def test_a_program_that_is_not_there_is_told_by_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.run(following(["/no/such/program"]), check=False)
