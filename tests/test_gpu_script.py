"""The script that is prepared for a machine with a GPU does on a CPU, at a tiny size, all that it does there; and it fails loudly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
STEPS = ["compiled-fp32", "lock-fp32", "lost-parity", "lost-steps", "machine", "sweep-fp32"]


def run(out: Path, **settings: object) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """How it ended, and how each step did."""
    given = {"OUT": out, "FV_SRC": "", "FV_DTYPES": "fp32", "PYTHON": sys.executable} | settings
    environment = os.environ | {name: str(value) for name, value in given.items()}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    rows = [line.split(maxsplit=3) for line in (out / "steps.txt").read_text().splitlines()]
    return done, {name: said for name, _, unit, said in rows if unit == "s"}


@pytest.mark.slow
def test_every_step_runs_and_leaves_its_figures(tmp_path: Path) -> None:
    tiny = {"FV_SIZE": "tiny-llama", "FV_TRIALS": 2, "FV_ROUNDS": 1, "FV_MILESTONES": "m2", "FV_COMPILER": "eager"}
    done, steps = run(tmp_path, FV_DEVICE="cpu", FV_THREADS=1, FV_LIMIT=4800, **tiny)

    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(steps) == STEPS
    assert all(said.startswith("ok: ") for said in steps.values())
    assert "ok: M2 PASS all 6 check keys agree" in steps["lock-fp32"]
    assert "it is left out" in done.stdout  # the reference
    (measured,) = json.loads((tmp_path / "performance.json").read_text())["runs"]
    assert {(timed["library"], timed["n_trials"]) for timed in measured["timed"]} >= {
        ("fast", 1),
        ("fast", 2),
        ("exact", 1),
    }
    compiled = json.loads((tmp_path / "compiled-fp32.json").read_text())
    assert [one["rows"] for one in compiled["found"]] == [128, 1280]
    assert max(one["apart"] for one in compiled["found"]) == 0  # what is not compiled is the same code


def test_a_step_that_fails_or_takes_too_long_is_red_and_the_others_run(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *sweep.py*) exit 5;; *compiled*) exec sleep 60;; esac\necho M2 PASS\n')
    python.chmod(0o755)

    done, steps = run(tmp_path / "out", PYTHON=python, FV_LIMIT=16)  # of compiled: 3

    assert done.returncode == 1
    assert sorted(steps) == STEPS
    assert steps.pop("sweep-fp32").startswith("FAILED with status 5")
    assert steps.pop("compiled-fp32").startswith("FAILED, not done after ")
    assert set(steps.values()) == {"ok: M2 PASS"}
    assert done.stderr.endswith("FAILED\n")


def test_without_the_device_nothing_is_begun(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no device >&2\nexit 1\n")
    python.chmod(0o755)

    done, steps = run(tmp_path / "out", PYTHON=python)

    assert done.returncode == 1
    assert steps == {"machine": "FAILED with status 1: no device"}
    assert "machine | no device" in done.stderr
