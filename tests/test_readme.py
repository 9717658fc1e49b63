"""What the first page shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_method_as_a_library_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (shown,) = [block for block in blocks("python") if "fvcore.load" in block]
    names: dict[str, Any] = {}

    exec(compile(shown, "README.md", "exec"), names)

    assert len(names["artifacts"]["top_heads"]["heads"]) == 10
    assert names["vector"].shape == (names["lm"].d_model,)


def test_every_python_block_is_python() -> None:
    assert len(blocks("python")) >= 4
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_the_options_shown_are_options_there_are() -> None:
    from pytest_fvparity.options import OPTIONS

    shown = set(re.findall(r"--fv-[a-z-]*[a-z]", (ROOT / "README.md").read_text()))
    assert shown <= {option.flag for option in OPTIONS}
