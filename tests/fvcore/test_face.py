"""`import fvcore` costs nothing, and offers what the README shows."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fvcore
from fvcore.trials.fixed import read

HEAVY = ("torch", "transformers", "numpy", "pydantic", "scipy", "matplotlib")


def test_every_name_that_is_offered_is_there() -> None:
    assert len(set(fvcore.__all__)) == len(fvcore.__all__) > 15
    for name in fvcore.__all__:
        assert getattr(fvcore, name) is not None, name
        assert name in dir(fvcore)


def test_what_a_type_checker_sees_is_what_is_offered() -> None:
    typed = {}
    for node in ast.walk(ast.parse(Path(fvcore.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fvcore."):
            typed |= {alias.name: node.module for alias in node.names if alias.asname == alias.name}

    assert set(typed) == set(fvcore.__all__) - {"__version__", "read_trials"}
    for name, module in typed.items():
        assert getattr(import_module(str(module)), name) is getattr(fvcore, name)
    assert fvcore.read_trials is read


def test_importing_it_imports_nothing_heavy() -> None:
    code = f"import fvcore, sys; dir(fvcore); print([name for name in {HEAVY} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_name_that_is_not_offered_says_what_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'injekt'; it offers LanguageModel, load, read_trials"):
        _ = fvcore.injekt
    assert not hasattr(fvcore, "torch")
