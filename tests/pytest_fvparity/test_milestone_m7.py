"""M7: one q_id, a few, all; behind M2, and red at the first phase in which something differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fvcore import shipped
from fvcore.experiments.relation import files
from fvcore.experiments.steps import layout
from fvcore.formats import read_json, read_pt, sha256_file, write_json, write_pt
from pytest_fvparity.cli import app
from pytest_fvparity.milestones.setup import Setup
from pytest_fvparity.transfer.runs import QId, q_ids_of
from tests.late import RUNNING

if RUNNING:
    from pytest_fvparity.milestones.m7_transfer import phases
    from pytest_fvparity.milestones.run import NotReady, run
    from tests.pytest_fvparity.transfer_world import TransferWorld


@pytest.fixture(scope="module")
def behind_m2(transfer_world: TransferWorld, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A relation run, and M2 of the same model passed in the same place."""
    folder = tmp_path_factory.mktemp("m7")
    shutil.copytree(transfer_world.golden.parent, folder, dirs_exist_ok=True)
    world = TransferWorld.below(folder)
    place = Path("tiny_antonym", shipped.TRIALS["tiny-llama"].stem)
    shutil.copytree(shipped.root() / "golden" / place, world.golden / place)
    # A copy: pytest would read the conftest.py of the checkout that holds the original.
    trials = Path(shutil.copy(shipped.root() / shipped.TRIALS["tiny-llama"], folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        setup = Setup(
            model="tiny-llama",
            trials=trials,
            out=folder / "reports",
            golden=world.golden,
            relation_root=world.root,
        )
        assert run("M2", setup).passed
    return setup


@pytest.fixture
def setup(behind_m2: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """The same with a relation run that a test may damage."""
    monkeypatch.chdir(behind_m2.root.parent)
    assert behind_m2.relation_root is not None
    return replace(behind_m2, relation_root=shutil.copytree(behind_m2.relation_root, tmp_path / "run" / "tiny-llama"))


def break_vector(setup: Setup, q_id: str) -> None:
    assert setup.relation_root is not None
    folder = setup.relation_root / q_id
    value = read_pt(folder / layout.FV)
    value["fv_global_resid"][0] += 1
    write_pt(folder / layout.FV, value)
    status = read_json(folder / files.STATUS)
    status["files"][layout.FV] = sha256_file(folder / layout.FV)
    write_json(folder / files.STATUS, status)


def written(setup: Setup, name: str) -> Any:
    return json.loads((setup.layout.runs / name).read_text())


@pytest.mark.slow
def test_every_phase_passes_and_says_what_agrees_with_the_reference(setup: Setup) -> None:
    outcome = run("M7", setup)

    assert outcome.passed, outcome.message
    assert outcome.message == (
        "2 q_ids hold what the stations give (1 skipped, too few rows); the six keys agree with the reference on Q1"
    )
    report = written(setup, "m7_transfer_report.json")
    assert {phase: list(one["q_ids"]) for phase, one in report.items()} == {
        "smoke": ["Q1"],
        "several": ["Q2"],
        "all": ["Q3"],
    }
    assert written(setup, "m7_failures.json") == {"by_cause": {}, "failures": []}


@pytest.mark.slow
def test_a_fault_stops_at_its_phase_with_its_cause(setup: Setup) -> None:
    break_vector(setup, "Q2")
    outcome = run("M7", setup)

    assert not outcome.passed
    assert "first Q2, transfer stepe_vector" in outcome.message
    assert list(written(setup, "m7_transfer_report.json")) == ["smoke", "several"]
    failures = written(setup, "m7_failures.json")
    assert failures["by_cause"] == {"numeric": ["Q2"]}
    assert [(one["q_id"], one["key"]) for one in failures["failures"]] == [("Q2", "stepe_vector")]


@pytest.mark.slow
def test_other_weights_than_m2s_are_refused(setup: Setup) -> None:
    assert setup.relation_root is not None
    path = setup.relation_root / "Q2" / files.STATUS
    value = read_json(path)
    value["settings"]["weights_sha"] = "0" * 64
    write_json(path, value)

    outcome = run("M7", setup)
    assert not outcome.passed
    assert "Q2 was computed with other weights than those that M2 compared" in outcome.message


def test_without_a_golden_the_way_to_one_is_named(setup: Setup, tmp_path: Path) -> None:
    shutil.copytree(setup.golden / "tiny_antonym", tmp_path / "golden" / "tiny_antonym")  # type: ignore[operator]

    outcome = run("M7", replace(setup, golden=tmp_path / "golden"))
    assert not outcome.passed
    assert "pytest -m transfer --fv-regen-golden" in outcome.message


def test_a_golden_counts_for_the_model_that_a_q_id_was_computed_with(setup: Setup) -> None:
    assert setup.relation_root is not None
    q_ids = q_ids_of(setup.relation_root)
    (q_id,) = (q_id for q_id in q_ids if q_id.state == "completed" and q_id.has_golden([setup.golden], "src"))  # type: ignore[list-item]
    value = read_json(q_id.status_file)
    value["settings"]["weights_sha"] = "0" * 64
    write_json(q_id.status_file, value)
    assert not q_id.has_golden([setup.golden], "src")  # type: ignore[list-item]


def test_m7_builds_on_m2(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="M7 builds on M2, which was not run here"):
        run("M7", replace(setup, out=tmp_path / "elsewhere"))


def test_without_a_run_m7_names_the_option(setup: Setup) -> None:
    outcome = run("M7", replace(setup, relation_root=None))
    assert not outcome.passed
    assert "--relation-root" in outcome.message


def test_the_command_knows_m7() -> None:
    shown = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, ["milestone", "--help"])
    assert "--relation-root" in shown.output
    assert "m0..m7|all" in shown.output


def q(name: str, state: str = "completed") -> QId:
    return QId(name, Path(name), state)


def test_phases_hold_every_q_id_once() -> None:
    q_ids = [q("Q1"), q("Q10"), q("Q11", "skipped"), q("Q12", "failed"), q("Q13"), q("Q14"), q("Q2")]
    found = phases(q_ids, [q("Q13"), q("Q2")])

    assert [one.name for one in found["smoke"]] == ["Q13"]
    assert [one.name for one in found["several"]] == ["Q2", "Q1"]
    assert [one.name for one in found["all"]] == ["Q10", "Q11", "Q12", "Q14"]
    assert list(phases([q("Q1")], [q("Q1")])) == ["smoke"]
