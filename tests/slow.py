"""Parameters of which a few run in `make test`; the others are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(quick: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """`values` for `pytest.mark.parametrize`, all but those in `quick` marked slow."""
    kept, every = list(quick), list(values)
    if missing := [value for value in kept if value not in every]:
        raise ValueError(f"not among the parameters: {missing}")
    return [value if value in kept else _slow(value) for value in every]


def _slow(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.slow)
