"""What the page on CI shows: YAML that parses, commands and options that there are, statuses that come out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ci.md").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OURS = ("pytest", "fvparity", "fvcore")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def scripts(node: Any) -> Iterator[str]:
    """What a workflow has a shell run, wherever it stands."""
    if isinstance(node, dict):
        for key, value in node.items():
            lines = value if isinstance(value, list) else [value]
            yield from (line for line in lines if isinstance(line, str)) if key in {"run", "script"} else scripts(value)
    elif isinstance(node, list):
        for one in node:
            yield from scripts(one)


def commands(text: str) -> Iterator[list[str]]:
    """Our own programs in a script of a shell, word by word."""
    for line in re.split(r"\n|\|\||&&|(?<=\s)\|(?=\s)", text.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        at = next((n for n, word in enumerate(words) if word.rpartition("/")[2] in OURS), None)
        if at is not None and words[:1] != ["pip"]:
            yield [words[at].rpartition("/")[2], *words[at + 1 :]]


def shown() -> list[list[str]]:
    texts = [line for block in blocks("yaml") for line in scripts(yaml.safe_load(block))]
    inline = [text for text in re.findall(r"`([^`\n]+)`", PAGE) if text.split()[0] in OURS and "..." not in text]
    workflows = [line for path in WORKFLOWS for line in scripts(yaml.safe_load(path.read_text()))]
    return [words for text in texts + inline + workflows for words in commands(text)]


def test_the_page_shows_commands() -> None:
    assert {words[0] for words in shown()} >= {"pytest", "fvparity"}
    assert len(blocks("yaml")) >= 4


@pytest.mark.parametrize("words", shown(), ids=" ".join)
def test_every_command_and_option_is_there(words: list[str], request: pytest.FixtureRequest) -> None:
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "pytest":
        known = set(request.config._parser.optparser._option_string_actions)  # type: ignore[attr-defined]
        assert options <= known | {"--junitxml"}
        return
    from typer.main import get_command

    from fvcore import cli as fvcore
    from pytest_fvparity import cli as fvparity

    command: Any = get_command({"fvcore": fvcore, "fvparity": fvparity}[words[0]].app)
    for word in words[1:]:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands
        command = command.commands[word]
    assert options <= {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_workflow_is_one_and_may_read_alone(path: Path) -> None:
    """A job that may do more runs no command and no code of a checkout."""
    value = yaml.safe_load(path.read_text())

    assert value["permissions"] == {"contents": "read"}
    for job in value["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"] if "permissions" in job else ():
            assert "run" not in step
            assert "checkout" not in step["uses"]


def test_python_and_toml_are_what_they_say() -> None:
    import tomllib

    for block in blocks("python"):
        compile(block, "ci.md", "exec")
    names = {name for block in blocks("toml") for name in tomllib.loads(block)["tool"]["pytest"]["ini_options"]}

    from pytest_fvparity.options import OPTIONS

    assert names <= {option.dest for option in OPTIONS if option.ini}


def test_the_steps_behind_a_run_do_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fvcore.gates import Status
    from pytest_fvparity import cli
    from pytest_fvparity.parity.implementation import CHECK_KEYS
    from pytest_fvparity.report.render import write_all
    from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

    monkeypatch.chdir(tmp_path)
    write_all([assemble(CHECK_KEYS, rows_of())], Path("before"))
    write_all([assemble(CHECK_KEYS, rows_of(slot_map=row_of("slot_map", Status.FAIL, failed())))], Path("reports"))
    steps = [words for words in shown() if words[:2] in (["fvparity", "compare"], ["fvparity", "merge"])]
    run = [words for words in steps if not {"BEFORE", "reports-*/"} & set(words)]

    assert len(run) == 2
    for words in run:
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
    assert Path("merged/summary.html").is_file()
