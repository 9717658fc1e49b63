"""Steps in a folder: done once, in order, behind their gates, and never on what is not theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.config import ConfigError, resolve
from fvcore.experiments.errors import FolderInUse, OtherSettings, StepError
from fvcore.experiments.folder import locked
from fvcore.experiments.sae import run as running
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.pathways import PATHWAYS
from fvcore.experiments.sae.run import RECORD, Asked
from fvcore.experiments.sae.status import status
from fvcore.experiments.sae.steps import PROTOTYPE, UNITS, chosen
from fvcore.formats import read_json, write_json, write_text
from tests.fvcore.experiments.sae.worlds import Data, right

UNIT = UNITS.replace("*", "candidates-L01-0000.jsonl")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    made = right(tmp_path)
    made.write()
    return made


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps that take a model, as files without one; which of them were called."""
    calls: list[str] = []

    def made(name: str, files: dict[str, Any]) -> Any:
        def work(doing: Any, progress: Any, more: dict[str, Any]) -> list[Path]:
            calls.append(name)
            for file, value in files.items():
                (write_text if file.endswith("jsonl") else write_json)(doing.folder / file, value)
            return [doing.folder / file for file in files]

        return work

    prototype = made("prototype", {PROTOTYPE: {"passed": True, "criteria": {}}})
    work = {"prototype": prototype, "discover": made("discover", {UNIT: "{}\n", PATHWAYS: {}})}
    monkeypatch.setattr(running, "WORK", running.WORK | work)
    return calls


def do(settings: PathwaysConfig, steps: str, **asked: Any) -> list[str]:
    return [step.name for step, _ in running.run(settings, chosen(steps), Asked(**asked))]


def states(settings: PathwaysConfig) -> dict[str, str]:
    return {row["step"]: row["state"] for row in status(settings)}


def with_prompts(data: Data, **more: Any) -> PathwaysConfig:
    return data.settings(**{"model.name": "tiny-llama", "prompts.safe": "Q: hot\nA:"} | more)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("0-1", ["audit", "load"]),
        ("3,2", ["prototype", "discover"]),
        ("tokens, 0", ["audit", "tokens"]),
        ("0-5", ["audit", "load", "prototype", "discover", "tokens", "integrate"]),
    ],
)
def test_steps_are_numbers_or_names_and_come_in_order(words: str, names: Sequence[str]) -> None:
    assert [step.name for step in chosen(words)] == names
    with pytest.raises(ConfigError, match=r"--steps '6': expected numbers from 0 to 5, or names of audit"):
        chosen("6")


def test_what_is_done_is_not_done_again(data: Data, called: list[str]) -> None:
    settings = with_prompts(data)
    do(settings, "0-3")
    do(settings, "0-3")

    assert called == ["prototype", "discover"]
    assert states(settings) == {
        **dict.fromkeys(("audit", "load", "prototype", "discover"), "complete"),
        **dict.fromkeys(("tokens", "integrate"), "missing"),
    }
    do(settings, "2", resume=False)
    assert called == ["prototype", "discover", "prototype"]


def test_a_step_waits_for_the_one_before_it_and_says_which(data: Data, called: list[str]) -> None:
    with pytest.raises(StepError, match=r"data_validation\.json: not there; run `fvcore pathways audit` first"):
        do(with_prompts(data), "1")
    with pytest.raises(StepError, match=r"validated_pathways\.json: not there; run `fvcore pathways discover` first"):
        do(with_prompts(data), "5")
    assert not called


