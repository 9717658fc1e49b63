"""--fv-repeat: a candidate that says something else when asked again is found, whatever it keeps between two answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from fvcore.gates import StageResult, Status
from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING
from tests.pytest_fvparity.worlds import World, plant, reports, statuses

if RUNNING:
    import torch

    from fvcore.artifacts import Artifact
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.selftest.catalogue import Observed, Outcome, observed
    from pytest_fvparity.selftest.rig import Rig, rig_of


KEY = "mean_activations"
CHANGED = "is not the same when asked again (asked {} times)"


def rig() -> Rig:
    return rig_of("llama")


def _judged(repeat: int, **stations: Any) -> list[StageResult]:
    return rig().judge(rig().candidate(**stations), repeat=repeat)


def _failed_at(results: list[StageResult], key: str) -> StageResult:
    (failed,) = [result for result in results if result.status not in {Status.PASS, Status.BLOCKED}]
    assert (failed.key, failed.status) == (key, Status.FAIL)
    return failed


def _drifting(step: float) -> Any:
    """Mean activations that creep from one answer to the next, far inside any tolerance."""
    n_asked = 0

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        nonlocal n_asked
        means = dict(Pipeline.mean_activations(self, prompts, slot_map))[KEY].clone()  # type: ignore[union-attr]
        means[1, 0, 2, 3] += step * n_asked
        n_asked += 1
        return {KEY: means}

    return mean_activations


def test_a_steady_candidate_passes_however_often_it_is_asked() -> None:
    assert observed(_judged(3)) == Observed(Outcome.PASSES)


def test_what_creeps_inside_the_tolerance_is_found_where_it_is() -> None:
    assert observed(_judged(1, mean_activations=_drifting(2.0**-17))) == Observed(Outcome.PASSES)

    failed = _failed_at(_judged(2, mean_activations=_drifting(2.0**-17)), KEY)

    first = failed.verdict.first_mismatch
    assert first is not None
    assert first.where == f"{KEY}[layer 1, head 0, slot 2, dim 3]"
    assert first.message.startswith(f"{CHANGED.format(2)}: differs by ")
    assert first.actual > first.expected
    assert (first.coordinate["layer"], failed.verdict.details["fault"]) == (1, "own")


def test_one_that_errs_the_third_time_is_asked_three_times() -> None:
    n_asked = 0

    def prompt_boundary(self: Pipeline) -> Artifact:
        nonlocal n_asked
        n_asked += 1
        leaves = dict(Pipeline.prompt_boundary(self))
        return {**leaves, "0:0/clean/text": "another"} if n_asked == 3 else leaves

    assert observed(_judged(2, prompt_boundary=prompt_boundary)) == Observed(Outcome.PASSES)
    n_asked = 0
    assert CHANGED.format(3) in observed(_judged(3, prompt_boundary=prompt_boundary)).message


def test_an_edited_reference_is_seen_only_by_asking_again() -> None:
    """The first answer is right: a run that asks once cannot know."""
    from pytest_fvparity.selftest.faults.activations import keeping_references

    assert observed(rig().judge(keeping_references(rig()))) == Observed(Outcome.PASSES)

    seen = observed(rig().judge(keeping_references(rig()), repeat=2))

    assert (seen.outcome, seen.key) == (Outcome.FAILS, KEY)
    assert CHANGED.format(2) in seen.message


def test_what_a_candidate_gave_may_be_edited_by_it_and_is_remembered_as_it_was() -> None:
    """One tensor for all answers: beside itself, the first answer would always be the same as the second."""
    given: list[torch.Tensor] = []

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        if not given:
            given.append(dict(Pipeline.mean_activations(self, prompts, slot_map))[KEY].clone())  # type: ignore[union-attr]
        else:
            given[0] += 1.0
        return {KEY: given[0]}

    failed = _failed_at(_judged(2, mean_activations=mean_activations), KEY)

    # Judged is the first answer: it agrees, and the one finding is that the second is another.
    assert [finding.message.partition(":")[0] for finding in failed.verdict.findings] == [CHANGED.format(2)]


def test_a_candidate_that_knows_its_inputs_again_is_asked_anew() -> None:
    """Answers kept by the identity of the inputs would be the same by themselves."""
    kept: dict[int, Artifact] = {}
    inputs = []
    drifting = _drifting(2.0**-17)

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        inputs.append(prompts)  # held, so that no later object takes its place in memory
        if id(prompts) not in kept:
            kept[id(prompts)] = drifting(self, prompts, slot_map)
        return kept[id(prompts)]

    _failed_at(_judged(2, mean_activations=mean_activations), KEY)


def test_inputs_that_a_candidate_edits_are_new_each_time() -> None:
    def slot_map(self: Pipeline, prompts: Artifact) -> Artifact:
        leaves = Pipeline.slot_map(self, prompts)
        for value in prompts.values():
            if isinstance(value, list):
                value.clear()
        return leaves

    failed = _failed_at(_judged(2, slot_map=slot_map), "slot_map").verdict
    assert all("the candidate changed prompt_boundary" in finding.message for finding in failed.findings)


def test_nan_and_the_sign_of_zero_are_the_same_again() -> None:
    """The golden has neither, so the key fails, and for no other reason."""
    n_asked = 0

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        nonlocal n_asked
        n_asked += 1
        means = dict(Pipeline.mean_activations(self, prompts, slot_map))[KEY].clone()  # type: ignore[union-attr]
        means[0, 0, 0, 0], means[0, 0, 0, 1] = float("nan"), 0.0 * (-1) ** n_asked
        return {KEY: means}

    failed = _failed_at(_judged(2, mean_activations=mean_activations), KEY)
    assert not [finding for finding in failed.verdict.findings if "asked again" in finding.message]


def test_an_order_that_changes_is_no_tie() -> None:
    """Heads that swap places inside the tolerance are a tie beside the golden, and unsteady beside themselves."""
    n_asked = 0
    tied = replace_golden_by_a_tie()

    def top_heads(self: Pipeline, *inputs: Artifact) -> Artifact:
        nonlocal n_asked
        n_asked += 1
        leaves = dict(tied["top_heads"])
        heads = list(leaves["heads"])
        return {**leaves, "heads": heads[::-1] if n_asked % 2 == 0 else heads}

    golden = replace(rig().golden, artifacts=tied)
    candidate = replace(rig(), golden=golden).candidate(top_heads=top_heads)
    results = replace(rig(), golden=golden).judge(candidate, repeat=2)

    seen = observed(results)
    assert (seen.outcome, seen.key) == (Outcome.FAILS, "top_heads")
    assert CHANGED.format(2) in seen.message


def replace_golden_by_a_tie() -> dict[str, Artifact]:
    """The rig's artifacts with one effect for all heads."""
    leaves = dict(rig().golden.artifacts["top_heads"])
    constant = {name: torch.full_like(leaves[name], 0.25) for name in ("cie", "aie", "scores")}  # type: ignore[arg-type]
    return {**rig().golden.artifacts, "top_heads": {**leaves, **constant}}


