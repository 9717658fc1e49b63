"""A report beside an earlier one: each word for a change, and drift in figures one can check by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fvcore.gates import Status, Verdict
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.history import compared
from pytest_fvparity.report.render import markdown, write_report
from pytest_fvparity.report.report import Report
from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

KEY = "mean_activations"


def _of(status: Status | None) -> Report:
    planned = [key for key in CHECK_KEYS if key != KEY or status is not None]
    verdict = failed() if status is Status.FAIL else None
    rows = rows_of() if status is None else rows_of(**{KEY: row_of(KEY, status, verdict)})
    return assemble(planned, rows, keep_going=True)


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        (Status.PASS, Status.PASS, "same"),
        (Status.PASS, Status.FAIL, "new"),
        (Status.PASS, Status.ERROR, "new"),
        (Status.BLOCKED, Status.FAIL, "new"),
        (None, Status.FAIL, "new"),
        (Status.FAIL, Status.PASS, "fixed"),
        (Status.CRASHED, Status.PASS, "fixed"),
        (Status.FAIL, Status.FAIL, "still failing"),
        (Status.FAIL, Status.ERROR, "still failing"),
        (Status.BLOCKED, Status.PASS, "passes"),
        (None, Status.PASS, "added"),
        (Status.FAIL, Status.BLOCKED, "not judged"),
        (Status.FAIL, None, "gone"),
        (Status.PASS, Status.NOT_PROVIDED, "not judged"),
    ],
)
def test_each_change_has_its_word(before: Status | None, now: Status | None, change: str) -> None:
    rows = {row.key: row for row in compared(_of(now), _of(before)).keys}

    assert rows[KEY].change == change
    assert {row.change for key, row in rows.items() if key != KEY} == {"same"}


def _using(largest: float, **used: float | str | None) -> Report:
    """A report in which mean activations pass, and leaves use these shares of their tolerances."""
    none = {"rtol": 0, "atol": 0, "of_max": 0, "of_norm": 0, "rule": "r"}
    rows = [{"leaf": leaf, **none, "max_abs_diff": largest, "used": share} for leaf, share in used.items()]
    verdict = Verdict(compared=10, measurements={"max_abs_diff": largest}, details={"tolerances": rows})
    return assemble(CHECK_KEYS, rows_of(**{KEY: row_of(KEY, verdict=verdict)}))


def _differing(largest: float, **rest: Any) -> Report:
    """Two leaves, of which the second takes a tenth of the first one's share."""
    return _using(largest, a=largest / 1e-4, b=largest / 1e-3).model_copy(update=rest)


def test_drift_is_a_ratio_and_the_share_of_the_tolerance() -> None:
    row = compared(_differing(4e-5), _differing(1e-6)).keys[2]

    assert row.ratio == pytest.approx(40)
    assert row.used_before == pytest.approx(0.01)
    assert row.used_now == pytest.approx(0.4)


def test_a_large_drift_that_passes_is_said_in_words() -> None:
    assert compared(_differing(4e-5), _differing(1e-6)).sentence == (
        "6 same; mean_activations passes, and its a is 40 times as near to its limit as before, at 40 % of it"
    )
    assert compared(_differing(9e-6), _differing(1e-6)).sentence == "6 same"
    assert compared(_differing(1e-6), _differing(0.0)).sentence.endswith("its a is no longer equal to the last bit")


def test_a_drift_is_seen_behind_a_leaf_that_is_nearer_to_its_limit() -> None:
    comparison = compared(_using(1e-5, a=0.5, b=0.3, c=0.02), _using(1e-5, a=0.5, b=0.001, c=0.001))

    assert comparison.keys[2].used_before == comparison.keys[2].used_now == 0.5
    assert [(d.leaf, d.used_before, d.used_now) for d in comparison.drifts] == [("b", 0.001, 0.3), ("c", 0.001, 0.02)]
    assert "its b is 300 times as near" in comparison.sentence


@pytest.mark.parametrize("before", [{"a": None}, {}, {"b": 0.001}], ids=["no share", "no leaf", "another leaf"])
def test_what_an_earlier_report_does_not_know_is_no_drift(before: dict[str, float | None]) -> None:
    assert compared(_using(1e-5, a=0.9), _using(1e-5, **before)).drifts == []


