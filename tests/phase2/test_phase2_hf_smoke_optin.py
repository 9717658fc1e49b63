"""Phase 2 on a real model, where that is asked for: RUN_HF_TESTS=1.

    RUN_HF_TESTS=1 pytest tests/phase2/test_phase2_hf_smoke_optin.py

The model is the plan's, or the one that RUN_HF_MODEL names. It is never fetched: who asks for this test has it, so a model
that is not there is a failure and no reason to skip.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.config import resolve
from fvcore.experiments.select_kv.config import PLAN, SelectKVConfig
from fvcore.formats import read_json

ASKED = os.environ.get("RUN_HF_TESTS") == "1"
FEW = {"phase2.eval.on_samples": 2, "phase2.eval.off_samples": 2}


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, float):
        yield value


@pytest.mark.skipif(not ASKED, reason="set RUN_HF_TESTS=1 where the plan's model is in the local cache")
def test_a_real_model_passes_gate_a(tmp_path: Path) -> None:
    from fvcore.experiments.select_kv.run import run_phase2

    model = {"model.id": named} if (named := os.environ.get("RUN_HF_MODEL")) else {}
    settings = resolve(SelectKVConfig, FEW | model | {"runtime.output_root": tmp_path}, PLAN).resolve()

    result = run_phase2(settings, run_id="smoke")

    assert result.report["status"] != "error", result.report.get("error")
    assert result.gateA_pass, result.report["gates"]["A"]
    assert set(result.report["gates"]) == {"A", "B"}
    assert result.report["backend"] == "hf"
    found = list(numbers(read_json(result.folder / "report_phase2.json")))
    assert found
    assert all(map(math.isfinite, found))


@pytest.mark.slow
def test_it_fails_without_a_model_where_it_is_asked_for(tmp_path: Path) -> None:
    """And is no skip: that would hide that nothing was tested."""
    asked = {"RUN_HF_TESTS": "1", "RUN_HF_MODEL": str(tmp_path / "none"), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{__file__}::test_a_real_model_passes_gate_a",
    ]

    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
    assert "no shipped model of that name" in done.stdout
