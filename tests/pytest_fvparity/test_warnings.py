"""What is no difference and must be said all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fvcore.gates import NotProvided, StageResult, Status
from pytest_fvparity.parity.checks import PROVES_NOTHING
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.artifacts import Artifact
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.parity.noise import Noise
    from pytest_fvparity.parity.tolerances import Tolerances
    from pytest_fvparity.selftest.rig import Recorded, Rig, rig_of


def said(result: StageResult) -> list[str]:
    return [f.message for f in result.verdict.findings if not f.blocking]


def prompts_with(ours: Rig, change: Any) -> Any:
    def prompt_boundary(self: Pipeline) -> Artifact:
        leaves = dict(Pipeline.prompt_boundary(self))
        change(leaves)
        return leaves

    return ours.candidate(prompt_boundary=prompt_boundary)


def test_a_prompt_that_differs_shows_how_it_ends_on_either_side() -> None:
    def space_behind(leaves: dict[str, Any]) -> None:
        leaves["1:1/clean/text"] += " "
        leaves["1:1/clean/input_ids"] = [*leaves["1:1/clean/input_ids"], 9]

    ours = rig_of("llama")
    result = ours.judge(prompts_with(ours, space_behind))[0]

    (shown,) = [f for f in result.verdict.findings if not f.blocking]
    golden: Any = ours.golden.artifact("prompt_boundary")
    text, ids = golden["1:1/clean/text"], golden["1:1/clean/input_ids"]
    assert shown.where == "1:1/clean"
    assert shown.expected == f"{text[-32:]!r} {ids[-16:]}"
    assert shown.actual == f"{(text + ' ')[-32:]!r} {[*ids[-15:], 9]}"


def test_a_bos_that_stands_twice_on_both_sides_is_said() -> None:
    ours = rig_of("llama")
    doubled = dict(ours.golden.artifact("prompt_boundary"))
    bos: Any = doubled["bos/bos_token_id"]
    regime: Any = "0:0/clean/input_ids"
    ids: Any = doubled[regime]
    doubled[regime] = [bos, bos, *(i for i in ids if i != bos)]
    golden = Recorded({**ours.golden.artifacts, "prompt_boundary": doubled})

    result = replace(ours, golden=golden).judge(ours.candidate(prompt_boundary=lambda self: doubled))[0]

    assert result.status is Status.PASS
    assert said(result) == [
        f"BOS (id {bos}) stands twice at the start of 1 prompt(s): in the text, and from the tokenizer"
    ]
    assert said(ours.judge(ours.candidate())[0]) == []


@pytest.mark.parametrize(("seen", "warned"), [(0.0, False), (1e3, True)])
def test_a_tolerance_as_large_as_the_values_is_said(seen: float, warned: bool) -> None:
    noise = Noise(("repeat",), {"mean_activations": {"mean_activations": seen}})
    golden = rig_of("llama").golden.artifact("mean_activations")

    tolerances = Tolerances.read(None, (), "fp32", "cpu", noise)

    assert tolerances.proving_nothing("mean_activations", golden) == ["mean_activations"] * warned


def test_values_that_are_zero_are_proved_by_zeros() -> None:
    tolerances = Tolerances.read(None, (), "fp32", "cpu")
    assert tolerances.proving_nothing("mean_activations", {"mean_activations": torch.zeros(2, 2)}) == []


def test_a_key_with_such_a_tolerance_says_so_and_others_do_not() -> None:
    ours = rig_of("llama")
    tiny = {"fv_vector": {leaf: 1e-9 * value for leaf, value in ours.golden.artifact("fv_vector").items()}}
    golden = Recorded({**ours.golden.artifacts, **tiny})

    results = replace(ours, golden=golden).judge(ours.candidate(fv_vector=lambda self, *_: tiny["fv_vector"]))

    assert [r.key for r in results if any(PROVES_NOTHING in text for text in said(r))] == ["fv_vector"]


def test_a_key_that_stands_on_what_the_candidate_lacks_says_so() -> None:
    def slot_map(self: Pipeline, prompts: Artifact) -> Artifact:
        raise NotProvided("none")

    ours = rig_of("llama")
    results = {result.key: result for result in ours.judge(ours.candidate(slot_map=slot_map))}

    note = "judged on the reference's slot_map, for the candidate provides none"
    assert [key for key, result in results.items() if note in said(result)] == ["mean_activations", "top_heads"]
    assert results["slot_map"].status is Status.NOT_PROVIDED
    assert results["injection_output"].status is Status.PASS
