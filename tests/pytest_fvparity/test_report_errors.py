"""Error tables: small numbers far off and large ones a little off are told apart at a glance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fvcore.compare import Tolerance, compare
from fvcore.gates import Status, Verdict
from pytest_fvparity.render import REPORT, error_grid, markdown, write_report
from pytest_fvparity.report import Report
from tests.pytest_fvparity.made_reports import assemble, row_of, rows_of

KEY = "mean_activations"


def verdict(difference: torch.Tensor) -> Verdict:
    expected = torch.tensor([100.0, 0.001, 0.0])
    return compare({"<b>": expected}, {"<b>": expected + difference}, Tolerance(atol=1e-6))


def report(difference: torch.Tensor) -> Report:
    return assemble([KEY], rows_of(**{KEY: row_of(KEY, Status.FAIL, verdict(difference))}))


def test_the_grid_has_large_numbers_on_top_and_small_errors_on_the_left() -> None:
    (table,) = report(torch.tensor([0.02, 0.5, 0.0])).checks[0].errors

    grid = error_grid([entry.model_dump() for entry in table.counts])

    assert grid["errors"] == ["0", "1e-2", "1e-1"]
    counts = {row["magnitude"]: [c["count"] for c in row["cells"]] for row in grid["rows"]}
    assert counts == {"1e2": [0, 1, 0], "1e-3": [0, 0, 1], "0": [1, 0, 0]}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_has_a_column(broken: float) -> None:
    (table,) = report(torch.tensor([broken, 0.0, 0.0])).checks[0].errors
    assert error_grid([entry.model_dump() for entry in table.counts])["errors"] == ["0", "not finite"]


def test_tables_and_shares_stand_in_html_and_in_markdown(tmp_path: Path) -> None:
    failed = report(torch.tensor([0.02, 0.5, 0.0]))
    write_report(failed, tmp_path)
    html, text = (tmp_path / f"{REPORT}.html").read_text(), markdown(failed, 100_000)

    assert "<b>" not in html
    assert "Errors of <code>&lt;b&gt;</code>" in html
    assert "<th>1e2</th>" in html
    assert "| expected \\ error | 0 | 1e-2 | 1e-1 |\n|---|---|---|---|\n| 1e2 |  | 1 |  |\n| 1e-3 |  |  | 1 |" in text


def test_a_key_that_passes_has_no_table() -> None:
    passing = assemble([KEY], rows_of(**{KEY: row_of(KEY, verdict=verdict(torch.zeros(3)))}))
    assert passing.checks[0].errors == []


def test_the_candidate_is_named() -> None:
    row = row_of(KEY)
    row["context"]["candidate"] = "mine.Wrong"
    named = assemble([KEY], {KEY: row})
    assert named.candidate == "mine.Wrong"
    assert "candidate `mine.Wrong`" in markdown(named, 100_000)
