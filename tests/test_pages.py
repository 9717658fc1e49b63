"""What the pages show to be typed works as it stands there: in the page's order, in an empty folder, behind a plain install.

A block that cannot run there has a comment before it that says why, `<!-- not run: REASON -->`; one that takes long is
`<!-- slow -->`. Of a console block with `$ ` before its commands the rest is what they say.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fvcore import shipped
from tests.test_package import built as built
from tests.test_package import site as site
from tests.test_package import wheel as wheel

ROOT = Path(__file__).parents[1]
BY_THEMSELVES = {
    "library.md": "test_library_page",
    "candidates.md": "pytest_fvparity.test_adapters",
}
"""Pages whose blocks have tests that know more of them."""
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.name not in BY_THEMSELVES]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>slow|not run: (?P<reason>.+?)) -->\n+)?^(?P<fence> *```)(?P<kind>python|console|bash|sh)\n(?P<body>.*?)(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
REASONS = {
    "a clone of this project",
    "a checkout of the reference",
    "files of one's own",
    "a part of a file",
    "several machines",
    "Ray",
    "another test runs its commands",
}
N_NOT_RUN = 23
"""Of all blocks; whoever marks one more changes this number."""


@dataclass(frozen=True)
class Block:
    kind: str
    body: str
    mark: str
    reason: str

    def commands(self) -> list[str]:
        lines = self.body.replace("\\\n", " ").splitlines()
        return [line[2:] for line in lines if line.startswith("$ ")] or lines


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text())
    return [Block(one["kind"], one["body"], one["mark"] or "", one["reason"] or "") for one in found]


def has(page: Path, mark: str) -> bool:
    return any(block.mark == mark for block in blocks(page))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder one types in, and what ships beside the package as a wheel brings it."""
    for name in ("datasets", "golden"):
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / name).symlink_to(ROOT / name)
    monkeypatch.setattr(shipped, "PACKAGED", tmp_path / "package")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_every_block_runs_or_says_why_not() -> None:
    everything = [(page.name, block) for page in PAGES for block in blocks(page)]
    reasons = {block.reason for _, block in everything} - {""}

    assert reasons <= REASONS
    assert sum(bool(block.reason) for _, block in everything) == N_NOT_RUN
    assert len(everything) >= 25


@pytest.mark.parametrize("page", [page for page in PAGES if has(page, "")], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, empty: Path) -> None:
    run([block for block in blocks(page) if not block.mark])


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if has(page, "slow")], ids=lambda page: page.name)
def test_the_blocks_that_take_long_run_behind_a_plain_install(page: Path, site: Path, tmp_path: Path) -> None:
    paths = {"PYTHONPATH": str(site), "PATH": os.pathsep.join([str(site / "bin"), os.environ["PATH"]])}
    for block in [block for block in blocks(page) if block.mark == "slow"]:
        script = [shlex.join([sys.executable, "-c", block.body])] if block.kind == "python" else block.commands()
        # Output is kept where a failing test shows it.
        for command in script:
            assert subprocess.run(command, shell=True, cwd=tmp_path, env={**os.environ, **paths}).returncode == 0, (
                command
            )


def run(shown: list[Block]) -> None:
    names: dict[str, Any] = {}
    for block in shown:
        if block.kind == "python":
            exec(compile(block.body, "page", "exec"), names)
        else:
            for command in block.commands():
                assert status(shlex.split(command, comments=True)) == 0, command


def status(words: list[str]) -> int:
    """What a command of ours ends with, in this process."""
    from fvcore import cli as fvcore
    from pytest_fvparity import cli as fvparity

    ours = {"fvcore": fvcore, "fvparity": fvparity}
    assert words[0] in ours, (
        f"{words[0]} is no command of ours: mark its block, as slow or with the reason why it cannot run"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        try:
            ours[words[0]].main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0
