"""Reports made by hand: stage results as they come from a worker, put together as a run does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fvcore.gates import Finding, StageResult, Status, Verdict
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report import report as report_module
from pytest_fvparity.report.report import Report
from pytest_fvparity.suite.reporter import SuiteRun

FILE = "datasets/fixed_trials/fixed_trials_x.json"
CONTEXT = {
    "dataset": "words",
    "fixed_trials_id": "fixed_trials_x",
    "n_trials": 3,
    "n_compared_trials": 3,
    "model": "m",
    "golden_path": "golden/words/fixed_trials_x/src",
}


def row_of(key: str, status: Status = Status.PASS, verdict: Verdict | None = None, **rest: Any) -> dict[str, Any]:
    result = StageResult("parity", key, status, verdict or Verdict(compared=1), **rest)
    # Through JSON, as it comes from a worker.
    return json.loads(json.dumps({"context": CONTEXT, "result": result.to_dict()}))


def rows_of(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: changed.get(key, row_of(key)) for key in CHECK_KEYS}


def assemble(
    planned: Sequence[str], rows: dict[str, dict[str, Any]], keep_going: bool = False, suffix: str = ""
) -> Report:
    run = SuiteRun(f"{FILE}::parity", CHECK_KEYS, keep_going, planned=set(planned), rows=rows)
    commands = {key: f"pytest {FILE}::parity::{key}{suffix}" for key in planned}
    return report_module.assemble(run.results(), rows, run.context, commands, keep_going, (None, Path(FILE).stem))


def failed(message: str = "differs by 1", **how: Any) -> Verdict:
    coordinate = {"layer": 2, "head": 1, "slot": 3, "dim": 4}
    finding = Finding("mean_activations[layer 2, head 1, slot 3, dim 4]", message, 1.0, 2.0, coordinate, 1.0, 1.0)
    return Verdict((replace(finding, **how),), compared=10, mismatch_count=1, measurements={"max_abs_diff": 1.0})
