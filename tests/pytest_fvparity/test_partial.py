"""A candidate that offers less, or another form: what is there is judged at its own key, what is not is said and blocks nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.gates import NotHeld, StageResult, Status
from pytest_fvparity.parity.implementation import CHECK_KEYS, INPUTS
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import effects
    from fvcore.pipeline import Pipeline, slots_of, trial_keys
    from pytest_fvparity.parity.at_hand import log_effects_of
    from pytest_fvparity.parity.checks import check
    from pytest_fvparity.selftest.alarms import shipped_rigs
    from pytest_fvparity.selftest.rig import Recorded, Rig, changed, rig_of
    from tests.pytest_fvparity.worlds import World, plant, reports, statuses

if TYPE_CHECKING:
    from fvcore.artifacts import Artifact

Leaves = dict[str, Any]
OTHERS_PASS = dict.fromkeys(CHECK_KEYS, Status.PASS)


def changing(key: str, change: Callable[[Leaves], Leaves]) -> Callable[..., Artifact]:
    """The station of a key, whose leaves `change` has had in hand."""

    def station(self: Pipeline, *inputs: Artifact) -> Artifact:
        return change(dict(getattr(Pipeline, key)(self, *inputs)))

    return station


def without(*names: str) -> Callable[[Leaves], Leaves]:
    return lambda leaves: {leaf: value for leaf, value in leaves.items() if leaf.rpartition("/")[2] not in names}


def judged(key: str, change: Callable[[Leaves], Leaves], rig: Rig | None = None, **more: Any) -> dict[str, StageResult]:
    ours = rig or rig_of("llama")
    stations: dict[str, Any] = {key: changing(key, change)}
    candidate = ours.candidate(**stations, **more)
    return {result.key: result for result in ours.judge(candidate)}


def found(results: dict[str, StageResult]) -> dict[str, Status]:
    return {key: result.status for key, result in results.items()}


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("slot_map", ("labels", "full_idx_map")),
        ("top_heads", ("cie",)),
        ("top_heads", ("cie", "aie", "scores")),
        ("fv_vector", ("head_terms", "norm")),
        ("injection_output", ("base_nll", "with_nll", "base_generated", "with_generated")),
    ],
)
def test_a_leaf_that_is_left_out_is_said_and_blocks_nothing(key: str, names: tuple[str, ...]) -> None:
    results = judged(key, without(*names))
    assert found(results) == OTHERS_PASS | {key: Status.NOT_PROVIDED}
    assert results[key].verdict.compared > 0
    assert all(name in results[key].message.partition("not provided: ")[2] for name in names)


def test_what_a_later_key_needs_of_it_is_lent_and_that_is_said() -> None:
    results = judged("top_heads", without("cie", "aie", "scores"))
    said = [finding.message for finding in results["fv_vector"].verdict.findings]
    assert said == ["judged on the reference's cie, aie, scores of top_heads, for the candidate provides none"]


def test_facts_of_the_tokenizer_need_not_be_given() -> None:
    results = judged("prompt_boundary", lambda leaves: {k: v for k, v in leaves.items() if not k.startswith("bos/")})
    assert found(results) == OTHERS_PASS


def test_what_lacks_does_not_hide_a_fault_of_what_is_there() -> None:
    results = judged("top_heads", lambda leaves: without("cie")(leaves | {"aie": 2 * leaves["aie"]}))
    assert results["top_heads"].status is Status.FAIL
    assert results["top_heads"].verdict.details["fault"] == "own"
    first = results["top_heads"].verdict.first_mismatch
    assert first is not None
    assert first.where.startswith("aie[")


def test_a_leaf_of_some_trials_is_a_leaf_that_differs() -> None:
    def change(leaves: Leaves) -> Leaves:
        del leaves["1:1/corrupted/target_id"]
        return leaves

    results = judged("prompt_boundary", change)
    first = results["prompt_boundary"].verdict.first_mismatch
    assert results["prompt_boundary"].status is Status.FAIL
    assert first is not None
    assert first.where == "1:1/corrupted/target_id"


def test_nothing_at_all_is_not_a_part() -> None:
    results = judged("top_heads", lambda leaves: {})
    assert results["top_heads"].status is Status.NOT_PROVIDED
    assert results["top_heads"].verdict.compared == 0


def last_slot(leaves: Leaves) -> Leaves:
    return {"last_slot": leaves["mean_activations"][:, :, -1].clone()}


def test_a_golden_without_leaves_holds_all_of_a_key_unless_it_says_otherwise() -> None:
    plain = rig_of("llama")
    ours = replace(plain, golden=Recorded({**plain.artifacts, "injection_output": {}}))
    result = ours.judge(ours.candidate())[-1]
    assert (result.key, result.status) == ("injection_output", Status.FAIL)
    assert "not in the golden" in result.verdict.findings[0].message


def test_tensors_without_a_number_are_no_agreement() -> None:
    empty: dict[str, Artifact] = {key: {"none": torch.zeros(0)} for key in CHECK_KEYS}
    plain = rig_of("llama")
    run = replace(plain, golden=Recorded({**plain.artifacts, "fv_vector": empty["fv_vector"]})).run(Recorded(empty))
    verdict = run.compare("fv_vector", {"none": torch.zeros(0)})
    assert [finding.message for finding in verdict.findings] == ["nothing was compared: no leaf holds a value"]
    assert not verdict.passed


def test_means_at_the_last_slot_are_enough_for_what_comes_after() -> None:
    results = judged("mean_activations", last_slot)
    assert found(results) == OTHERS_PASS | {"mean_activations": Status.NOT_PROVIDED}
    assert results["mean_activations"].message.endswith("not provided: mean_activations of the other slots")


def test_a_fault_of_the_last_slot_is_found_there_and_goes_on_with_it() -> None:
    def change(leaves: Leaves) -> Leaves:
        wrong = last_slot(leaves)
        wrong["last_slot"][1, 2] *= 1.5
        return wrong

    ours = rig_of("llama")
    results = {r.key: r for r in ours.judge(ours.candidate(mean_activations=changing("mean_activations", change)))}
    first = results["mean_activations"].verdict.first_mismatch
    assert first is not None
    assert (first.coordinate["layer"], first.coordinate["head"]) == (1, 2)
    assert first.where.startswith("last_slot[layer 1, head 2, dim ")


def in_logprob(leaves: Leaves) -> Leaves:
    """Effects and heads of a candidate that measures in log-probabilities; made up, but not the order of the reference's."""
    cie = torch.sin(torch.arange(leaves["cie"].numel()).float() * 1.7).view_as(leaves["cie"])
    aie = cie.mean(dim=0)
    scores, order = aie.flatten().sort(descending=True)
    k = len(leaves["heads"])
    heads = [list(divmod(int(i), aie.shape[1])) for i in order[:k]]
    rounded = torch.tensor([round(float(s), 4) for s in scores[:k]], dtype=torch.float64)
    return {"cie": cie, "aie": aie, "heads": heads, "scores": rounded}


