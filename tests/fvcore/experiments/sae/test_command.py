"""`fvcore pathways`: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from fvcore.cli import app
from fvcore.experiments.config import ConfigError, resolve
from fvcore.experiments.sae.config import PLAN, PathwaysConfig
from fvcore.experiments.sae.schemas import Validation
from tests.fvcore.experiments.sae.worlds import Data, config_of, right


@pytest.fixture
def data(tmp_path: Path) -> Data:
    made = right(tmp_path)
    config_of(made)
    return made


def run(data: Data, *words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["pathways", words[0], "--config", str(data.root / "config.yaml"), *words[1:]]
    )


def test_an_audit_prints_its_counts_and_writes_one_shape(data: Data) -> None:
    done = run(data, "audit")

    assert done.exit_code == 0, done.output
    assert "10 of 10 causal features stand in the logs (100.0 %)" in done.stdout
    file = data.root / "out/results/audit/data_validation.json"
    passed = json.loads(file.read_text())
    assert Validation.model_validate(passed).validated

    data.files["l1.json"] = "[{"
    data.write()
    done = run(data, "audit", "--json")
    assert done.exit_code == 1
    failed = json.loads(done.stdout)
    assert failed == json.loads(file.read_text())
    assert (failed.keys(), failed["audit_results"]["validated"]) == (passed.keys(), False)


def test_more_than_is_listed_is_said(data: Data) -> None:
    done = run(data, "audit", "--audit-min-trials", "4", "--audit-max-listed", "2", "--strict")

    assert done.exit_code == 1
    assert "warning LOW_TRIALS: 60" in done.stdout
    assert "  ... and 58 more" in done.stdout
    assert run(data, "audit", "--set", "audit.min_trials=4").exit_code == 0


def test_the_plans_labels_stand_in_a_log(data: Data) -> None:
    done = run(data, "audit", "--runtime-progress", "log")

    assert "Loading checkpoints: " in done.stderr
    assert "Validating response logs: " in done.stderr


def test_the_next_step_needs_an_audit_of_these_files_that_passed(data: Data) -> None:
    assert "run `fvcore pathways audit` first" in run(data, "load").stderr

    run(data, "audit")
    done = run(data, "load")
    assert (done.exit_code, "no contexts" in done.stdout) == (0, True)
    first = (data.root / "out/data/causal_features.json").read_bytes()
    assert run(data, "load").exit_code == 0
    assert (data.root / "out/data/causal_features.json").read_bytes() == first

    data.files["l1.json"] = [*data.files["l1.json"][:-1], {}]
    data.write()
    other = run(data, "load")
    assert (other.exit_code, "of other files" in other.stderr) == (2, True)
    assert run(data, "audit").exit_code == 1
    refused = run(data, "load")
    assert (refused.exit_code, "did not pass (MISSING_FEATURE)" in refused.stderr) == (1, True)
    assert run(data, "load", "--force").exit_code == 0
    assert json.loads((data.root / "out/data/causal_features.json").read_text())["metadata"]["forced"] is True


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"audit": {"min_trails": 3}}, "audit.min_trails: unknown setting; did you mean 'audit.min_trials'?"),
        ({"audit": {"severity": {"LOW_TRAILS": "error"}}}, "LOW_TRAILS"),
        ({"conditions": {"aliases": {"a": "b"}}}, "found ['b']"),
        ({"features": {"layers": [3, 1]}}, "expected the first layer and the last"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, given: object, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(given))

    with pytest.raises(ConfigError) as error:
        resolve(PathwaysConfig, {}, path)
    assert said in str(error.value)


def test_the_settings_that_are_written_are_read_again_and_the_plans_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(PathwaysConfig().text())

    assert resolve(PathwaysConfig, {}, path) == PathwaysConfig() == resolve(PathwaysConfig, {}, PLAN)
