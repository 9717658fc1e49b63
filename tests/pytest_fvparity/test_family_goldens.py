"""Engine `exact` against what the public reference itself said of five families, and `fast` within its tolerances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fvcore.gates import Status, Suite, run_suite
from pytest_fvparity.parity.checks import STAGES, ParityRun
from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING
from tests.pytest_fvparity.family_goldens import FAMILIES, FOLDER

if RUNNING:
    from fvcore.pipeline import Pipeline, profile_of
    from pytest_fvparity.golden.golden import Golden, require_comparable
    from pytest_fvparity.parity.tolerances import Tolerances
    from tests.pytest_fvparity.record_family_goldens import SETTINGS, world


@pytest.mark.parametrize("engine", ["exact", "fast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_agrees_with_the_reference(family: str, engine: str, tmp_path: Path) -> None:
    golden, settings = Golden.open(FOLDER / family), replace(SETTINGS, engine=engine)
    assert (golden.manifest.reference.origin, len(golden.manifest.reference.commit)) == ("recorded", 40)
    lm, fixed = world(family, tmp_path)
    profile = profile_of(lm, fixed, settings)
    require_comparable(golden.profile, profile)
    assert profile.conditions.engine == engine  # `fast` holds here, and did not fall back

    run = ParityRun(Pipeline(lm, fixed, settings), golden, Tolerances.read(None, (), lm.dtype, "cpu"))
    results = {result.key: result for result in run_suite(Suite("parity", STAGES, lambda: run))}

    assert {key: result.status for key, result in results.items()} == dict.fromkeys(CHECK_KEYS, Status.PASS)
    largest = {key: result.verdict.measurements.get("max_abs_diff") for key, result in results.items()}
    if engine == "exact":
        assert list(largest.values()) == [None, None, 0.0, 0.0, 0.0, 0.0]  # words have no difference to measure
