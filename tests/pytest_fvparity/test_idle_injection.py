"""An injection that moves nothing is said to be that, with what the model's blocks hand on."""

from __future__ import annotations

import pytest

from fvcore.gates import Status
from tests.late import RUNNING

if RUNNING:
    from fvcore.artifacts import Artifact
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.selftest.rig import rig_of


def idle(self: Pipeline, prompts: Artifact, fv_vector: Artifact) -> Artifact:
    """The tuple was edited, and the block hands on a tensor: with is base."""
    leaves = dict(Pipeline.injection_output(self, prompts, fv_vector))
    for leaf in list(leaves):
        if "/with_" in leaf:
            leaves[leaf] = leaves[leaf.replace("/with_", "/base_")]
        if leaf.endswith("delta_logprob"):
            leaves[leaf] = 0.0
    return leaves


@pytest.mark.parametrize(("family", "kind"), [("llama", "tensor"), ("gptj", "tuple")])
def test_an_idle_injection_is_named_with_the_blocks_output(family: str, kind: str) -> None:
    results = {r.key: r for r in rig_of(family).judge(rig_of(family).candidate(injection_output=idle))}

    failed = results["injection_output"]
    assert failed.status is Status.FAIL
    assert failed.verdict.first_mismatch is not None
    message = failed.verdict.first_mismatch.message
    assert message.startswith("injection had no effect: no logit moved on trial(s) 0:0")
    assert f"(blocks of this model return: {kind})" in message
