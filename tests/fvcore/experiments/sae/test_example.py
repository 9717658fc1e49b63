"""`fvcore pathways run --example`: a real model from its own logs to the report, and nothing twice."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import Result

from tests.late import RUNNING

if RUNNING:
    from typer.testing import CliRunner

    from fvcore.cli import app
    from fvcore.experiments.sae.example import CONFIG
    from fvcore.experiments.sae.pathways import PATHWAYS, ValidatedPathways
    from fvcore.experiments.sae.report import GRAPH, REPORTS
    from fvcore.formats import read_json


PLANS = (
    "data/causal_features.json",
    "data/prompts_sample.json",
    "results/audit/data_validation.json",
    "results/prototype/single_feature_test.json",
    "results/pathways/validated_pathways.json",
    "results/tokens/token_associations.json",
    "results/integrated/integrated_results.json",
)
"""The plan's names."""


def call(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["pathways", *words])


def test_what_the_example_brings_itself_cannot_be_given(tmp_path: Path) -> None:
    done = call("run", "--example", "--paths-out", str(tmp_path / "out"), "--discover-top-k", "3")

    assert done.exit_code != 0
    assert "--example brings its own discover" in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_example_goes_from_logs_to_the_report_and_then_stands(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("run", "--example", "--paths-out", str(out), "--runtime-progress", "none")
    assert done.exit_code == 0, done.output + str(done.exception)
    assert all((out / name).is_file() for name in (*PLANS, GRAPH, *REPORTS.values()))
    assert read_json(out / PLANS[3])["passed"] is True

    found = ValidatedPathways.model_validate(read_json(out / PATHWAYS))
    kept = [one for one in found.pathways if one.validated]
    # What is known beforehand: few of many stand against both nulls, and those that do lead upwards.
    assert 0 < len(kept) < 0.2 * len(found.pathways)
    assert all(one.source_layer < one.target_layer for one in kept)
    assert len(ET.parse(out / GRAPH).getroot().findall(".//{*}path")) >= len(kept)

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = call("run", "--config", str(out / CONFIG), "--runtime-progress", "none", "--json")
    assert again.exit_code == 0, again.output
    assert {row["state"] for row in json.loads(again.stdout)} == {"complete"}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
