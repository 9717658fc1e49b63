"""An experiment's settings by every way they come: options and their spellings, environment, `--set`, a file, defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner, Result

from fvcore.cli import app as fvcore
from fvcore.experiments.antonym.config import AntonymConfig
from fvcore.experiments.config import (
    Config,
    ConfigError,
    LayerOrAll,
    Numbers,
    Option,
    Words,
    add_command,
    experiment,
    resolve,
)
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
    [
        (NotFinite("x"), 1),
        (OtherSettings("x"), 2),
        (RuntimeError("shapes"), 1),
        (KeyboardInterrupt(), 130),
        (typer.Exit(3), 3),
    ],
)
def test_an_exit_status_says_what_went_wrong(error: BaseException, status: int) -> None:
    def fail(config: Small) -> None:
        """Fail."""
        raise error

    app: typer.Typer = experiment(Small, fail, "Small.", {})

    assert CliRunner().invoke(app, ["run"]).exit_code == status


class Inner(Config):
    on: int = Field(default=1, ge=0, description="A word that YAML takes for true.")
    names: Words = ()
    loud: bool = False


class Group(Config):
    inner: Inner = Inner()
    most: Annotated[int, Option(flag="at_most")] = Field(default=5, ge=1)


class Deep(Config):
    """Groups in groups, and one that may stand in two places."""

    moved: ClassVar[Mapping[str, str]] = {"group.shared": "shared"}
    shared: Inner = Field(default=Inner(), description="For all.")
    group: Group = Group()


def deep(*words: object, default: Path | None = None) -> Deep:
    seen: list[Deep] = []
    app = typer.Typer()
    add_command(app, "run", Deep, seen.append, "Run.", default=default)
    done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return seen.pop()


@pytest.mark.parametrize(
    "words",
    [
        ["--group-inner-on", 0],
        ["--group_inner_on=0"],
        ["--set", "group.inner.on=0"],
        ["--set", "group={inner: {on: 0}}"],
    ],
)
def test_a_setting_in_a_group_is_set_from_everywhere(words: list[object]) -> None:
    assert deep(*words) == Deep(group=Group(inner=Inner(on=0)))


def test_groups_of_a_file_and_of_the_command_line_are_laid_over_each_other(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("group:\n  inner:\n    on: 3\n    names: [a]\n  most: 4\n")

    laid = deep("--config", file, "--set", "group.inner.names=[b]", "--at-most=2", "--group-inner-loud")

    assert laid == Deep(group=Group(inner=Inner(on=3, names=("b",), loud=True), most=2))
    assert deep(default=file).group.most == 4
    assert deep("--group-most=3", default=file).group.most == 3
    assert deep("--config", file, default=tmp_path / "none.yaml").group.most == 4


def test_what_stands_in_two_places_counts_where_it_stands_inside_and_the_command_line_before_both(
    tmp_path: Path,
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("group: {shared: {on: 2}}\nshared: {on: 1, names: [a]}\n")

    assert deep("--config", file).shared == Inner(on=2, names=("a",))
    assert deep("--config", file, "--set", "shared.on=0").shared.on == 0
    assert deep("--config", file, "--set", "group.shared.on=4", "--shared-on=0").shared.on == 0


def test_groups_are_written_with_what_they_mean_and_read_again(tmp_path: Path) -> None:
    config = Deep(group=Group(inner=Inner(names=("a", "b"))))
    (file := tmp_path / "c.yaml").write_text(config.text())

    assert resolve(Deep, {}, file) == config
    assert "# For all.\nshared:\n  # A word that YAML takes for true.\n  'on': 1\n" in config.text()


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        (
            ["--set", "group.inner.nams=1"],
            "",
            "--set group.inner.nams: unknown setting; did you mean 'group.inner.names'?",
        ),
        (["--set", "gruop.inner.on=1"], "", "--set gruop: unknown setting; did you mean 'group'?"),
        (["--set", "most=1"], "", "--set most: unknown setting; did you mean 'group.most'?"),
        (["--set", "group.zzz=1"], "", "expected one of inner, most"),
        (["--set", "group.inner=1"], "", "--set group.inner: expected a mapping of settings, found int"),
        (
            ["--set", "group.inner.on=-1"],
            "",
            "--set group.inner.on: input should be greater than or equal to 0 (found -1)",
        ),
        (["--group-most=0"], "", "--at-most: input should be greater than or equal to 1 (found 0)"),
        (["--group-inner-on=-1"], "", "--group-inner-on: input should be greater"),
        ([], "group: {inner: {on: no}}", "c.yaml: group.inner.on: input should be a valid integer (found False)"),
        ([], "group: {inner: {off: 1}}", "c.yaml: group.inner.off: unknown setting"),
        ([], "group:", "c.yaml: group: expected a mapping of settings, found NoneType"),
        (
            [],
            "group: {inner: {names: [a, 1]}}",
            "c.yaml: group.inner.names.1: input should be a valid string (found 1)",
        ),
        ([], "group: {shraed: {on: 1}}", "c.yaml: group.shraed: unknown setting; did you mean 'shared'?"),
    ],
)
def test_an_error_in_a_group_names_the_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)

    with pytest.raises(ConfigError) as caught:
        deep(*words, *(["--config=c.yaml"] if text else []))

    assert message in str(caught.value)
