"""Heads and generated ids in another order are a tie where two are equally good; everywhere else they are a fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fvcore.embedded.random_models import RIG_TOKENIZERS
from fvcore.gates import StageResult, Status
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.artifacts import Artifact, tensor_leaf
    from fvcore.compare import Tolerance
    from fvcore.injection import continuation_logits
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.parity.implementation import INPUTS
    from pytest_fvparity.parity.noise import FACTOR, Noise
    from pytest_fvparity.parity.ties import tied_heads
    from pytest_fvparity.selftest.rig import Recorded, Rig, changed, rig_of


MODES = ("base", "with")


@pytest.mark.parametrize(("gap", "tied"), [(2.0, True), (2.1, False)])
def test_heads_may_change_places_up_to_the_sum_of_what_both_may_be_off(gap: float, tied: bool) -> None:
    aie = torch.tensor([[5.0, 5.0 - gap], [1.0, 0.0]])
    own = torch.tensor([[5.0 - gap, 5.0], [1.0, 0.0]])
    assert tied_heads([[0, 0], [0, 1]], [[0, 1], [0, 0]], aie, own, Tolerance(atol=1.0)) is tied


NEAR, LEVEL = [[5e-3, 4.9e-3, 4.8e-3], [1e-3, 0.0, 0.0]], [[5e-3, 5e-3, 4.8e-3], [5e-3, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("heads", "own"),
    [
        pytest.param([[0, 0]], NEAR, id="too few"),
        pytest.param([[0, 0], [0, 0]], LEVEL, id="one twice"),
        pytest.param([[0, 0], [-2, 1]], NEAR, id="a layer counted from the end"),
        pytest.param([[0, 0], [0, -2]], NEAR, id="a head counted from the end"),
        pytest.param([[0, 0], [2, 0]], NEAR, id="no layer of these"),
        pytest.param([[0, 0], [0, 3]], NEAR, id="no head of these"),
        pytest.param([[0, 0], [0, 1]], [row[:2] for row in NEAR], id="effects of fewer heads"),
        pytest.param([[0, 1], [0, 0]], NEAR, id="in no order of its own effects"),
        pytest.param([[0, 0], [0, 2]], NEAR, id="without its own second"),
    ],
)
def test_heads_that_no_ranking_gives_are_no_tie(heads: list[list[int]], own: list[list[float]]) -> None:
    near = torch.tensor(NEAR)
    assert not tied_heads([[0, 0], [0, 1]], heads, near, torch.tensor(own), Tolerance(atol=1.0))


def test_a_ranking_is_its_own_up_to_a_rounding_also_where_all_effects_are_negative() -> None:
    own = torch.tensor([[-1.0, -0.9999999], [-5.0, -6.0]])
    assert tied_heads([[0, 1], [0, 0]], [[0, 0], [0, 1]], own, own, Tolerance(atol=1.0))


@pytest.mark.parametrize(
    ("gap", "off", "faults"),
    [
        (1.5, (-0.8, 0.8), set()),
        (1.5, (-1.6, 0.0), {"aie"}),  # in this order by a fault of the effects, which is found for itself
        (2.1, (-1.0, 1.0), {"heads"}),  # both within tolerance, and still the golden's first one is the larger
        (2.2, (-1.2, 1.2), {"aie", "heads"}),
    ],
)
def test_heads_in_another_order_excuse_no_effect(gap: float, off: tuple[float, float], faults: set[str]) -> None:
    plain = rig_of("llama")
    leaves = plain.golden.artifact("top_heads")
    heads: Any = leaves["heads"]
    first, second, third = map(tuple, heads)
    aie = torch.zeros_like(tensor_leaf(leaves, "aie"))
    aie[first], aie[second], aie[third] = 20.0, 20.0 - gap, 10.0
    golden = Recorded({**plain.artifacts, "top_heads": {**leaves, "aie": aie}})
    ours = replace(plain, golden=golden, noise=Noise(("one",), {"top_heads": {"aie": 1.0 / FACTOR}}))
    found = aie.clone()
    found[first] += off[0]
    found[second] += off[1]

    verdict = ours.run(plain.candidate()).compare(
        "top_heads", {**leaves, "aie": found, "heads": [heads[1], heads[0], heads[2]]}
    )

    assert {finding.where.partition("[")[0] for finding in verdict.findings if finding.blocking} == faults
    assert verdict.passed is (not faults)


@pytest.mark.parametrize("family", RIG_TOKENIZERS)
def test_a_continuation_goes_on_as_cached_generation_does(family: str) -> None:
    ours = rig_of(family)
    prompts, output = ours.golden.artifact("prompt_boundary"), ours.golden.artifact("injection_output")
    vector = tensor_leaf(ours.golden.artifact("fv_vector"), "function_vector")
    ids: Any = prompts["0:0/corrupted/input_ids"]
    parted = output["0:0/base_generated"] != output["0:0/with_generated"]

    for mode, added in zip(MODES, (None, vector), strict=True):
        generated: Any = output[f"0:0/{mode}_generated"]
        for step, token in enumerate(generated):
            logits = continuation_logits(ours.lm, ids, generated[:step], added, ours.settings.edit_layer)
            assert int(logits.argmax()) == token

    assert parted  # or the vector's places would not matter


def judged(ours: Rig, replacement: dict[str, Any]) -> StageResult:
    """The last key's result, with some of the candidate's leaves replaced."""

    def injection_output(self: Pipeline, prompts: Artifact, fv_vector: Artifact) -> Artifact:
        return {**Pipeline.injection_output(self, prompts, fv_vector), **replacement}

    return ours.judge(ours.candidate(injection_output=injection_output))[-1]


def twins(token: int, twin: int) -> Rig:
    """A rig whose model cannot tell two tokens apart when it predicts: they have one row of the output head."""

    def same_row(hf: Any) -> None:
        with torch.no_grad():
            hf.lm_head.weight[twin] = hf.lm_head.weight[token]

    plain = rig_of("llama")
    return plain.on(changed(plain.lm, same_row))


@pytest.mark.parametrize("mode", MODES)
def test_the_other_of_two_equal_tokens_is_a_tie(mode: str) -> None:
    leaf = f"0:0/{mode}_generated"
    first: Any = rig_of("llama").golden.artifact("injection_output")[leaf]
    ours = twins(first[2], twin=max(first) + 1)
    golden: Any = ours.golden.artifact("injection_output")[leaf]
    at = golden.index(first[2])
    other = [*golden[:at], max(first) + 1, 0, 0]  # what follows is another text, of another length

    result = judged(ours, {leaf: other})

    assert result.status is Status.PASS, result
    (tie,) = result.verdict.findings
    assert tie.where == f"{leaf}[{at}]"
    assert tie.message.startswith("tie: ")
    assert not tie.blocking


@pytest.mark.parametrize("mode", MODES)
def test_a_worse_token_is_a_fault(mode: str) -> None:
    ours, leaf = rig_of("llama"), f"0:0/{mode}_generated"
    golden: Any = ours.golden.artifact("injection_output")[leaf]

    result = judged(ours, {leaf: [*golden[:2], golden[2] + 1, *golden[3:]]})

    assert result.status is Status.FAIL
    assert [f.where for f in result.verdict.findings] == [f"{leaf}[2]"]
    assert result.verdict.mismatch_count == 1


def test_what_is_no_list_of_as_many_ids_is_a_fault() -> None:
    ours, leaf = twins(5, twin=6), "0:0/base_generated"
    golden: Any = ours.golden.artifact("injection_output")[leaf]
    inputs = [ours.golden.artifact(key) for key in INPUTS["injection_output"]]
    found = ours.candidate().injection_output(*inputs)
    too_few, too_many, no_id, text = golden[:-1], [*golden, 1], [10**9, *golden[1:]], [str(golden[0]), *golden[1:]]

    assert ours.run(ours.candidate()).compare("injection_output", found).passed
    for damaged in (too_few, too_many, no_id, text):
        assert not ours.run(ours.candidate()).compare("injection_output", {**found, leaf: damaged}).passed, damaged


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # in fp32 F66 is planted on all
def test_a_vector_added_at_the_first_step_only_is_a_fault_in_half_precision_too(family: str) -> None:
    half = rig_of(family).in_dtype(torch.bfloat16)

    def injection_output(self: Pipeline, prompts: Artifact, fv_vector: Artifact) -> Artifact:
        leaves = dict(Pipeline.injection_output(self, prompts, fv_vector))
        for trial in self.trials.trials:
            ids: Any = prompts[f"{trial.key}/corrupted/input_ids"]
            first: Any = leaves[f"{trial.key}/with_generated"]
            onward = self.lm.hf.generate(
                self.lm.ids([*ids, first[0]]), max_new_tokens=15, do_sample=False, pad_token_id=0
            )
            leaves[f"{trial.key}/with_generated"] = [int(i) for i in onward[0, len(ids) :]]
        return leaves

    result = half.judge(half.candidate(injection_output=injection_output))[-1]

    assert result.status is Status.FAIL
    assert all("with_generated" in f.where for f in result.verdict.findings if f.blocking)
