"""Error tables: small numbers far off and large ones a little off are told apart at a glance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvcore.gates import Status, Verdict
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report import error_grid
from pytest_fvparity.report.render import REPORT, environment, markdown, read_report, write_report
from pytest_fvparity.report.report import Report
from tests.late import RUNNING
from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

if RUNNING:
    import torch

    from fvcore.compare import NOT_FINITE, ZERO, Tolerance, compare


KEY = "mean_activations"


def verdict(difference: torch.Tensor) -> Verdict:
    expected = torch.tensor([100.0, 0.001, 0.0])
    return compare({"<b>": expected}, {"<b>": expected + difference}, Tolerance(atol=1e-6))


def report(difference: torch.Tensor) -> Report:
    return assemble([KEY], rows_of(**{KEY: row_of(KEY, Status.FAIL, verdict(difference))}))


def drawn(failed: Report) -> list[error_grid.Grid]:
    return error_grid.grids([table.model_dump() for table in failed.checks[0].errors])


def test_the_grid_has_large_numbers_on_top_and_small_errors_on_the_left() -> None:
    (grid,) = drawn(report(torch.tensor([0.02, 0.5, 0.0])))

    assert grid.columns == ("within", "0.01", "0.1")
    counts = {label: [cell and cell.count for cell in cells] for label, cells in grid.rows.items()}
    # 0.001 is between its neighbours: every decade between two that occur has a row.
    assert counts == {
        **{"100": [None, 1, None], "10": [None] * 3, "1": [None] * 3, "0.1": [None] * 3, "0.01": [None] * 3},
        **{"0.001": [None, None, 1], "0": [1, None, None]},
    }


def test_what_is_off_by_its_own_size_is_told_from_what_is_a_little_off() -> None:
    (grid,) = drawn(report(torch.tensor([0.02, 0.5, 0.0])))

    kinds = {label: [cell.much for cell in cells if cell] for label, cells in grid.rows.items()}
    assert (kinds["100"], kinds["0.001"], kinds["0"]) == ([False], [True], [False])
    assert grid.sentence == (
        "2 of 3 values are outside their tolerance: 1 by about the value itself or more (only values below 0.01), "
        "the others by less than 0.001 of the value"
    )


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        ([0.02, 0.0, 0.0], "1 of 3 values are outside their tolerance: all by less than 0.001 of the value"),
        ([20.0, 0.0, 0.0], "1 of 3 values are outside their tolerance: all by less than the value itself"),
        ([200.0, 0.5, 0.0], "2 of 3 values are outside their tolerance: 2 by about the value itself or more"),
        ([0.0, 0.0, 1e-3], "1 of 3 values are outside their tolerance: 1 by about the value itself or more"),
        (
            [float("nan"), 0.5, 0.0],
            "2 of 3 values are outside their tolerance: 1 by no finite number, 1 by about the value itself or more",
        ),
    ],
)
def test_the_sentence_says_what_the_picture_shows(difference: list[float], sentence: str) -> None:
    (grid,) = drawn(report(torch.tensor(difference)))
    assert grid.sentence.partition(" (only")[0] == sentence


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_has_a_column(broken: float) -> None:
    (grid,) = drawn(report(torch.tensor([broken, 0.0, 0.0])))
    assert grid.columns == ("within", "not finite")


def test_beyond_ten_decades_the_lowest_share_a_place() -> None:
    counts = [{"magnitude": n, "error": n - 30, "count": 1} for n in range(-20, 5)]
    grid = error_grid.grid("a", counts)

    assert len(grid.columns) == len(grid.rows) == error_grid.MOST + 1
    assert list(grid.rows)[-2:] == ["1e-5", "< 1e-5"]
    assert grid.columns[:2] == ("< 1e-35", "1e-35")
    assert sum(cell.count for cells in grid.rows.values() for cell in cells if cell) == 25


def test_the_worst_table_comes_first() -> None:
    """What is not finite, then what is off by its own size, then what is a little off."""

    def table(leaf: str, error: int) -> dict[str, Any]:
        return {"leaf": leaf, "counts": [{"magnitude": 0, "error": error, "count": 1}]}

    tables = [table("little", -3), table("much", 2), table("lost", NOT_FINITE)]
    assert [grid.leaf for grid in error_grid.grids(tables)] == ["lost", "much", "little"]


def test_the_decades_of_what_has_none_are_those_of_the_comparison() -> None:
    assert (error_grid.ZERO, error_grid.NOT_FINITE) == (ZERO, NOT_FINITE)


@pytest.mark.parametrize(
    ("decade", "text"), [(-5, "1e-5"), (-3, "0.001"), (-1, "0.1"), (0, "1"), (3, "1000"), (12, "1e12")]
)
def test_a_power_of_ten_as_people_write_it(decade: int, text: str) -> None:
    assert error_grid.power(decade) == text


def test_tables_and_shares_stand_in_html_and_in_markdown(tmp_path: Path) -> None:
    failed = report(torch.tensor([0.02, 0.5, 0.0]))
    write_report(failed, tmp_path)
    html, text = (tmp_path / f"{REPORT}.html").read_text(), markdown(failed, 100_000)

    assert "<b>" not in html
    assert "<code>&lt;b&gt;</code>: 2 of 3 values are outside their tolerance" in html
    assert '<td class="n much" style="--shade: 1.00" title="1 expected 0.001 to 0.01, off by 0.1 to 1">1</td>' in html
    assert "`<b>`: 2 of 3 values are outside their tolerance" in text


def test_markdown_shows_the_three_worst_tables_and_counts_the_rest() -> None:
    tables = {f"leaf{n}": [{"magnitude": 0, "error": n, "count": 1}] for n in range(-3, 2)}
    verdict = Verdict(failed().findings, 10, 1, details={"errors": tables})
    text = markdown(assemble([KEY], {KEY: row_of(KEY, Status.FAIL, verdict)}), 100_000)

    assert [line.split("`")[1] for line in text.splitlines() if "values are outside" in line and "`: " in line] == [
        "leaf0",
        "leaf1",
        "leaf-3",
    ]
    assert "2 more leaves are in the HTML." in text


def test_a_key_that_passes_has_no_table() -> None:
    passing = assemble([KEY], rows_of(**{KEY: row_of(KEY, verdict=verdict(torch.zeros(3)))}))
    assert passing.checks[0].errors == []


@pytest.mark.parametrize(
    ("used", "said"),
    [(None, "–"), (0.0, "0 %"), (0.00123, "0.123 %"), (1.0, "100 %"), (683.4, "683 times"), ("inf", "inf")],
)
def test_a_share_is_read_in_percent(used: float | str | None, said: str) -> None:
    assert environment().from_string("{{ used | share }}").render(used=used) == said


def test_the_candidate_is_named(tmp_path: Path) -> None:
    row = row_of(KEY)
    row["context"]["candidate"] = "mine.Wrong"
    named = assemble([KEY], {KEY: row})
    write_report(named, tmp_path)

    assert named.candidate == "mine.Wrong"
    assert "candidate `mine.Wrong`" in markdown(named, 100_000)
    assert "<dt>candidate</dt><dd>mine.Wrong</dd>" in (tmp_path / f"{REPORT}.html").read_text()


def test_details_that_the_report_does_not_know_break_nothing(tmp_path: Path) -> None:
    """Whatever a check hangs on its verdict beside what is drawn."""
    odd = {"drill": {"steps": [{"module": "<b>", "difference": float("nan")}], "none": None}, "more": [float("inf")]}
    rows = rows_of(**{key: row_of(key, Status.FAIL, replace(failed(), details=odd)) for key in (KEY, "top_heads")})
    strange = assemble(CHECK_KEYS, rows, keep_going=True)
    write_report(strange, tmp_path)

    assert strange.heads == {}
    assert read_report(tmp_path / f"{REPORT}.json") == strange
