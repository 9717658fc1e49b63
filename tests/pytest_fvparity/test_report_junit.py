"""JUnit XML: each stage's verdict, place and command, the same as in the report, on one process and on workers."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from fvcore.gates import Finding, StageResult, Status, Verdict
from pytest_fvparity.report.junit import LONGEST, properties
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    from tests.pytest_fvparity.worlds import World, plant, reports


def _written(path: Path) -> dict[str, dict[str, str | None]]:
    """Check key -> the properties of its test case."""
    return {
        str(case.get("name")): {str(p.get("name")): p.get("value") for p in case.iter("property")}
        for case in ElementTree.parse(path).iter("testcase")
    }


@pytest.mark.parametrize("workers", slow_but([[]], [[], ["-n", "2"]]), ids=["one process", "workers"])
def test_every_stage_says_what_the_report_says(pytester: pytest.Pytester, world: World, workers: list[str]) -> None:
    # What is made in inference mode cannot be edited in place.
    fault = 'x = leaves["mean_activations"] = leaves["mean_activations"].clone(); x[0, 1, 2, 3] += 0.5'
    plant(pytester, "mean_activations", fault)

    how = ["-m", "parity", "-p", "no:cacheprovider", "--junitxml=junit.xml", "--fv-max-trials=2", *workers]
    run = pytester.runpytest_subprocess if workers else pytester.runpytest_inprocess
    run(*how, *world.options)

    (report,) = reports(pytester)
    written = _written(pytester.path / "junit.xml")
    assert list(written) == [check["key"] for check in report["checks"]]
    for check in report["checks"]:
        first = check["first_mismatch"]
        said = {
            "fvparity_status": check["status"],
            "fvparity_fault": check["fault"],
            "fvparity_max_abs_diff": check["max_abs_diff"],
            "fvparity_mismatches": check["mismatch_count"],
            "fvparity_first": first["where"] if first else None,
            "fvparity_repro": check["repro_command"],
        }
        assert written[check["key"]] == {name: str(value) for name, value in said.items() if value is not None}
    wrong = written["mean_activations"]
    assert wrong["fvparity_fault"] == "own"
    assert str(wrong["fvparity_first"]).startswith("mean_activations[layer 0, head 1, slot 2 (")
    assert str(wrong["fvparity_repro"]).startswith("pytest -p no:cacheprovider ")
    assert written["top_heads"].keys() == {"fvparity_status", "fvparity_repro"}


def test_a_fixture_that_fails_is_a_status_too(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef fv_candidate():\n    raise ValueError('nothing here')")

    pytester.runpytest_inprocess("-m", "parity", "--junitxml=junit.xml", *world.options)

    written = _written(pytester.path / "junit.xml")
    assert [row["fvparity_status"] for row in written.values()] == ["ERROR", *["BLOCKED"] * 5]


def test_what_is_said_is_short_and_whole() -> None:
    finding = Finding("x" * 5000, "differs")
    verdict = Verdict((finding,), compared=3, mismatch_count=1, measurements={"max_abs_diff": float("nan")})
    result = StageResult("parity", "slot_map", Status.FAIL, verdict)

    said = dict(properties(result, "pytest " + "y" * 5000))

    assert said["fvparity_max_abs_diff"] == "nan"
    assert {name: len(text) for name, text in said.items() if len(text) > 10} == {
        "fvparity_first": LONGEST,
        "fvparity_repro": LONGEST,
    }
    assert said["fvparity_first"].endswith("…")
