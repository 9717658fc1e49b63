"""The audit of data under pytest: `pytest -m audit` gates a data set."""

from __future__ import annotations

import json

import pytest

from tests.eyes import problems
from tests.fvcore.experiments.sae.worlds import config_of, right, trials


def test_data_is_gated_by_its_errors_and_its_warnings_are_told(pytester: pytest.Pytester) -> None:
    data = right(pytester.path)
    config_of(data)

    result = pytester.runpytest_inprocess("-m", "audit", "--fv-audit=config.yaml", "-v")
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(["config.yaml::audit::files PASSED*", "*7 of 7 checks of the data hold"])

    data.files["l1.json"] += [*trials("L1-0", "sober"), {"feature": "L1-0", "response": "x"}]
    data.write()
    result = pytester.runpytest_inprocess("-m", "audit", "--fv-audit=config.yaml")

    result.assert_outcomes(passed=6, failed=1)
    folder = pytester.path / "reports" / "audit" / "config"
    said = json.loads((folder / "audit_report.json").read_text())
    assert "1 of 7 checks fail, the first fields: MISSING_CONDITION: Response missing 'condition'" in said["headline"]
    assert next(check for check in said["checks"] if check["key"] == "conditions")["measurements"] == {
        "UNKNOWN_CONDITION": 1
    }
    page = (folder / "audit_report.html").read_text()
    assert "1 of 7 checks fail" in page
    assert problems(page) == []
    assert json.loads((folder / "data_validation.json").read_text())["validated"] is False
    assert not (pytester.path / "out").exists()
    pytester.runpytest_inprocess("config.yaml::audit::fields").assert_outcomes(failed=1)


@pytest.mark.parametrize(("words", "said"), [([], "*needs a config*"), (["--fv-audit=none.yaml"], "*no such file*")])
def test_without_a_config_it_is_a_usage_error(pytester: pytest.Pytester, words: list[str], said: str) -> None:
    result = pytester.runpytest_inprocess("-m", "audit", *words)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--fv-audit: {said}"])


def test_a_plain_run_judges_no_data(pytester: pytest.Pytester) -> None:
    config_of(right(pytester.path))
    pytester.makepyfile(test_it="def test_it(): pass")

    pytester.runpytest_inprocess("--fv-audit=config.yaml").assert_outcomes(passed=1)
