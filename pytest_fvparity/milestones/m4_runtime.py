"""M4: the runtime's own outputs, from the fixed trials and from trials drawn from the dataset."""

from __future__ import annotations

from pytest_fvparity.milestones.outcome import Outcome
from pytest_fvparity.milestones.setup import Failed, Setup


def run(setup: Setup) -> Outcome:
    raise Failed("not yet")
