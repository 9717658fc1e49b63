"""Five families against what the public reference said of them, within tolerances; `exact` to the last bit against the
same numbers computed again on this machine, and against the reference run here where FV_SRC names a checkout of it.

Bits recorded on another processor are not this one's: a plain forward pass of the library rounds otherwise there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fvcore.gates import Status, Suite, run_suite
from pytest_fvparity.parity.checks import STAGES, ParityRun
from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING
from tests.pytest_fvparity.family_goldens import FAMILIES, FOLDER

if RUNNING:
    from fvcore.artifacts import Artifact
    from fvcore.compare import compare
    from fvcore.pipeline import Pipeline, profile_of, run
    from pytest_fvparity.golden.golden import Golden, require_comparable
    from pytest_fvparity.parity.tolerances import Tolerances
    from pytest_fvparity.reference import reference
    from tests.pytest_fvparity.recomputation import Recomputation
    from tests.pytest_fvparity.record_family_goldens import SETTINGS, world


@pytest.mark.parametrize("engine", ["exact", "fast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_agrees_with_the_reference(family: str, engine: str, tmp_path: Path) -> None:
    golden, settings = Golden.open(FOLDER / family), replace(SETTINGS, engine=engine)
    assert (golden.manifest.reference.origin, len(golden.manifest.reference.commit)) == ("recorded", 40)
    lm, fixed = world(family, tmp_path)
    profile = profile_of(lm, fixed, settings)
    # Random weights are drawn by a kernel too, and so is their last bit. Other weights are found by their numbers, below.
    drawn = profile.identity.model_copy(update={"weights_sha": golden.profile.identity.weights_sha})
    require_comparable(golden.profile, profile.model_copy(update={"identity": drawn}))
    assert profile.conditions.engine == engine  # `fast` holds here, and did not fall back

    parity = ParityRun(Pipeline(lm, fixed, settings), golden, Tolerances.read(None, (), lm.dtype, "cpu"))
    results = {result.key: result for result in run_suite(Suite("parity", STAGES, lambda: parity))}

    assert {key: result.status for key, result in results.items()} == dict.fromkeys(CHECK_KEYS, Status.PASS)
    if engine == "exact" and golden.profile.same_kernels(profile):
        assert {result.verdict.measurements.get("max_abs_diff", 0.0) for result in results.values()} == {0.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_every_bit_of_a_recomputation_on_this_machine(family: str, tmp_path: Path) -> None:
    lm, fixed = world(family, tmp_path)
    ours = run(lm, fixed, SETTINGS)
    words = {**ours["prompt_boundary"], **ours["slot_map"]}

    numbers = Recomputation(lm.hf, words, SETTINGS.n_top_heads, SETTINGS.edit_layer).numbers()

    assert_every_bit(numbers, {key: ours[key] for key in numbers})


@pytest.mark.skipif("FV_SRC" not in os.environ, reason="FV_SRC names no checkout of the reference")
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_every_bit_of_the_reference_run_here(family: str, tmp_path: Path) -> None:
    lm, fixed = world(family, tmp_path)

    recorded = reference.run(Path(os.environ["FV_SRC"]), lm, fixed, SETTINGS, with_noise=False)

    assert recorded.profile.same_kernels(profile_of(lm, fixed, SETTINGS))
    assert_every_bit(recorded.artifacts, run(lm, fixed, SETTINGS))


def assert_every_bit(expected: Mapping[str, Artifact], actual: Mapping[str, Artifact]) -> None:
    verdicts = {key: compare(expected[key], actual[key]) for key in expected}
    assert {key: [found.where for found in verdict.findings[:3]] for key, verdict in verdicts.items()} == {
        key: [] for key in actual
    }
