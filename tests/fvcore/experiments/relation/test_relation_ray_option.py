"""`--ray` with and without an address; Ray itself is not needed to read the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fvcore.cli import app
from fvcore.experiments import workers
from fvcore.experiments.workers import Local
from fvcore.model.spec import ModelError
from tests.late import RUNNING

if RUNNING:
    from fvcore.model.model import LanguageModel
    from tests.fvcore.experiments.relation.worlds import SMALL_PAIRS, write_csv


SMALL = ["--n-trials=2", "--n-demos=3", "--topk=4", "--n-eval=2", "--n-random=1", "--no-pictures", "--q=Q1"]


@pytest.fixture
def asked(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Ray is asked for; in its place a local run does the work."""
    found: list[Any] = []

    @contextmanager
    def instead(address: str, load: Any, device: str | None, n_cpus: int) -> Iterator[Local[LanguageModel]]:
        found.extend([address, load, n_cpus])
        yield Local(llama)

    monkeypatch.setattr(workers, "ray_workers", instead)
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "small.csv", SMALL_PAIRS)
    return found


@pytest.mark.parametrize(
    ("words", "address", "n_cpus"),
    [
        (["--ray"], "local", 1),
        (["--ray", "--ray-cpus", "2"], "local", 2),
        (["--ray", "head:6379", "--ray-cpus=3"], "head:6379", 3),
        (["--ray=auto"], "auto", 1),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_an_address_may_be_left_out(asked: list[Any], words: list[str], address: str, n_cpus: int, first: bool) -> None:
    rest = ["--model=tiny-llama", "--relation-csv=small.csv", "--out=out", "--dtype", "fp32", *SMALL]
    line = [*words, *rest] if first else [*rest, *words]
    done = CliRunner().invoke(app, ["relation", "run", *line])

    assert done.exit_code == 0, done.output
    assert (asked[0], asked[2]) == (address, n_cpus)
    assert (asked[1].args, asked[1].keywords["seed"]) == (("tiny-llama", None, "fp32"), 0)
    assert "1 completed" in done.output


def test_threads_are_told_by_the_cpus(asked: list[Any]) -> None:
    line = ["--model=tiny-llama", "--relation-csv=small.csv", "--out=out", *SMALL, "--ray", "--threads=2"]
    done = CliRunner().invoke(app, ["relation", "run", *line])

    assert isinstance(done.exception, ModelError)
    assert "--ray-cpus" in str(done.exception)
    assert asked == []


def test_without_the_option_ray_is_not_asked(asked: list[Any]) -> None:
    done = CliRunner().invoke(
        app, ["relation", "run", "--model=tiny-llama", "--relation-csv=small.csv", "--out=out", *SMALL]
    )

    assert done.exit_code == 0, done.output
    assert asked == []
