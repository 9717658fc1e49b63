"""The plugin in a run: what is collected, how fixtures are shared, what order and workers do to the verdict."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING

if RUNNING:
    from tests.pytest_fvparity.worlds import World, plant, reports, statuses


FAULT = 'leaves["mean_activations"] = leaves["mean_activations"] + 0.5'


def _without_times(report: dict[str, Any]) -> dict[str, Any]:
    text = json.loads(json.dumps(report))
    text.pop("created_at")
    for check in text["checks"]:
        check.pop("duration_sec")
        check["measurements"].pop("peak_memory_mib", None)
    return text


@pytest.mark.slow
def test_two_workers_give_the_same_report_as_one_process(pytester: pytest.Pytester, two_files: World) -> None:
    plant(pytester, "mean_activations", FAULT)

    serial = pytester.runpytest_inprocess("-m", "parity", *two_files.options)
    one = [_without_times(report) for report in reports(pytester)]
    parallel = pytester.runpytest_subprocess("-m", "parity", "-v", "-n", "2", *two_files.options)
    two = [_without_times(report) for report in reports(pytester)]

    assert len(one) == 2
    assert one == two
    for result in (serial, parallel):
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["*2 failed, 4 passed, 6 blocked*"])
    parallel.stdout.fnmatch_lines(["fvparity: workers share whole files*", "scheduling tests via SuiteScheduling"])
    for worker in ("gw0", "gw1"):
        seen = re.findall(rf"\[{worker}\].* (?:PASSED|FAILED|BLOCKED) (\S+)::parity::(\w+)", parallel.stdout.str())
        assert len({file for file, _ in seen}) == 1
        assert [key for _, key in seen] == list(CHECK_KEYS)


@pytest.mark.slow
def test_a_worker_that_dies_is_crashed_and_what_follows_is_not_green(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "mean_activations", "os._exit(1)")

    result = pytester.runpytest_subprocess(
        "-m", "parity", "-n", "1", "--dist", "load", "--max-worker-restart", "1", *world.options
    )

    assert result.ret != pytest.ExitCode.OK
    (report,) = reports(pytester)
    found = statuses(report)
    assert found["mean_activations"] == "CRASHED"
    assert "PASS" not in [found[key] for key in CHECK_KEYS[3:]]
    assert report["overall_status"] == "FAIL"


def test_a_single_stage_runs_alone(pytester: pytest.Pytester, world: World) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", "-k", "slot_map", *world.options)

    result.assert_outcomes(passed=1, deselected=5)
    (report,) = reports(pytester)
    assert list(statuses(report)) == ["slot_map"]
    assert report["headline"].startswith("PARTIAL: 1 of 6 check keys compared, all agree")


def test_max_trials_shortens_the_per_trial_keys_only_and_says_so(pytester: pytest.Pytester, world: World) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", "--fv-max-trials", "1", *world.options)

    result.stdout.fnmatch_lines(["*1 of 3 trials compared*"])
    (report,) = reports(pytester)
    assert (report["n_compared_trials"], report["n_trials"]) == (1, 3)
    assert len(report["trials"]) == 1
    compared = {check["key"]: check["n_compared"] for check in report["checks"]}
    (file,) = world.golden.rglob("prompt_boundary.json")
    leaves = json.loads(file.read_text())
    of_first = {leaf: value for leaf, value in leaves.items() if leaf.startswith(("0:0/", "bos/"))}
    assert len(of_first) == 4 + 11
    # Every element of a list counts: ids are what this key is about.
    n_values = sum(len(value) if isinstance(value, list) else 1 for value in of_first.values())
    assert compared["prompt_boundary"] == n_values
    assert compared["mean_activations"] == 2 * 4 * 31 * 8
    assert compared["top_heads"] == 3 * 8 + 8 + 3 * 2 + 3  # cie, aie, heads, scores


def test_users_share_the_fixtures_and_an_override_changes_what_the_stages_run_on(
    pytester: pytest.Pytester, two_files: World
) -> None:
    pytester.makeconftest(
        f"""
        import pytest
        from fvcore.model import model as models

        @pytest.fixture(scope="session")
        def fv_model():
            lm = models.load({str(two_files.model)!r})
            lm.hf.loads = getattr(lm.hf, "loads", 0) + 1
            yield lm
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parity
        def test_mine(fv_model, fv_trials, fv_golden, fv_candidate, fv_profile):
            assert fv_model.hf.loads == 1
            assert fv_candidate.lm is fv_model
            assert fv_candidate.trials.id == fv_trials.id == fv_profile.identity.fixed_trials_id
            assert fv_golden.profile.identity == fv_profile.identity

        @pytest.mark.parity
        def test_every_key_has_a_method(fv_candidate, fv_check_key):
            assert callable(getattr(fv_candidate, fv_check_key))
        """
    )
    # The named model does not exist: only the override can have been used.
    options = ["--fv-model=no-such-model", *two_files.options[1:]]

    result = pytester.runpytest_inprocess("-m", "parity", *options)

    result.assert_outcomes(passed=12 + 2 + 12)


def test_an_unrelated_run_never_meets_the_stages(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_mine(): pass")

    for words in ((), ("-m", "not slow"), ("-k", "parity or mine")):
        result = pytester.runpytest_inprocess(*words)
        result.assert_outcomes(passed=1)
        assert "fvparity: model" not in result.stdout.str()
    assert not (pytester.path / "reports").exists()


def test_the_plugin_can_be_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_mine(): pass")

    result = pytester.runpytest_subprocess("-p", "no:fvparity", "-p", "no:xdist")

    result.assert_outcomes(passed=1)


def test_help_version_and_collection_import_no_torch(pytester: pytest.Pytester, world: World) -> None:
    program = (
        "import sys, pytest; code = pytest.main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'jinja2', 'deepdiff', 'yaml'} & set(sys.modules); "
        "print('HEAVY', sorted(heavy))"
    )
    for words in (["--version"], ["--help"], ["-m", "parity", "--collect-only", "-q", *world.options]):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=pytester.path, check=True
        )
        assert "HEAVY []" in done.stdout, words
    assert "parity::slot_map" in done.stdout


def test_ini_twins_are_read_and_the_command_line_wins(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeini(
        f"""
        [pytest]
        fv_model = {world.model}
        fv_trials = {world.trials[0]}
        fv_golden = {world.golden}
        fv_max_trials = 2
        fv_report_dir = elsewhere
        """
    )

    pytester.runpytest_inprocess("-m", "parity", "--fv-max-trials", "1")

    (file,) = pytester.path.glob("elsewhere/*/*/src_vs_fv_diff_report.json")
    assert json.loads(file.read_text())["n_compared_trials"] == 1


def test_a_gpu_run_without_a_gpu_is_not_run_or_fails_if_required(pytester: pytest.Pytester, world: World) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.fail("this test describes a machine without CUDA; run the suite with CUDA_VISIBLE_DEVICES=''")
    skipped = pytester.runpytest_inprocess("-m", "parity", "--fv-device", "cuda", *world.options)
    skipped.assert_outcomes(skipped=6)
    skipped.stdout.fnmatch_lines(["NOT_RUN: 6 check keys, nothing was compared: --fv-device cuda: no CUDA device*"])

    required = pytester.runpytest_inprocess("-m", "parity", "--fv-require-gpu", *world.options)
    assert required.ret == pytest.ExitCode.TESTS_FAILED
    required.stdout.fnmatch_lines(["*no CUDA device*"])


def test_junit_carries_a_short_status_per_stage(pytester: pytest.Pytester, world: World) -> None:
    pytester.runpytest_inprocess("-m", "parity", "--junitxml", "junit.xml", *world.options)

    text = (pytester.path / "junit.xml").read_text()
    assert text.count('name="fvparity_status" value="PASS"') == 6
    assert len(text) < 10_000


def test_collect_only_writes_no_report_and_is_green(pytester: pytest.Pytester, world: World) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", "--collect-only", *world.options)

    assert result.ret == pytest.ExitCode.OK
    assert not (pytester.path / "reports").exists()


def test_a_stage_stopped_by_maxfail_leaves_the_session_red(pytester: pytest.Pytester, two_files: World) -> None:
    plant(pytester, "prompt_boundary", 'leaves["0:0/target_id"] = -1')

    result = pytester.runpytest_inprocess("-m", "parity", "-x", *two_files.options)

    assert result.ret != pytest.ExitCode.OK
    assert {report["overall_status"] for report in reports(pytester)} == {"FAIL"}


def test_report_paths_do_not_depend_on_where_pytest_is_called_from(pytester: pytest.Pytester, world: World) -> None:
    folder = pytester.mkdir("reports-of-today")

    pytester.runpytest_inprocess("-m", "parity", f"--fv-report-dir={folder}", *world.options)

    names = {file.name for file in Path(folder).rglob("*") if file.is_file()}
    assert names == {
        "src_vs_fv_diff_report.json",
        "src_vs_fv_diff_report.md",
        "src_vs_fv_diff_report.html",
        "parity_suite_report.json",
        "parity_suite_stages.csv",
        "parity_suite.log",
        "injection_parity_trials.csv",
        "injection_parity_report.json",
        "summary.json",
        "summary.md",
        "summary.html",
    }


@pytest.mark.slow
@pytest.mark.parametrize("dist", ["load", "loadscope", "worksteal", "each"])
def test_no_way_to_distribute_turns_a_fault_green(pytester: pytest.Pytester, world: World, dist: str) -> None:
    plant(pytester, "slot_map", 'leaves["dummy_labels"] = []')
    how = ["--tx=2*popen"] if dist == "each" else ["-n", "2"]

    result = pytester.runpytest_subprocess("-m", "parity", *how, "--dist", dist, *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert report["first_divergence"]["check_key"] == "slot_map"
    assert "PASS" not in list(statuses(report).values())[1:]


def test_an_interrupted_run_keeps_what_it_knows(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "mean_activations", "raise KeyboardInterrupt")

    result = pytester.runpytest_inprocess("-m", "parity", *world.options, no_reraise_ctrlc=True)

    assert result.ret == pytest.ExitCode.INTERRUPTED
    (report,) = reports(pytester)
    assert list(statuses(report).values()) == ["PASS", "PASS", "CRASHED", *["BLOCKED"] * 3]
