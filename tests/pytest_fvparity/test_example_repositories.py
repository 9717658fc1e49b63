"""The two repositories among the examples do what their pages say, each copied to a folder of its own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fvcore.shipped import FIXED_TRIALS
from tests.pytest_fvparity.test_adapters import BLOCK, swap

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def said(pytester: pytest.Pytester, command: str, apart: bool) -> list[str]:
    program, *words = command.split()
    assert program == "pytest"
    run = pytester.runpytest_subprocess if apart else pytester.runpytest_inprocess
    return run(*words).outlines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hook-rewrite", "nnsight-rewrite"])
def test_a_repository_does_what_its_page_says(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if apart := name == "nnsight-rewrite":
        pytest.importorskip("nnsight", reason="nnsight is not installed: pip install 'pytest-fvparity[nnsight]'")
        shutil.copytree(
            ROOT / FIXED_TRIALS, pytester.path / FIXED_TRIALS
        )  # a plain install finds them with the package
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    shutil.copytree(EXAMPLES / name, pytester.path, dirs_exist_ok=True)
    command, n_slips = "", 0

    for block in BLOCK.finditer((EXAMPLES / name / "README.md").read_text()):
        if block["kind"] == "console":
            (command,) = (line for line in block["body"].splitlines() if not line.startswith("pip "))
            continue
        if block["old"]:
            swap(pytester.path, block["old"], block["new"])
            n_slips += 1
        pytest.LineMatcher(said(pytester, command, apart)).fnmatch_lines(block["body"].splitlines())
        shutil.copy(EXAMPLES / name / "rewrite.py", pytester.path)

    assert n_slips >= 1
