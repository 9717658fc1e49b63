"""The project's own tests use pytester, and tiny models made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], LanguageModel]:
    """family -> a tiny random model of it with a toy tokenizer; the same object for the whole session."""
    from fvcore.embedded.random_models import random_lm

    return cache(random_lm)
