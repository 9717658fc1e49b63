"""Hooks a user's conftest.py or plugin can implement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings
    from fvcore.trials.fixed import FixedTrials
    from pytest_fvparity.parity.implementation import Implementation


@pytest.hookspec(firstresult=True)
def pytest_fvparity_candidate(lm: LanguageModel, trials: FixedTrials, settings: Settings) -> Implementation | None:
    """Return the implementation under test. Nobody implements it: fvcore's own pipeline is judged. All return None: an error."""


@pytest.hookspec
def pytest_fvparity_tolerances(dtype: str, device: str) -> list[dict[str, Any]] | None:
    """Return rules to put in front of the default tolerances, in the form of `tolerances.yaml`."""
