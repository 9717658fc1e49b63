"""One milestone after the other: what each needs, what it delivers, and what is written down of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fvcore.formats import FormatError
from fvcore.gates import StageError
from fvcore.model.spec import ModelError
from pytest_fvparity.milestones import (
    m0_trials,
    m1_golden,
    m2_parity,
    m3_reference,
    m4_runtime,
    m5_diff,
    m6_again,
    m7_transfer,
    state,
)
from pytest_fvparity.milestones.setup import Failed, Setup
from pytest_fvparity.milestones.state import Ended, MilestoneOutcome

MODULES = (m0_trials, m1_golden, m2_parity, m3_reference, m4_runtime, m5_diff, m6_again, m7_transfer)
RUNS: dict[str, Callable[[Setup], MilestoneOutcome]] = {f"M{n}": module.run for n, module in enumerate(MODULES)}
NEEDS = {"M3": "M2", "M4": "M2", "M7": "M2"}
"""A failing M2 stops what builds on it; M5 and M6 are there for that case."""


def run(milestone: str, setup: Setup) -> MilestoneOutcome:
    """Run one and write down how it ended. Raises NotReady where what it needs did not pass."""
    setup.fixed  # noqa: B018  (the lock comes before anything is written)
    settings: dict[str, Any] = {}
    try:
        settings = setup.settings
        if needed := NEEDS.get(milestone):
            state.require(setup.layout.state, milestone, needed, settings, setup.root)
        outcome = RUNS[milestone](setup)
    except (Failed, ModelError, StageError) as failure:
        outcome = MilestoneOutcome(False, str(failure), [])
    ended = {milestone: outcome}
    if milestone == "M6" and outcome.passed:
        # Its second run is a suite like M2's, under M2's names: what builds on M2 builds on that.
        ended["M2"] = replace(outcome, files=[setup.layout.runs / name for name in m2_parity.FILES])
    for name, how in ended.items():
        state.write(setup.layout.state, name, Ended.of(how, settings, setup.root))
    return outcome


def run_all(milestones: Sequence[str], setup: Setup) -> Iterator[tuple[str, MilestoneOutcome]]:
    """In order; behind a failure only M5 runs, which says where it is."""
    failed = False
    for milestone in milestones:
        if failed and milestone != "M5":
            continue
        try:
            outcome = run(milestone, setup)
        except FormatError as refusal:
            outcome = MilestoneOutcome(False, str(refusal), [])
        failed = failed or not outcome.passed
        yield milestone, outcome
