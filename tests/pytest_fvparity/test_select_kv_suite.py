"""Select-KV under pytest: a config is run and judged, a run that is there is read, and every check has its verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFIG = """
model: {id: wired}
data: {synthetic: {num_pairs: 8}}
runtime: {device: cpu, torch_dtype: float32}
phase2:
  eval: {on_samples: 6, off_samples: 6}
  select: {span_len: 2, span_budget: 2}
  thresholds: {off_delta_p99_max: LIMIT}
"""


def report(folder: Path, title: str) -> dict[str, object]:
    value: dict[str, object] = json.loads(
        (folder / "reports" / "selectkv" / title / "selectkv_report.json").read_text()
    )
    return value


def test_a_config_is_run_below_the_reports_and_judged(pytester: pytest.Pytester) -> None:
    (pytester.path / "lookups.yaml").write_text(CONFIG.replace("LIMIT", "0.05"))

    result = pytester.runpytest_inprocess("-m", "selectkv", "--fv-select-kv=lookups.yaml", "-v")

    result.assert_outcomes(passed=14)
    result.stdout.fnmatch_lines(["lookups.yaml::selectkv::a0_teacher_cache PASSED*", "*14 of 14 checks * hold"])
    said = report(pytester.path, "lookups")
    assert (said["overall_status"], said["run"]) == ("PASS", "reports/selectkv/lookups/run")
    assert (pytester.path / "reports/selectkv/lookups/run/report_phase2.json").is_file()


def test_a_rule_that_fails_is_named_with_both_numbers_and_blocks_nothing(pytester: pytest.Pytester) -> None:
    (pytester.path / "strict.yaml").write_text(CONFIG.replace("LIMIT", "0.0"))

    result = pytester.runpytest_inprocess("-m", "selectkv", "--fv-select-kv=strict.yaml")

    result.assert_outcomes(passed=13, failed=1)
    said = report(pytester.path, "strict")
    assert "b_off_delta: off_delta_p99_above_max: off_delta_p99_select is" in str(said["headline"])

    # The rows are those of now: with a limit that it keeps, the same config passes.
    (pytester.path / "strict.yaml").write_text(CONFIG.replace("LIMIT", "0.05"))
    pytester.runpytest_inprocess("strict.yaml::selectkv::b_off_delta").assert_outcomes(passed=1)


def test_a_run_that_is_there_is_judged_by_its_rows_alone(pytester: pytest.Pytester, select_kv_run: Path) -> None:
    result = pytester.runpytest_inprocess("-m", "selectkv", f"--fv-select-kv={select_kv_run}")

    result.assert_outcomes(passed=14)
    assert not (pytester.path / "reports/selectkv/small/run").exists()


@pytest.mark.parametrize(("given", "said"), [("none.yaml", "*no such file*"), ("empty", "*no Select-KV run*")])
def test_what_is_neither_config_nor_run_is_a_usage_error(pytester: pytest.Pytester, given: str, said: str) -> None:
    (pytester.path / "empty").mkdir()

    result = pytester.runpytest_inprocess("-m", "selectkv", f"--fv-select-kv={given}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--fv-select-kv: {said}"])


def test_a_plain_run_judges_no_state(pytester: pytest.Pytester) -> None:
    (pytester.path / "strict.yaml").write_text(CONFIG)
    pytester.makepyfile(test_it="def test_it(): pass")

    pytester.runpytest_inprocess("--fv-select-kv=strict.yaml").assert_outcomes(passed=1)
