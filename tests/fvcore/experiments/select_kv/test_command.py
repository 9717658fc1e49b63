"""Select-KV from the command line: what passes, what each fault of the hand-wired model fails, and every exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fvcore.cli import app
from fvcore.experiments.config import ConfigError
from fvcore.experiments.select_kv.config import TINY, WIRED
from fvcore.formats import read_json
from tests.late import RUNNING

if RUNNING:
    from fvcore.embedded import wired

FEW = ("--phase2-max-on=8", "--phase2-max-off=16", "--set=phase2.reporting.compare_kv_sources=false")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*words: object, status: int = 0) -> dict[str, str]:
    """The lines of `key=value` that the command says."""
    done = CliRunner().invoke(app, ["select-kv", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines() if "=" in line)


def report(said: dict[str, str]) -> dict[str, Any]:
    value: dict[str, Any] = read_json(Path(said["report_path"]))
    return value


def test_the_wired_model_passes_both_gates_at_the_plan_s_thresholds() -> None:
    said = call("--config", WIRED, *FEW, "--run-id=w", "--report-path=copy.json")

    assert said == {
        "run_id": "w", "output_dir": "outputs/w", "gateA_pass": "True", "gateB_pass": "True",
        "select_mode": "attention_diversity_span", "positioning_mode": "compact", "report_path": "copy.json",
    }  # fmt: skip
    assert report(said) == read_json(Path("outputs/w/report_phase2.json"))
    metrics = report(said)["metrics"]
    assert metrics["phase2_on_acc_student_select"] == 1.0
    assert metrics["phase2_on_acc_student_random_mean"] < 0.5


def test_a_model_with_a_fault_of_its_own_fails_for_its_reason() -> None:
    wired.save(Path("model"), leak=6.0)

    said = call("--config", WIRED, *FEW, "--phase2-model-id=model", status=1)

    assert said["gateB_pass"] == "False"
    assert report(said)["status"] == "fail"
    assert report(said)["gates"]["B"]["failure_reason"] == "off_delta_p99_above_max"


def test_the_shipped_model_meets_all_but_the_plan_s_off_threshold() -> None:
    """A part of the default run; the whole one, which passes with its own threshold, is slow."""
    few = ["--phase2-max-on=18", "--phase2-max-off=24"]
    less = [f"--set=phase2.reporting.{name}=false" for name in ("layer_curve", "budget_curve", "compare_kv_sources")]

    strict = call(*few, *less, "--run-id=strict", "--phase2-thresholds-off-delta-p99-max=0.05", status=1)
    assert strict["gateA_pass"] == "True"
    assert strict["failed_checks"] == "off_delta_p99_above_max"
    assert report(strict)["gates"]["B"]["failure_reason"] == "off_delta_p99_above_max"


@pytest.mark.slow
def test_the_default_run_passes_both_gates() -> None:
    said = call("--run-id=t")

    assert said["gateA_pass"] == said["gateB_pass"] == "True"
    metrics = report(said)["metrics"]
    assert metrics["phase2_on_acc_student_select"] > 0.95 > metrics["phase2_on_acc_student_random_mean"] + 0.4
    assert metrics["phase2_off_ratio"] < 0.2


def test_a_mode_that_may_not_pass_is_told_as_what_failed() -> None:
    said = call("--config", WIRED, *FEW, "--phase2-select-mode=causal_drop_span", "--run-id=d", status=1)

    assert said["gateA_pass"] == said["gateB_pass"] == "True"
    assert said["failed_checks"] == "advisory_select_mode"


def test_a_run_s_own_config_asks_for_the_same_again() -> None:
    first = call("--config", WIRED, *FEW, "--run-id=a", "--seed=3")

    again = call("--config", "outputs/a/config.yaml", "--run-id=b")

    rows = [Path(said["output_dir"], "artifacts", "on_rows.jsonl").read_bytes() for said in (first, again)]
    assert rows[0] == rows[1]


def test_a_folder_of_other_settings_is_refused_unless_it_may_be_written_over() -> None:
    call("--config", WIRED, *FEW, "--run-id=a")

    call("--config", WIRED, *FEW, "--run-id=a", "--seed=3", status=2)
    call("--config", WIRED, *FEW, "--run-id=a", "--seed=3", "--overwrite")
    assert report(call("--config", WIRED, *FEW, "--run-id=a", "--seed=3"))["status"] == "pass"


@pytest.mark.parametrize(
    "words",
    [
        ["--set=runtime.backend=mock"],
        ["--set=runtime.allow_mock_fallback=true"],
        ["--phase2-model-id=nobody/nothing"],
        ["--set=data.synthetic.num_pairs=13"],
    ],
)
def test_what_cannot_be_judged_is_said_and_gives_no_numbers(words: list[str]) -> None:
    said = call("--config", WIRED, *FEW, *words, "--run-id=x", status=3)

    written = report(said)
    assert (written["status"], written["gateA_pass"], written["gateB_pass"]) == ("error", False, False)
    assert written["error"]
    assert "metrics" not in written
    assert not Path("outputs/x/metrics.jsonl").exists()


def test_a_wrong_setting_names_what_was_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--phase2-max-on: .*found 0"):
        call("--phase2-max-on", 0)
    with pytest.raises(ConfigError, match="--run-id"):
        call("--config", WIRED, *FEW, "--run-id=../x")


def test_settings_are_written_and_nothing_runs() -> None:
    done = CliRunner().invoke(app, ["select-kv", "--phase2-max-on=3", "--write-config=c.yaml"])

    assert done.exit_code == 0
    assert "on_samples: 3\n" in Path("c.yaml").read_text()
    assert not Path("outputs").exists()
    assert f"id: {json.dumps('tiny-llama')[1:-1]}\n" in TINY.read_text()
    assert "id: tiny-llama\n" in Path("c.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--phase=1"], 4),
        (["--phase2-max-on=0"], 4),
        (["--phase2-maximum=0"], 4),
        (["--config=none.yaml"], 4),
        (["--set=runtime.backend=mock"], 3),
        pytest.param(["--set=phase2.thresholds.delta_on_min=100"], 2, marks=pytest.mark.slow),
        pytest.param([], 0, marks=pytest.mark.slow),
    ],
)
def test_the_plan_s_command_has_the_plan_s_status(words: list[str], status: int) -> None:
    config = [] if any(word.startswith("--config") for word in words) else [f"--config={WIRED}"]
    command = [sys.executable, "-m", "fvcore.experiments.select_kv.cedkv_mvp", *config, *FEW, *words]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert ("run_id=" in done.stdout) == (status in (0, 2, 3))