def with_further_leaf(ours: Rig) -> Rig:
    right = dict(ours.golden.artifact("top_heads"))
    made_up = in_logprob(right)
    further = {"top_heads": {**right, "cie_logprob": made_up["cie"], "aie_logprob": made_up["aie"]}}
    return replace(ours, golden=Recorded({**ours.artifacts, **further}))


def test_effects_in_log_probabilities_are_compared_with_the_same_quantity() -> None:
    rig = with_further_leaf(rig_of("llama"))
    results = judged("top_heads", in_logprob, rig, effects="logprob")
    assert found(results) == OTHERS_PASS
    assert any("log-probabilities" in finding.message for finding in results["top_heads"].verdict.findings)

    wrong = judged(
        "top_heads", lambda leaves: in_logprob(leaves) | {"aie": in_logprob(leaves)["aie"] + 1}, rig, effects="logprob"
    )
    assert wrong["top_heads"].status is Status.FAIL


def test_who_says_nothing_of_log_probabilities_is_judged_by_probabilities() -> None:
    rig = with_further_leaf(rig_of("llama"))
    assert found(judged("top_heads", lambda leaves: leaves, rig)) == OTHERS_PASS
    assert judged("top_heads", in_logprob, rig)["top_heads"].status is Status.FAIL


def test_who_gives_them_beside_the_others_is_not_held_to_what_an_older_golden_lacks() -> None:
    assert found(judged("top_heads", lambda leaves: leaves | {"cie_logprob": leaves["cie"]})) == OTHERS_PASS


