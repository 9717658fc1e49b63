"""The page of a run: a finding first, every number from the run's files, and drawn again without a model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.select_kv import files, report
from fvcore.formats import read_json, write_json
from tests.eyes import problems


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def page(folder: Path) -> str:
    return report.write(folder)[1].read_text()


def test_the_first_sentence_is_the_finding_and_the_second_the_verdict(run: Path) -> None:
    made = read_json(run / files.REPORT)

    said = report.headline(made)

    accuracies = [made["on"][arm]["accuracy"] for arm in ("select", "base", "teacher")]
    for share in accuracies:
        assert f"{share:.0%}" in said
    assert said.startswith("2 tokens of ")
    assert f"{made['off']['select']['p99_stress']:.3g} nats" in said
    assert report.verdict(made) == "Both gates pass."


def test_a_run_that_fails_names_rule_value_and_limit(run: Path) -> None:
    made = read_json(run / files.REPORT)
    for check in made["gates"]["B"]["checks"]:
        if check["name"] == "off_delta_p99_select":
            check |= {"threshold": 0.05, "pass": False}
    made |= {"final_pass": False, "failure_reason": "off_delta_p99_above_max"}
    write_json(run / files.REPORT, made)

    text = page(run)

    value = made["off"]["select"]["p99_stress"]
    assert report.verdict(made) == f"Gate B fails: off_delta_p99_select is {value:.3g}, allowed is ≤ 0.05."
    assert '<p class="lead bad">Gate B fails' in text
    assert text.count('<td class="bad">fail</td>') == 1
    assert problems(text) == []


def test_every_check_has_a_row_with_what_it_asks(run: Path) -> None:
    made = read_json(run / files.REPORT)

    rows = list(report.gate_rows(made))

    assert [row["name"] for row in rows] == [
        check["name"] for gate in ("A", "B") for check in made["gates"][gate]["checks"]
    ]
    assert all(row["title"] for row in rows)


def test_tokens_are_coloured_by_score_and_chosen_spans_framed(run: Path) -> None:
    row = dict(read_rows(run)[0])

    view = report.demo_view(row)

    tokens = [token for piece in view["pieces"] for token in piece["tokens"]]
    assert "".join(token["text"] for token in tokens) == "".join(row["tokens"])
    assert max(token["share"] for token in tokens) == 1.0
    order = sorted(range(len(tokens)), key=lambda at: row["scores"][at])
    assert [tokens[at]["share"] for at in order] == sorted(token["share"] for token in tokens)
    framed = [token["index"] for piece in view["pieces"] if piece["rank"] for token in piece["tokens"]]
    assert framed == [at for start, end in row["selection"]["spans"] for at in range(start, end)]
    assert page(run).count('<span class="chosen">') == sum(
        len(shown["selection"]["spans"]) for shown in report.shown_demos(read_rows(run))
    )


def read_rows(folder: Path) -> list[dict[str, Any]]:
    from fvcore.formats import read_jsonl

    return read_jsonl(folder / files.ON_ROWS)


def test_text_of_a_demo_is_escaped(run: Path) -> None:
    from fvcore.formats import write_jsonl

    rows = read_rows(run)
    rows[0]["tokens"][0] = "<script>alert(1)</script>"
    write_jsonl(run / files.ON_ROWS, rows)

    text = page(run)

    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_recompute_stands_beside_gather_with_the_rules_it_breaks(run: Path) -> None:
    gather, recompute = report.source_rows(read_json(run / files.REPORT))

    assert (gather["source"], recompute["source"]) == ("gather", "recompute")
    assert gather["fails"] == []
    assert gather["accuracy"] > recompute["accuracy"]
    assert recompute["fails"]


def test_a_run_without_curves_has_a_page_without_them(run: Path) -> None:
    whole = page(run)
    for name in (files.LAYER_CURVE, files.BUDGET_CURVE, files.REUSE):
        (run / name).unlink()

    text = page(run)

    assert len(re.findall("<img ", whole)) == 6
    assert len(re.findall("<img ", text)) == 2
    assert "In which layers" in whole
    assert "In which layers" not in text


def test_the_same_files_give_the_same_page(run: Path) -> None:
    first = [path.read_bytes() for path in report.write(run)]

    assert [path.read_bytes() for path in report.write(run)] == first


def test_markdown_has_the_numbers_of_the_page(run: Path) -> None:
    text = report.write(run)[0].read_text()

    assert report.headline(read_json(run / files.REPORT)) in text
    assert text.count("| pass |") == len(list(report.gate_rows(read_json(run / files.REPORT))))
    assert "| attention_diversity_span | 2 |" in text
