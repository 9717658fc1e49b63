"""`pytest -m transfer`: what is collected, what is red and where, and what the report says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.relation import files
from fvcore.experiments.steps import layout
from fvcore.gates import StageResult, Status
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.transfer.runs import QId
from pytest_fvparity.transfer.stages import KEYS
from tests.late import RUNNING
from tests.pytest_fvparity.transfer_world import TransferWorld, break_vector
from tests.pytest_fvparity.worlds import plant, reports, statuses

if RUNNING:
    from fvcore.formats import read_json, write_json
    from pytest_fvparity.transfer.report import TransferReport, assemble

GREEN = dict.fromkeys(KEYS, "PASS")
REFERENCE = dict.fromkeys(CHECK_KEYS, "PASS")


@pytest.fixture
def own_world(transfer_world: TransferWorld, tmp_path: Path) -> TransferWorld:
    """A copy of the run that a test may damage."""
    return TransferWorld(shutil.copytree(transfer_world.root, tmp_path / "run" / "tiny-llama"), transfer_world.golden)


def transfer_report(pytester: pytest.Pytester) -> dict[str, Any]:
    (path,) = pytester.path.glob("reports/transfer/*/*/transfer_report.json")
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def concluded(**changed: Status) -> TransferReport:
    """The report of one q_id, of whose stages none was run but those that are given."""
    told = dict.fromkeys(KEYS, Status.NOT_RUN) | changed
    results = {key: StageResult("transfer", key, status, message="no CUDA device") for key, status in told.items()}
    return assemble("run", [QId("Q1", Path("Q1"), "completed")], {"Q1": results}, {})


# ---------------------------------------------------------------- green


def test_both_suites_of_every_q_id(pytester: pytest.Pytester, transfer_world: TransferWorld) -> None:
    result = pytester.runpytest_inprocess("-m", "transfer", *transfer_world.options)

    # Of Q1 both suites; of Q2, which has no golden, its files; of Q3, which has too few rows, its status.
    result.assert_outcomes(passed=len(CHECK_KEYS) + 2 * len(KEYS) + 1)
    report = transfer_report(pytester)
    assert report["overall_status"] == "PASS"
    assert report["compared_with_reference"] == ["Q1"]
    rows = report["q_ids"]
    assert rows["Q1"] == {"state": "completed", "files": GREEN, "reference": REFERENCE}
    assert rows["Q2"] == {"state": "completed", "files": GREEN, "reference": None}
    assert rows["Q3"] == {"state": "skipped", "files": {"qid_status": "PASS"}, "reference": None}
    (parity,) = reports(pytester)
    assert (parity["dataset"], parity["fixed_trials_id"]) == ("pairs", "Q1_t3_s3_seed0_tiny_llama")


@pytest.mark.slow
def test_two_workers_say_the_same_as_one_process(pytester: pytest.Pytester, own_world: TransferWorld) -> None:
    break_vector(own_world, "Q2")
    serial = pytester.runpytest_inprocess("-m", "transfer", *own_world.options)
    one = transfer_report(pytester) | {"created_at": ""}
    parallel = pytester.runpytest_subprocess("-m", "transfer", "-n", "2", *own_world.options)
    two = transfer_report(pytester) | {"created_at": ""}

    assert one == two
    assert one["overall_status"] == "FAIL"
    assert serial.ret == parallel.ret == pytest.ExitCode.TESTS_FAILED


def test_the_frozen_trials_are_trials_for_parity_too(pytester: pytest.Pytester, transfer_world: TransferWorld) -> None:
    model, _, golden = transfer_world.options
    path = transfer_world.root / "Q1" / layout.SAMPLED
    result = pytester.runpytest_inprocess("-m", "parity", model, golden, f"--fv-trials={path}")

    result.assert_outcomes(passed=6)
    (report,) = reports(pytester)
    assert report["overall_status"] == "PASS"
    assert not list(pytester.path.glob("reports/transfer/**/*.json"))


@pytest.mark.slow
def test_frozen_trials_of_two_q_ids_are_not_mixed_up(pytester: pytest.Pytester, transfer_world: TransferWorld) -> None:
    model, _, golden = transfer_world.options
    trials = [f"--fv-trials={transfer_world.root / q_id / layout.SAMPLED}" for q_id in ("Q1", "Q2")]
    result = pytester.runpytest_inprocess("-m", "parity", model, golden, *trials)

    result.stdout.fnmatch_lines(["*1 failed, 6 passed, 5 blocked*"])
    found = {report["fixed_trials_id"]: set(statuses(report).values()) for report in reports(pytester)}
    assert found == {"Q1_t3_s3_seed0_tiny_llama": {"PASS"}, "Q2_t3_s3_seed0_tiny_llama": {"NO_GOLDEN", "BLOCKED"}}
    result.stdout.fnmatch_lines(["*no golden at *pairs/Q2_t3_s3_seed0_tiny_llama/src*"])


# ---------------------------------------------------------------- red


def test_a_fault_in_a_file_is_red_at_its_q_id_and_key(pytester: pytest.Pytester, own_world: TransferWorld) -> None:
    break_vector(own_world, "Q2")
    result = pytester.runpytest_inprocess("-m", "transfer", *own_world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    report = transfer_report(pytester)
    assert report["q_ids"]["Q2"]["files"] == GREEN | {"stepe_vector": "FAIL", "step6_summary": "BLOCKED"}
    assert report["q_ids"]["Q1"] == {"state": "completed", "files": GREEN, "reference": REFERENCE}
    (failure,) = report["failures"]
    assert (failure["q_id"], failure["suite"], failure["key"]) == ("Q2", "transfer", "stepe_vector")
    assert (failure["cause"], failure["where"]) == ("numeric", "function_vector[dim 0]")
    assert report["by_cause"] == {"numeric": ["Q2"]}
    result.stdout.fnmatch_lines(["*FAIL: 1 of 2 q_ids and 1 skipped differ; first Q2, transfer stepe_vector:*"])


def test_a_fault_of_the_candidate_is_red_against_the_reference(
    pytester: pytest.Pytester, transfer_world: TransferWorld
) -> None:
    plant(pytester, "slot_map", 'leaves["0:0/clean/query_predictive_slot"] = 0')
    result = pytester.runpytest_inprocess("-m", "transfer", *transfer_world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    report = transfer_report(pytester)
    (failure,) = report["failures"]
    assert (failure["q_id"], failure["suite"], failure["key"]) == ("Q1", "parity", "slot_map")
    assert failure["cause"] == "tokenizer"
    assert report["q_ids"]["Q1"]["files"] == GREEN
    assert report["compared_with_reference"] == []


@pytest.mark.parametrize("state", ["failed", "running", "pending"])
def test_a_q_id_that_is_not_completed_is_classified(
    pytester: pytest.Pytester, own_world: TransferWorld, state: str
) -> None:
    path = own_world.root / "Q2" / files.STATUS
    cause = "memory" if state == "failed" else None
    write_json(path, read_json(path) | {"status": state, "cause": cause, "reason": "killed"})
    pytester.runpytest_inprocess("-m", "transfer", "--fv-qid=Q2", *own_world.options)

    (failure,) = transfer_report(pytester)["failures"]
    assert (failure["q_id"], failure["key"], failure["cause"]) == ("Q2", "qid_status", cause or "data")
    assert failure["message"] == f"{state}: killed"


def test_a_status_that_cannot_be_read_is_an_error_in_one_sentence(
    pytester: pytest.Pytester, own_world: TransferWorld
) -> None:
    (own_world.root / "Q2" / files.STATUS).write_text("{")
    result = pytester.runpytest_inprocess("-m", "transfer", "--fv-qid=Q2", *own_world.options)

    (failure,) = transfer_report(pytester)["failures"]
    assert (failure["q_id"], failure["key"], failure["status"]) == ("Q2", "qid_status", "ERROR")
    assert "Traceback" not in result.stdout.str()


def test_a_run_that_nobody_held_against_the_reference_is_not_green(
    pytester: pytest.Pytester, transfer_world: TransferWorld
) -> None:
    model, root, _ = transfer_world.options
    (pytester.path / "none").mkdir()
    options = [model, root, f"--fv-golden={pytester.path / 'none'}"]

    result = pytester.runpytest_inprocess("-m", "transfer", *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert transfer_report(pytester)["headline"].endswith("there is no golden of any of them")

    asked_for_one = pytester.runpytest_inprocess("-m", "transfer", *options, "--fv-qid=Q2")
    assert asked_for_one.ret == pytest.ExitCode.OK
    assert transfer_report(pytester)["overall_status"] == "PARTIAL"
    assert list(transfer_report(pytester)["q_ids"]) == ["Q2"]


# ---------------------------------------------------------------- what is asked for


def test_without_a_device_nothing_was_run_and_nothing_failed() -> None:
    assert (concluded().overall_status, concluded().failures) == ("NOT_RUN", [])


def test_what_was_not_run_beside_what_was_is_missing() -> None:
    report = concluded(qid_status=Status.PASS, sampled_trials=Status.BLOCKED)
    assert report.overall_status == "FAIL"
    assert {failure.key for failure in report.failures} == set(KEYS[2:])


def test_without_a_run_the_command_that_makes_one_is_named(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("-m", "transfer")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--fv-relation-root*fvcore relation run*"])

    (pytester.path / "empty").mkdir()
    result = pytester.runpytest_inprocess("-m", "transfer", "--fv-relation-root=empty")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*empty: no relation run*"])


def test_a_q_id_that_is_not_there_is_named(pytester: pytest.Pytester, transfer_world: TransferWorld) -> None:
    result = pytester.runpytest_inprocess("-m", "transfer", *transfer_world.options, "--fv-qid=Q9")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no q_id 'Q9'; there are Q1, Q2, Q3*"])


@pytest.mark.parametrize("expression", ["", "not slow", "parity"])
def test_no_other_run_looks_at_a_relation(
    pytester: pytest.Pytester, transfer_world: TransferWorld, expression: str
) -> None:
    pytester.makeini(f"[pytest]\nfv_relation_root = {transfer_world.root}\n")
    pytester.makepyfile("def test_own():\n    pass\n")
    selected = ["-m", expression] if expression else []
    result = pytester.runpytest_inprocess("--collect-only", "-q", *selected, "--fv-model=tiny-llama")

    result.stdout.no_fnmatch_line("*qid_status*")