def measured_in_logprob(self: Pipeline, *inputs: Artifact) -> Artifact:
    """Effects as a rewrite takes them that reads log-probabilities, one head at a time."""
    prompts, slot_map, means = inputs
    by_trial = []
    for key in trial_keys(prompts):
        ids, target = prompts[f"{key}/corrupted/input_ids"], prompts[f"{key}/target_id"]
        slots = slots_of(slot_map, key, "corrupted")
        readings = effects.target_readings(self.lm, ids, target, slots, means["mean_activations"], self.lm.heads)  # type: ignore[arg-type]
        by_trial.append((readings[1:, 2] - readings[0, 2]).view(self.lm.n_layers, self.lm.n_heads))
    cie = torch.stack(by_trial)
    return {"cie": cie, "aie": cie.mean(dim=0)}


def off(by: float) -> Callable[..., Artifact]:
    """The same, of which the effect of one head on one trial is too large."""

    def station(self: Pipeline, *inputs: Artifact) -> Artifact:
        leaves: Leaves = dict(measured_in_logprob(self, *inputs))
        leaves["cie"][1, 0, 2] += by
        return leaves

    return station


def test_the_goldens_that_ship_hold_them_and_bound_them_as_the_rules_say() -> None:
    rig = next(rig for rig in shipped_rigs() if rig.lm.name == "tiny-llama")
    run = rig.run(rig.candidate(top_heads=measured_in_logprob, effects="logprob"))
    run.log_effects = None  # what the golden says counts
    given = [rig.artifacts[key] for key in INPUTS["top_heads"]]
    allowed = float(run.tolerances.of("top_heads")("cie").allowed(torch.zeros(())))
    right, wrong = (run.compare("top_heads", off(by)(run.candidate, *given)) for by in (0.0, 4 * allowed))
    assert right.passed
    assert [finding.coordinate["head"] for finding in wrong.findings if finding.blocking] == [2]


def test_where_a_golden_lacks_them_the_model_at_hand_says_what_they_are() -> None:
    ours = rig_of("llama")
    results = {r.key: r for r in ours.judge(ours.candidate(top_heads=measured_in_logprob, effects="logprob"))}
    assert found(results) == OTHERS_PASS | {"top_heads": Status.NOT_PROVIDED}
    assert results["top_heads"].message.endswith("not provided: heads, scores")

    results = {r.key: r for r in ours.judge(ours.candidate(effects="logprob"))}  # probabilities, whatever it says
    assert results["top_heads"].status is Status.FAIL


def test_a_model_that_does_not_give_the_goldens_effects_says_nothing_of_them() -> None:
    ours = rig_of("llama")
    other = changed(ours.lm, lambda hf: hf.lm_head.weight.mul_(1.1))
    run = ours.run(ours.candidate(top_heads=measured_in_logprob, effects="logprob"))
    run.log_effects = log_effects_of(other, ours.golden, ours.settings, run.tolerances)
    with pytest.raises(NotHeld, match="the model at hand gives other effects than the golden holds"):
        check(run, "top_heads")


def test_a_run_with_a_part_is_partial_and_no_more(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "top_heads", "del leaves['cie']")
    result = pytester.runpytest_inprocess("-m", "parity", *world.options)
    (report,) = reports(pytester)
    assert statuses(report) == dict.fromkeys(CHECK_KEYS, "PASS") | {"top_heads": "NOT_PROVIDED"}
    assert report["overall_status"] == "PARTIAL"
    assert report["headline"].startswith("PARTIAL: 5 of 6 check keys compared, all agree")
    assert report["headline"].endswith("; not provided: of top_heads cie")
    assert result.ret == 0
    result.assert_outcomes(passed=5, skipped=1)


def test_a_part_beside_a_fault_is_red_at_the_fault(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "fv_vector", "del leaves['head_terms']; leaves['norm'] = 0.0")
    result = pytester.runpytest_inprocess("-m", "parity", *world.options)
    (report,) = reports(pytester)
    assert report["overall_status"] == "FAIL"
    assert report["first_divergence"]["leaf"] == "norm"
    assert result.ret == 1
