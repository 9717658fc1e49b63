"""An experiment's settings by every way they come: options and their spellings, environment, `--set`, a file, defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner, Result

from fvcore.cli import app as fvcore
from fvcore.experiments.antonym.config import AntonymConfig
from fvcore.experiments.config import Config, ConfigError, LayerOrAll, Numbers, Option, Words, experiment, resolve
from fvcore.experiments.errors import NotFinite, OtherSettings
from fvcore.experiments.relation.config import RelationConfig


class Small(Config):
    """One field of each kind."""

    top_heads: Annotated[int, Option("topk", env="SMALL_HEADS")] = Field(default=20, ge=0, description="Heads.")
    alpha: float = 1.0
    engine: Literal["fast", "exact"] = "fast"
    layers: Numbers | None = None
    edit_layer: LayerOrAll = "all"
    names: Words = ()
    pictures: Annotated[bool, Option("heatmap")] = True
    out: Path | None = None
    ray: Annotated[str | None, Option(alone="local")] = None
    control: list[str] = Field(default=[])


SEEN: list[Small] = []


def run(config: Small) -> None:
    """Remember it."""
    SEEN.append(config)


APP = experiment(Small, run, "Small.", {"exactly": ({"engine": "exact"}, "Exactly.")})


def call(*arguments: object, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(APP, [*map(str, arguments)])


def config_of(*arguments: object, **environment: str) -> Small:
    done = call("run", *arguments, **environment)
    assert done.exit_code == 0, (done.output, done.exception)
    return SEEN.pop()


def test_every_kind_of_field_is_an_option() -> None:
    config = config_of(
        "--top-heads=3", "--alpha", 2, "--engine=exact", "--layers=0,2-4", "--edit-layer=1", "--names=a, b", "--no-pictures",
        "--out=x", "--control=a", "--control=b", "--ray",
    )  # fmt: skip

    assert config == Small(
        top_heads=3, alpha=2.0, engine="exact", layers=(0, 2, 3, 4), edit_layer=1, names=("a", "b"), pictures=False,
        out=Path("x"), control=["a", "b"], ray="local",
    )  # fmt: skip
    assert config_of() == Small()


@pytest.mark.parametrize("words", [["--topk", 4], ["--topk=4"], ["--top_heads", 4], ["--set", "topk=4"]])
def test_other_spellings_are_taken_and_not_shown(words: list[object]) -> None:
    assert config_of(*words).top_heads == 4
    assert "topk" not in call("run", "--help").output
    assert config_of("--no-heatmap").pictures is False


def test_the_command_line_comes_before_the_environment_a_set_a_file_and_the_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("topk: 1\nalpha: 0\nlayers: [1, 2]\nout: there\n")
    ways: list[object] = ["--config", file]

    assert config_of(*ways) == Small(top_heads=1, alpha=0.0, layers=(1, 2), out=Path("there"))
    assert config_of(*ways, "--set", "top_heads=2").top_heads == 2
    assert config_of(*ways, "--set", "top_heads=2", SMALL_HEADS="3").top_heads == 3
    assert config_of(*ways, "--top-heads", 0, SMALL_HEADS="3").top_heads == 0  # a 0 is given, too


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for kind in (Small, AntonymConfig, RelationConfig):
        file = tmp_path / f"{kind.__name__}.yaml"
        file.write_text(kind().text())
        assert resolve(kind, {}, file) == kind()
    assert "# Heads.\ntop_heads: 20\n" in Small().text()


def test_the_resolved_config_is_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", "--topk=3", "--write-config=a.yaml").exit_code == 0
    assert resolve(Small, {}, Path("a.yaml")) == Small(top_heads=3)
    assert not SEEN  # and nothing was run
    assert CliRunner().invoke(fvcore, ["relation", "--write-config", "b.yaml"]).exit_code == 0
    assert resolve(RelationConfig, {}, Path("b.yaml")) == RelationConfig()


def test_an_alias_is_the_run_with_some_settings_fixed() -> None:
    assert call("exactly", "--topk=2").exit_code == 0
    assert SEEN.pop() == Small(top_heads=2, engine="exact")
    assert call("exactly", "--engine=fast").exit_code == 2


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        (["--set", "top_head=1"], "", "--set top_head: unknown setting; did you mean 'top_heads'?"),
        (["--set", "zzz=1"], "", "expected one of top_heads, alpha"),
        (["--set", "alpha"], "", "--set 'alpha': expected key=value"),
        (["--set", "alpha=[1"], "", "--set 'alpha=[1':"),
        (["--set", "top_heads='3'"], "", "--set top_heads: input should be a valid integer (found '3')"),
        (["--top-heads=-1"], "", "--top-heads: input should be greater than or equal to 0 (found -1)"),
        (["--engine=quick"], "", "--engine: input should be 'fast' or 'exact' (found 'quick')"),
        (["--edit-layer=last"], "", "--edit-layer: expected a layer's number or all (found 'last')"),
        (["--layers=1-"], "", "--layers: expected numbers and ranges such as 0,2,5-7 (found '1-')"),
        ([], "topkk: 3", "c.yaml: topkk: unknown setting; did you mean 'top_heads'?"),
        ([], "pictures: 1", "c.yaml: pictures: input should be a valid boolean (found 1)"),
        ([], "alpha: .inf", "c.yaml: alpha: input should be a finite number"),
        ([], "control: [Q1, 3]", "c.yaml: control.1: input should be a valid string (found 3)"),
        ([], "- 1", "c.yaml: expected a mapping of settings, found list"),
    ],
)
def test_an_error_names_what_brought_the_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)

    done = call("run", *words, *(["--config=c.yaml"] if text else []))

    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotFinite("x"), 1), (OtherSettings("x"), 2), (RuntimeError("shapes"), 1), (KeyboardInterrupt(), 130)],
)
def test_an_exit_status_says_what_went_wrong(error: BaseException, status: int) -> None:
    def fail(config: Small) -> None:
        """Fail."""
        raise error

    app: typer.Typer = experiment(Small, fail, "Small.", {})

    assert CliRunner().invoke(app, ["run"]).exit_code == status