# ---------------------------------------------------------------- the option


def test_each_key_is_asked_for_as_often_as_was_said(pytester: pytest.Pytester, world: World) -> None:
    methods = "\n".join(
        f"    def {key}(self, *inputs):\n        asked.write('{key}\\n')\n        return super().{key}(*inputs)"
        for key in CHECK_KEYS
    )
    pytester.makeconftest(
        f"""
from fvcore.pipeline import Pipeline
asked = open({str(pytester.path / "asked.txt")!r}, "a", buffering=1)
class Counting(Pipeline):
{methods}
def pytest_fvparity_candidate(lm, trials, settings):
    return Counting(lm, trials, settings)
"""
    )

    pytester.runpytest_inprocess("-m", "parity", "--fv-repeat=3", *world.options).assert_outcomes(passed=6)

    assert Counter((pytester.path / "asked.txt").read_text().split()) == dict.fromkeys(CHECK_KEYS, 3)


UNSTEADY = """self.__dict__["n"] = self.__dict__.get("n", 0) + 1
        leaves["mean_activations"] = leaves["mean_activations"] + self.n * 2.0**-22"""


def test_an_unsteady_key_is_the_earliest_divergence(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, KEY, UNSTEADY)
    pytester.runpytest_inprocess("-m", "parity", *world.options).assert_outcomes(passed=6)

    pytester.runpytest_inprocess("-m", "parity", "--fv-repeat=2", *world.options)

    (report,) = reports(pytester)
    assert list(statuses(report).values()) == ["PASS", "PASS", "FAIL", *["BLOCKED"] * 3]
    assert CHANGED.format(2) in report["headline"]
    assert report["first_divergence"]["coordinate"] == {"layer": 0, "head": 0, "slot": 0, "dim": 0}
    assert report["checks"][2]["fault"] == "own"
    assert "--fv-repeat=2" in report["repro_command"]


def test_a_later_key_whose_own_answers_are_the_same_passes(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, KEY, UNSTEADY)

    how = ["-m", "parity", "-k", "mean_activations or fv_vector", "--fv-keep-going", "--fv-repeat=2"]
    pytester.runpytest_inprocess(*how, *world.options)

    (report,) = reports(pytester)
    assert statuses(report) == {"mean_activations": "FAIL", "fv_vector": "PASS"}


@pytest.mark.parametrize("n", ["0", "-1"])
def test_less_than_once_is_refused(pytester: pytest.Pytester, world: World, n: str) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", f"--fv-repeat={n}", *world.options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--fv-repeat: at least 1, found {n}*"])


def test_no_word_of_it_without_the_option() -> None:
    results: Mapping[str, StageResult] = {result.key: result for result in _judged(1)}
    assert all("asked again" not in f.message for result in results.values() for f in result.verdict.findings)