def test_a_key_that_fails_has_no_drift() -> None:
    worse = _using(1.0, a=50.0)
    failing = [check.model_copy(update={"status": "FAIL"}) if check.key == KEY else check for check in worse.checks]

    assert compared(worse.model_copy(update={"checks": failing}), _using(1e-5, a=0.1)).drifts == []


@pytest.mark.parametrize(
    ("before", "now", "ratio", "used"), [(0.0, 0.0, 1.0, 0.0), (0.0, 1e-6, "inf", 0.01), (1e-6, 0.0, 0.0, 0.0)]
)
def test_zero_has_its_words(before: float, now: float, ratio: float | str, used: float) -> None:
    row = compared(_differing(now), _differing(before)).keys[2]

    assert row.ratio == ratio
    assert row.used_now == pytest.approx(used)


def test_what_is_not_finite_is_the_largest_share() -> None:
    row = compared(_differing(float("inf")), _differing(1e-6)).keys[2]
    assert row.used_now == "inf"


def test_a_key_without_numbers_has_no_share() -> None:
    row = compared(_differing(1e-6), _differing(1e-6)).keys[0]
    assert (row.used_before, row.used_now) == (None, None)


def test_what_changed_around_the_numbers_is_listed() -> None:
    def profile(layer: int, torch: str) -> dict[str, Any]:
        return {"identity": {"edit_layer": layer, "seed": 0}, "conditions": {"versions": {"torch": torch}}}

    sides = [_differing(1e-6, profile=profile(n, f"2.{n}")) for n in (8, 9)]

    assert compared(sides[1], sides[0]).changed == {
        "edit_layer": [8, 9],
        "torch": ["2.8", "2.9"],
    }


def test_a_loosened_tolerance_and_another_candidate_are_changes_too() -> None:
    def limited(atol: float, candidate: str) -> Report:
        report = _using(1e-5, a=0.5)
        checks = [
            c.model_copy(update={"tolerances": [t.model_copy(update={"atol": atol}) for t in c.tolerances]})
            for c in report.checks
        ]
        return report.model_copy(update={"checks": checks, "candidate": candidate})

    found = compared(limited(1e-3, "b.B"), limited(1e-5, "a.A"))

    assert found.changed == {"candidate": ["a.A", "b.B"], f"tolerances.{KEY} a.atol": [1e-5, 1e-3]}
    # A key that has none now, since it failed before its leaves were compared, says nothing of tolerances.
    assert compared(_of(Status.ERROR), limited(1e-5, "a.A")).changed.keys() == {"candidate", "mode"}


def test_it_is_in_markdown_in_html_and_in_json(tmp_path: Path) -> None:
    now, before = _of(Status.FAIL), _of(Status.PASS)
    comparison = compared(now, before)

    write_report(now, tmp_path, comparison)

    value = json.loads((tmp_path / "src_vs_fv_comparison.json").read_text())
    assert value == comparison.model_dump(mode="json")
    assert "| `mean_activations` | new | PASS | FAIL | – | 1 |" in (tmp_path / "src_vs_fv_diff_report.md").read_text()
    page = (tmp_path / "src_vs_fv_diff_report.html").read_text()
    assert '<td>mean_activations</td><td class="off">new</td><td>PASS</td><td>FAIL</td>' in page
    assert "<script" not in page
    assert "Against" not in markdown(now, 100_000)


def test_drifts_are_in_markdown_in_html_and_in_json(tmp_path: Path) -> None:
    now = _using(1e-5, a=0.4)

    write_report(now, tmp_path, compared(now, _using(1e-5, a=0.01)))

    value = json.loads((tmp_path / "src_vs_fv_comparison.json").read_text())
    assert value["drifts"] == [{"key": KEY, "leaf": "a", "used_before": 0.01, "used_now": 0.4, "ratio": 40.0}]
    row = "| `mean_activations` | `a` | 1 % | 40 % | 40 |"
    assert row in (tmp_path / "src_vs_fv_diff_report.md").read_text()
    page = (tmp_path / "src_vs_fv_diff_report.html").read_text()
    assert '<td>mean_activations</td><td>a</td><td class="n">1 %</td><td class="n">40 %</td>' in page
