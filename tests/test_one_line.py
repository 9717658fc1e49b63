"""What is wrong outside of the program is one line and the exit status of the table, at every command; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore import cli as fvcore_cli
from fvcore import exits, shipped
from fvcore.experiments.config import ConfigError, numbers
from fvcore.formats import WriteError
from fvcore.provenance import now
from pytest_fvparity import cli as fvparity_cli

ROOT = Path(__file__).parents[1]
RAW = ROOT / "datasets/antonym/raw/antonym.json"
TRIALS = ROOT / shipped.TRIALS["tiny-llama"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of things that are in the way: a file, a pipe, and files of other kinds than their names say."""
    (tmp_path / "file").write_text("a file")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "number.json").write_text("5")
    (tmp_path / "strange.json").write_text('{"schema_version": 1, "nothing": "known"}')
    (tmp_path / "seed.json").write_text(_trials(seed=2**40))
    (tmp_path / "negative.json").write_text(_trials(seed=-1))
    (tmp_path / "share.json").write_text(_trials(test_split=5.0))
    (tmp_path / "laughs.yaml").write_text(
        "a: &a [x, x]\n"
        + "".join(f"{c}: &{c} [{', '.join(['*' + b] * 9)}]\n" for b, c in zip("abcdefghi", "bcdefghij", strict=True))
    )
    (tmp_path / "taken.csv").write_text("q,exA,exB\r\nreport.html,hot,cold\r\n")
    (tmp_path / "long.csv").write_text(f"q,exA,exB\r\n{'Q' * 300},hot,cold\r\n")
    (tmp_path / "out" / "Q1" / "artifacts").mkdir(parents=True)
    (tmp_path / "out" / "Q1" / "artifacts" / "qid_status.json").write_text("[]")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1000000000}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _trials(**meta: Any) -> str:
    value = json.loads(TRIALS.read_text())
    return json.dumps(value | {"meta": value["meta"] | meta})


def ended(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    main: Callable[[], None] = {"fvcore": fvcore_cli.main, "fvparity": fvparity_cli.main}[program]
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    "line, said",
    [
        ("fvcore trials make --dataset nowhere.json --tokenizer tiny-llama", "nowhere.json: no such file"),
        ("fvcore trials make --dataset pipe.json --tokenizer tiny-llama", "expected a regular file, found a pipe"),
        (f"fvcore trials make --dataset {RAW} --tokenizer tiny-llama --n-trials 1 --out file/x.json", "cannot be made"),
        (f"fvcore trials make --dataset {RAW} --tokenizer tiny-llama --out {'x' * 300}.json", "File name too long"),
        ("fvcore trials verify list.json", "holds no trials"),
        ("fvcore trials verify number.json", "list.json|number.json"),
        ("fvcore trials verify seed.json", "meta.seed"),
        ("fvcore trials verify negative.json", "meta.seed"),
        ("fvcore trials verify share.json", "meta.test_split"),
        ("fvcore trials verify /dev/zero", "found a device"),
        ("fvcore spec audit deep", "num_hidden_layers 1000000000; at most"),
        ("fvcore spec audit tiny-llama --spec laughs.yaml", "its aliases stand for more than"),
        ("fvcore eval all --config laughs.yaml", "its aliases stand for more than"),
        (f"fvcore eval all --dataset {RAW} --model tiny-llama --alpha nan", "--alpha"),
        (f"fvcore eval all --dataset {RAW} --model tiny-llama --seed 4294967296", "--seed"),
        (f"fvcore antonym run --dataset {RAW} --model tiny-llama --seed 99999999999", "--seed"),
        (f"fvcore antonym run --dataset {RAW} --model tiny-llama --layers 0-99999999999", "at most 100000 numbers"),
        ("fvcore relation run --dataset taken.csv --model tiny-llama", "the name of a run's own file"),
        ("fvcore relation run --dataset long.csv --model tiny-llama", "cannot name a folder"),
        ("fvcore relation status --dataset taken.csv --out out", "qid_status.json: not a unit's status"),
        ("fvparity merge list.json --out merged", "not a parity report"),
        ("fvparity merge number.json --out merged", "not a parity report"),
        ("fvparity merge strange.json --out merged", "not a parity report"),
        ("fvparity render pipe.json", "found a pipe"),
        ("fvparity render nowhere.json", "no such file"),
        ("fvparity golden list --root file --trials .", "no such folder of goldens"),
        ("fvparity golden fetch out", "manifest"),
    ],
)  # fmt: skip
def test_one_line_and_its_status(
    line: str, said: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = line.split()

    status = ended(program, words, monkeypatch)

    told = capsys.readouterr().err
    assert status == exits.USAGE, told
    assert "Traceback" not in told
    assert any(part in " ".join(told.split()) for part in said.split("|")), told
    assert len(told.strip().splitlines()) == 1 or "Usage:" in told, told


@pytest.mark.parametrize("given", ["x", "", "1e9", "9" * 30, "-" + "9" * 30, "\ud800"])
def test_a_moment_that_is_none_is_said_in_one_line(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ | {"SOURCE_DATE_EPOCH": given})

    with pytest.raises(exits.Expected, match=r"SOURCE_DATE_EPOCH '.*': expected whole seconds since 1970"):
        now()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device", "a/b"), MemoryError(), WriteError("a/b: full")]
)
def test_what_no_room_of_its_own_has_caught_is_one_line_too(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        exits.run("fvcore", fails)

    assert end.value.code in {exits.USAGE, exits.FAILED}
    (told,) = capsys.readouterr().err.splitlines()
    assert "fvcore: " in told


def test_a_range_that_no_memory_holds_is_refused() -> None:
    assert numbers("0,2,5-7") == (0, 2, 5, 6, 7)
    with pytest.raises(ValueError, match="expected at most 100000 numbers, these are 1000000000"):
        numbers("1-1000000000")


def test_a_config_error_is_expected() -> None:
    assert issubclass(ConfigError, exits.Expected)
