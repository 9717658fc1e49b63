"""Imports that wait for the first test of a file: collection is quick, and brings neither torch nor models.

    from tests.late import RUNNING

    if RUNNING:
        import torch
        from fvcore.pipeline import Pipeline

        VECTOR = torch.ones(3)

`tests/conftest.py` runs what stands below `if RUNNING:` in the file's own names, before the file's first test and its
fixtures. What collection itself reads (parameters, decorators) cannot stand there.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

RUNNING = False
"""Never true when a file is collected."""

P = ParamSpec("P")
R = TypeVar("R")


def _is_late(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "RUNNING"


@functools.cache
def import_late(module: ModuleType) -> None:
    """Run what the file says below `if RUNNING:`, once; and so for other files that its names come from."""
    path = Path(str(module.__file__))
    late = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if _is_late(node)]
    statements = [statement for node in late if isinstance(node, ast.If) for statement in node.body]
    exec(compile(ast.Module(statements, []), str(path), "exec"), vars(module))
    others = {getattr(value, "__module__", None) for value in vars(module).values()} - {module.__name__}
    for name in others:
        if isinstance(name, str) and name.startswith("tests.") and name in sys.modules:
            import_late(sys.modules[name])


def inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.inference_mode()` as a decorator that needs no torch where it stands."""

    @functools.wraps(function)
    def without_gradients(*args: P.args, **kwargs: P.kwargs) -> R:
        import torch

        with torch.inference_mode():
            return function(*args, **kwargs)

    return without_gradients
