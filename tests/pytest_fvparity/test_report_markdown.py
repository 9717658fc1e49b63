"""Markdown within a budget: what GitHub shows is never over its limit, never broken, and counted."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from fvcore.gates import Status
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.markdown import LEAST, parse, size, within
from pytest_fvparity.report.render import environment, markdown
from pytest_fvparity.report.report import Report
from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

ROW = "| {} | ä{} |"
DOCUMENT = "\n".join(
    [
        "**FAIL: it fails**",
        "",
        "```",
        *(f"line {n}" for n in range(100)),
        "```",
        "",
        "| a | b |",
        "|---|---|",
        *(ROW.format(n, "x" * 40) for n in range(200)),
        "",
        "the end",
    ]
)
N_BYTES = size(DOCUMENT)
NOTE = re.compile(
    r"\*\*Cut to stay within (\d+) bytes: (\d+) of (\d+) table rows and (\d+) of (\d+) other lines left out"
)


def test_what_fits_is_left_alone() -> None:
    assert within(DOCUMENT, N_BYTES, "") == DOCUMENT
    assert within(DOCUMENT, N_BYTES - 1, "") != DOCUMENT


@pytest.mark.parametrize("budget", [*range(LEAST, N_BYTES, 997), N_BYTES - 1])
def test_a_cut_is_within_the_budget_whole_in_form_and_counted(budget: int) -> None:
    text = within(DOCUMENT, budget, "All of it is elsewhere.")

    assert size(text) <= budget
    *body, empty, note = text.split("\n")
    start = DOCUMENT.split("\n")[: len(body)]
    assert empty == ""
    assert body == start or body == [*start[:-1], "```"]
    assert text.count("```") in {0, 2}
    assert ("| a | b |" in body) == ("|---|---|" in body) == any(line.startswith("| 0 |") for line in body)
    found = NOTE.match(note)
    assert found
    said, rows, of_rows, lines, of_lines = map(int, found.groups())
    kept_rows = sum(bool(re.match(r"\| \d", line)) for line in body)
    kept_lines = sum(bool(line) and line[0] not in "|`" for line in body)
    assert (said, of_rows, of_lines) == (budget, 200, 102)
    assert rows == 200 - kept_rows
    assert lines == 102 - kept_lines


def test_a_cut_keeps_as_much_as_it_can() -> None:
    text = within(DOCUMENT, 8000, "")

    assert 8000 - size(text) < size(ROW.format(100, "x" * 40)) + 10


def test_an_endless_line_loses_its_end_and_the_note_says_so() -> None:
    text = within("ä" * 5000 + "\nthe rest", 2000, "")

    assert size(text) <= 2000
    assert "the rest" in text
    assert "1 line(s) shortened" in text


def test_a_lone_surrogate_is_counted_as_it_is_written() -> None:
    text = within("\ud800" * 5000, 2000, "")

    assert len(text.encode("utf-8", errors="backslashreplace")) <= 2000


def test_a_fence_inside_a_fence_is_text() -> None:
    text = environment().from_string("{{ text | fence }}").render(text="```\n| a |\n|---|\n```")

    (block,) = parse(text)
    assert (block.head, block.tail) == (("````",), ("````",))
    assert len(block.rows) == 4


def test_a_table_without_rows_keeps_its_head() -> None:
    text = within("| a |\n|---|\n\n" + "x\n" * 1000, LEAST, "")

    assert text.startswith("| a |\n|---|\n\nx\n")


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1000"):
        within(DOCUMENT, 999, "")


def _many(n: int, key: str = "mean_activations", **changed: dict[str, Any]) -> Report:
    one = failed().findings[0]
    findings = tuple(replace(one, where=f"row {i}", abs_diff=float(i)) for i in range(n - 1))
    findings += (replace(one, where="row text", abs_diff=None),)
    verdict = replace(failed(), findings=findings, mismatch_count=n + 7)
    return assemble(CHECK_KEYS, rows_of(**{key: row_of(key, Status.FAIL, verdict)}, **changed))


def test_one_row_a_kind_without_a_number_first_and_then_the_largest() -> None:
    text = markdown(_many(30), 1_000_000)

    assert re.findall(r"^\| `row (\w+)`", text, re.M) == ["text", *(str(n) for n in range(28, 17, -1))]
    assert "18 more kinds are counted and not shown." in text


def test_what_a_passing_key_has_to_say_comes_behind_the_failure() -> None:
    tie = replace(failed(), findings=(replace(failed().findings[0], message="tie", blocking=False),), mismatch_count=0)
    report = _many(3, prompt_boundary=row_of("prompt_boundary", verdict=tie))

    assert re.findall(r"^## (\w.*)$", markdown(report, 1_000_000), re.M)[:2] == ["mean_activations", "Worth knowing"]


def test_a_report_in_a_small_budget_says_first_what_failed() -> None:
    report = _many(100)
    text = markdown(report, 2000)

    assert size(text) <= 2000
    assert text.startswith("**FAIL at mean_activations: ")
    assert "| 3 | `mean_activations` | FAIL |" in text
    assert "table rows" in text.split("\n")[-1]
