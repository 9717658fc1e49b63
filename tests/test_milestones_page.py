"""What docs/milestones.md says of commands and options is there."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import typer
from typer.testing import CliRunner

from fvcore.cli import app as fvcore
from pytest_fvparity.cli import app as fvparity

PAGE = Path(__file__).parents[1] / "docs/milestones.md"
APPS: dict[str, typer.Typer] = {"fvcore": fvcore, "fvparity": fvparity}


def rows() -> list[tuple[str, str]]:
    """(command, option) of every row of the table of names."""
    table = PAGE.read_text().split("| in the plans | command |")[1].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    return [(line[2].strip("`"), line[3].strip("`")) for line in cells if line[1] != "option"]


@cache
def help_of(command: str) -> str:
    program, *words = command.split()
    if program == "pytest":
        done = subprocess.run([sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, check=True)
        return done.stdout
    shown = CliRunner(env={"COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"}).invoke(APPS[program], [*words, "--help"])
    assert shown.exit_code == 0, f"{command}: {shown.output}"
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.output)


def test_the_table_is_read() -> None:
    assert len(rows()) > 20
    assert {command.split()[0] for command, _ in rows()} == {"fvcore", "fvparity", "pytest"}


def test_every_option_that_a_flag_became_is_there() -> None:
    shown = {(command, option): help_of(command) for command, option in rows()}
    missing = [
        (c, o) for (c, o), text in shown.items() if o and not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", text)
    ]

    assert missing == []
