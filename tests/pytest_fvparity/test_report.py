"""The report: one value, its published schema, and renderings that say the same and can break nothing."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fvcore import palette
from fvcore.gates import Status, Verdict
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.render import write_all, write_report
from pytest_fvparity.report.report import Report
from pytest_fvparity.report.schema import report_schema
from tests.eyes import problems
from tests.late import RUNNING
from tests.pytest_fvparity.made_reports import CONTEXT, FILE, assemble, failed, row_of, rows_of

if RUNNING:
    from tests.pytest_fvparity.worlds import World, plant


ROOT = Path(__file__).parents[2]


def test_the_published_schema_is_current_and_a_report_fits_it() -> None:
    import jsonschema

    published = json.loads((ROOT / "docs" / "report.schema.json").read_text())

    assert published == report_schema(), "run `make docs`"
    report = assemble(CHECK_KEYS, rows_of(mean_activations=row_of("mean_activations", Status.FAIL, failed())))
    jsonschema.validate(report.model_dump(mode="json"), published)


def test_the_first_line_is_verdict_count_place_and_values() -> None:
    report = assemble(CHECK_KEYS, rows_of(mean_activations=row_of("mean_activations", Status.FAIL, failed())))

    assert report.headline == (
        "FAIL at mean_activations: 1 of 10 values is not what is expected; the largest difference at layer 2, head 1, slot 3, "
        "dim 4: expected 1, got 2"
    )
    assert report.repro_command == f"pytest {FILE}::parity::mean_activations"
    assert report.first_divergence is not None
    assert report.first_divergence.json_pointer == "/mean_activations/2/1/3/4"


def test_a_pass_behind_a_failure_is_not_believed() -> None:
    report = assemble(CHECK_KEYS, rows_of(slot_map=row_of("slot_map", Status.FAIL, failed())))

    assert [check.status for check in report.checks] == ["PASS", "FAIL", *["BLOCKED"] * 4]
    assert {check.blocked_by for check in report.checks[2:]} == {"slot_map"}


def test_with_keep_going_a_later_pass_stands() -> None:
    rows = rows_of(slot_map=row_of("slot_map", Status.FAIL, failed()))

    report = assemble(CHECK_KEYS, rows, keep_going=True)

    assert [check.status for check in report.checks] == ["PASS", "FAIL", *["PASS"] * 4]
    assert report.overall_status == "FAIL"


def test_a_planned_stage_that_never_reported_is_crashed_and_red() -> None:
    rows = rows_of()
    del rows["top_heads"], rows["fv_vector"], rows["injection_output"]

    report = assemble(CHECK_KEYS, rows)

    assert [check.status for check in report.checks][3:] == ["CRASHED", "BLOCKED", "BLOCKED"]
    assert report.overall_status == "FAIL"


def test_no_row_at_all_is_still_a_report() -> None:
    report = assemble(CHECK_KEYS, {})

    assert report.fixed_trials_id == "fixed_trials_x"
    assert report.overall_status == "FAIL"


def test_a_nan_difference_is_written_as_a_word(tmp_path: Path) -> None:
    verdict = replace(failed(), measurements={"max_abs_diff": float("nan")})
    report = assemble(CHECK_KEYS, rows_of(mean_activations=row_of("mean_activations", Status.FAIL, verdict)))

    write_report(report, tmp_path)

    value = json.loads((tmp_path / "src_vs_fv_diff_report.json").read_text())
    assert value["checks"][2]["max_abs_diff"] == "nan"


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_html_is_escaped_and_uses_no_network(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    verdict = failed(nasty, expected=nasty, actual=f"</code>{nasty}", where=f"0:0/clean/text{nasty}")
    row = row_of("prompt_boundary", Status.FAIL, verdict, message=nasty)
    row["context"] = {**CONTEXT, "model": nasty}
    report = assemble(CHECK_KEYS, rows_of(prompt_boundary=row), suffix=nasty)

    write_all([report], tmp_path)

    for file in tmp_path.rglob("*.html"):
        parser = _Tags()
        parser.feed(file.read_text())
        assert "script" not in parser.tags, file
        assert not [link for link in parser.links if "//" in link], file
        assert "url(" not in file.read_text(), file
        assert problems(file.read_text()) == [], file


def test_markdown_cells_cannot_break_the_table(tmp_path: Path) -> None:
    report = assemble(CHECK_KEYS, rows_of(slot_map=row_of("slot_map", Status.FAIL, failed(expected="a|b\n`c`"))))

    write_report(report, tmp_path)

    lines = (tmp_path / "src_vs_fv_diff_report.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| `mean_activations`")]
    assert "a\\|b\\\\n\\`c\\`" in line


def test_the_plans_own_files_hold_their_fields(pytester: pytest.Pytester, world: World) -> None:
    pytester.runpytest_inprocess("-m", "parity", *world.options)

    (folder,) = pytester.path.glob("reports/*/*")
    suite = json.loads((folder / "parity_suite_report.json").read_text())
    assert list(suite)[:8] == [
        *("status", "dataset_name", "fixed_trials_id", "model_name", "seed", "earliest_failed_stage", "stages", "paths")
    ]
    assert [stage["name"] for stage in suite["stages"]] == list(CHECK_KEYS)
    assert list(suite["stages"][0]) == [
        "name",
        "status",
        "cmd",
        "exit_code",
        "mismatch_count",
        "max_abs_diff",
        "duration_sec",
    ]
    stages = (folder / "parity_suite_stages.csv").read_bytes()
    assert stages.startswith(b"name,status,exit_code,mismatch_count,max_abs_diff,duration_sec,cmd\r\n")
    with (folder / "injection_parity_trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial_id"], row["trial_idx"]) for row in rows] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert {(row["clean_equal"], row["with_equal"], row["delta_equal"], row["trial_match"]) for row in rows} == {
        ("True", "True", "True", "1")
    }
    assert float(rows[0]["delta_src_logprob"]) == float(rows[0]["with_src_logprob"]) - float(
        rows[0]["clean_src_logprob"]
    )
    injection = json.loads((folder / "injection_parity_report.json").read_text())
    assert injection["checked_trials"] == 3
    assert injection["mismatch_count"] == 0
    assert [len(head) for head in injection["top_heads"]] == [3, 3, 3]


def test_a_blocked_injection_leaves_no_old_numbers_behind(pytester: pytest.Pytester, world: World) -> None:
    pytester.runpytest_inprocess("-m", "parity", *world.options)
    plant(pytester, "slot_map", 'leaves["dummy_labels"] = []')

    pytester.runpytest_inprocess("-m", "parity", *world.options)

    (folder,) = pytester.path.glob("reports/*/*")
    assert len((folder / "injection_parity_trials.csv").read_text().splitlines()) == 1
    injection = json.loads((folder / "injection_parity_report.json").read_text())
    assert (injection["status"], injection["checked_trials"]) == ("BLOCKED", 0)


def test_a_report_reads_back_into_the_same_value() -> None:
    report = assemble(CHECK_KEYS, rows_of(mean_activations=row_of("mean_activations", Status.FAIL, failed())))

    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_heat_map_puts_layer_zero_at_the_bottom_and_marks_the_heads(tmp_path: Path) -> None:
    effects = [[0.0, 0.5], [-0.5, float("nan")]]
    details = {
        f"{name}_{side}": value
        for side in ("expected", "actual")
        for name, value in (("aie", effects), ("heads", [[0, 1]]))
    }
    rows = rows_of(top_heads=row_of("top_heads", verdict=Verdict(compared=1, details=details)))
    write_report(assemble(CHECK_KEYS, rows), tmp_path)
    drawn = (tmp_path / "src_vs_fv_diff_report.html").read_text().partition("<figcaption>candidate")[2]

    squares = {
        at: (y, fill) for y, fill, at in re.findall(r'<rect.* y="(\d+)".* fill="(.*)"><title>(layer ., head .)', drawn)
    }
    assert squares == {
        "layer 0, head 0": ("28", "#ffffff"),
        "layer 0, head 1": ("28", palette.POSITIVE[-1]),
        "layer 1, head 0": ("0", palette.NEGATIVE[-1]),
        "layer 1, head 1": ("0", "none"),
    }
    assert re.findall(r"<circle.*?>", drawn)[0].startswith('<circle class="ring" cx="42.0" cy="42.0"')
    assert drawn.count(">?<") == 1
    assert problems((tmp_path / "src_vs_fv_diff_report.html").read_text()) == []