def test_a_prototype_that_did_not_pass_ends_a_run_and_keeps_the_discovery_from_running(
    data: Data, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(doing: Any, progress: Any, more: dict[str, Any]) -> list[Path]:
        write_json(doing.folder / PROTOTYPE, {"passed": False, "criteria": {"no_oom": True, "memory_ok": False}})
        return [doing.folder / PROTOTYPE]

    monkeypatch.setitem(running.WORK, "prototype", failed)
    settings = with_prompts(data)
    with pytest.raises(StepError, match=r"the prototype did not pass \(memory_ok\)"):
        do(settings, "0-3")
    assert states(settings)["prototype"] == "not passed"
    with pytest.raises(StepError, match="did not pass"):
        do(settings, "3")

    do(settings, "3", force=True)
    assert called == ["discover"]
    assert "memory_ok" in read_json(settings.paths.out / RECORD)["stages"]["discover"]["settings"]["forced"]


def test_units_of_other_settings_are_refused_and_taken_away_if_that_is_asked_for(data: Data, called: list[str]) -> None:
    do(with_prompts(data), "0-3")
    other = with_prompts(data, **{"discover.top_k": 7, "discover.ig_steps": 4})
    do(with_prompts(data, **{"discover.top_k": 7, "discover.ig_steps": 4}), "2")

    with pytest.raises(OtherSettings, match=r"discover\.ig_steps is 8, now 4 \(discover\); .*top_k is 25, now 7"):
        do(other, "3")
    assert states(other)["discover"] == "stale"
    with pytest.raises(OtherSettings, match="flush_every is 1, now 2"):  # the files of units are cut by it
        do(with_prompts(data, **{"runtime.flush_every": 2}), "3")
    left = other.paths.out / UNIT.replace("0000", "0001")
    left.write_text("of the settings before")
    do(other, "3", force=True)
    assert ((other.paths.out / UNIT).is_file(), left.exists()) == (True, False)


def test_other_contexts_make_a_discovery_another_one(data: Data, called: list[str]) -> None:
    do(with_prompts(data), "0-3")
    other = with_prompts(data, **{"prompts.safe": "Q: cold\nA:"})

    with pytest.raises(OtherSettings, match=r"data/prompts_sample\.json is '"):
        do(other, "0-3")


def test_other_thresholds_of_verdicts_are_judged_on_what_is_there(data: Data, called: list[str]) -> None:
    settings = with_prompts(data)
    do(settings, "0-3")
    heads, found = (settings.paths.out / UNIT.replace("candidates", kind) for kind in ("heads", "replay"))
    heads.write_text("of other verdicts")
    found.write_text("as it was")
    other = with_prompts(data, **{"discover.fdr.q": 0.2})
    do(other, "2-3")

    assert called == ["prototype", "discover", "prototype", "discover"]
    assert (heads.exists(), found.read_text()) == (False, "as it was")
    assert states(other)["discover"] == "complete"


def test_a_step_that_was_killed_is_partial_and_is_gone_on_with(
    data: Data, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(doing: Any, progress: Any, more: dict[str, Any]) -> list[Path]:
        write_text(doing.folder / UNIT, "{}\n{}\n")
        raise KeyboardInterrupt

    settings = with_prompts(data)
    do(settings, "0-2")
    whole = running.WORK["discover"]
    monkeypatch.setitem(running.WORK, "discover", killed)
    with pytest.raises(KeyboardInterrupt):
        do(settings, "3")
    (row,) = [row for row in status(settings) if row["step"] == "discover"]
    assert (row["state"], row["reason"]) == ("partial", "2 candidates of 10 targets at most")

    monkeypatch.setitem(running.WORK, "discover", whole)
    do(settings, "3")
    assert states(settings)["discover"] == "complete"


def test_units_that_nobody_knows_of_and_a_folder_in_use_are_refused(data: Data, called: list[str]) -> None:
    settings = with_prompts(data)
    write_text(settings.paths.out / UNIT, "{}\n")
    with pytest.raises(OtherSettings, match=f"no {RECORD}"):
        do(settings, "0")
    with locked(settings.paths.out), pytest.raises(FolderInUse, match="another --paths-out"):
        do(settings, "0")


def test_a_file_that_was_changed_makes_its_step_stale_and_is_made_again(data: Data, called: list[str]) -> None:
    settings = with_prompts(data)
    do(settings, "0-2")
    (settings.paths.out / PROTOTYPE).write_text('{"passed": true, "criteria": {}, "more": 1}')

    assert states(settings)["prototype"] == "stale"
    do(settings, "2")
    assert called == ["prototype", "prototype"]


def test_the_plans_folder_has_its_files_and_they_call_the_commands(tmp_path: Path, data: Data) -> None:
    from fvcore.experiments.sae import init

    made = init.write(tmp_path / "new")
    names = {path.relative_to(tmp_path / "new").as_posix() for path in made}
    assert {"config.yaml", "launch.sh", "src/orchestrator.py", "src/step0_data_audit.py"} <= names
    assert len([name for name in names if name.startswith("src/")]) == 7
    assert os.access(tmp_path / "new/launch.sh", os.X_OK)
    assert resolve(PathwaysConfig, {}, tmp_path / "new/config.yaml").paths.out == Path()
    with pytest.raises(ConfigError, match="is there already"):
        init.write(tmp_path / "new")

    words = ["--paths-checkpoints", str(data.root / "c*"), "--paths-response-logs", str(data.root / "l*"), "--json"]
    called = [sys.executable, tmp_path / "new/src/step0_data_audit.py", *words, "--audit-min-trials", "3"]
    done = subprocess.run(called, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["validated"] is True
    assert (tmp_path / "new/results/audit/data_validation.json").is_file()
