"""What every command does on every terminal: whole names in its help, any encoding, quiet where asked, JSON for a table."""

from __future__ import annotations

import ast
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fvcore import cli as fvcore_cli
from fvcore import exits
from pytest_fvparity import cli as fvparity_cli

ROOT = Path(__file__).parents[1]
PROGRAMS = {"fvcore": fvcore_cli, "fvparity": fvparity_cli}

PRINT_TABLES = [
    *("fvcore spec list", "fvcore spec audit", "fvcore spec smoke", "fvcore spec engines", "fvcore relation status"),
    *("fvcore eval", "fvcore select-kv-faults", "fvcore pathways faults", "fvcore pathways status"),
    *(
        "fvcore pathways sae-info",
        "fvcore pathways selftest",
        "fvcore pathways train-sae",
        "fvparity selftest",
        "fvparity golden list",
        "fvparity compare",
    ),
]


def commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, (*words, name))


ALL = [pair for name, room in PROGRAMS.items() for pair in commands(typer.main.get_command(room.app), (name,))]
BY_NAME = {" ".join(words): command for words, command in ALL}


@pytest.mark.parametrize("width", [60, 80])
def test_help_shows_every_option_whole(width: int) -> None:
    for words, command in ALL:
        if not command.add_help_option:
            continue
        context = command.make_context(" ".join(words), [], resilient_parsing=True, terminal_width=width - 2)
        help = command.get_help(context)
        shown = set(help.replace(",", " ").replace("/", " ").split())
        named = {name for one in command.params for name in (*one.opts, *one.secondary_opts) if name.startswith("--")}
        assert named <= shown, words
        lines = [line for line in help.splitlines() if not line.lstrip().startswith("-")]
        assert max(map(len, lines)) <= width, words


@pytest.mark.parametrize("words", ["fvcore --help", "fvcore spec list", "fvparity --version", "fvparity init --table"])
def test_a_terminal_of_few_characters_stops_no_command(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", words.split())

    with pytest.raises(SystemExit) as ended:
        PROGRAMS[words.split()[0]].main()

    assert ended.value.code == 0
    out.flush()
    assert out.buffer.tell() > 20  # type: ignore[attr-defined]


def test_every_room_with_a_main_is_a_door() -> None:
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        has_main = any(one.name == "main" and not one.args.args for one in functions)
        opened = 'if __name__ == "__main__":' in path.read_text()
        assert opened or not has_main, f"python -m {path}: nothing would happen"


PACKAGES = (ROOT / "fvcore", ROOT / "pytest_fvparity")


@pytest.mark.parametrize("name", PRINT_TABLES)
def test_what_is_printed_as_a_table_can_be_had_as_json(name: str) -> None:
    assert "--json" in {word for one in BY_NAME[name].params for word in one.opts}


def test_a_table_and_its_json_hold_the_same() -> None:
    plain = CliRunner(env={"COLUMNS": "200"}).invoke(fvcore_cli.app, ["spec", "list"]).output
    rows = json.loads(CliRunner().invoke(fvcore_cli.app, ["spec", "list", "--json"]).output)
    assert rows
    assert all(row["spec"] in plain and row["output projection"] in plain for row in rows)


@pytest.mark.parametrize(("words", "loudness"), [([], 0), (["-q"], -1), (["--verbose"], 1)])
def test_quiet_and_verbose_count_wherever_they_stand(
    words: list[str], loudness: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert CliRunner().invoke(fvcore_cli.app, ["spec", "list", *words]).exit_code == 0
    assert exits.LOUDNESS.get() == loudness
    exits.note("by the way")
    exits.tell("a result")
    assert capsys.readouterr().out == "by the way\n" * (loudness >= 0) + "a result\n"
    exits.LOUDNESS.set(0)


@pytest.mark.parametrize(("value", "colour"), [("", None), ("1", False)])
def test_no_color_is_heard(value: str, colour: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    assert exits.colour() is colour
