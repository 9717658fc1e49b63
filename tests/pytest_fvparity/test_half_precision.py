"""In fp16 and bf16 engine `fast` is `exact` within the tolerances of half precision, at every key, and a fault is not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from fvcore.embedded.random_models import random_lm, trials_for
from fvcore.gates import Status
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.model.model import DTYPES
    from fvcore.pipeline import Pipeline, Settings
    from pytest_fvparity.parity import refinements
    from pytest_fvparity.selftest.rig import Rig


# A block that returns a tuple, a norm behind the attention, experts, more bias than weight: what rounds differently.
FAMILIES = ("llama", "gpt2", "falcon", "olmo2", "mixtral", "gemma2")
half = pytest.mark.parametrize("dtype", ["fp16", "bf16"])


@cache
def rig_in(family: str, dtype: str) -> Rig:
    lm = random_lm(family)
    trials, settings = trials_for(lm, n_trials=2, n_shots=3), Settings(edit_layer=0, n_top_heads=3, engine="exact")
    lm.hf.to(DTYPES[dtype])
    return Rig.recorded(lm, trials, settings)


@half
@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_agree_at_every_key(family: str, dtype: str) -> None:
    rig = rig_in(family, dtype)
    fast = Pipeline(rig.lm, rig.trials, replace(rig.settings, engine="fast"))

    assert fast.engine == "fast"
    assert [(result.key, result.status) for result in rig.judge(fast) if result.status is not Status.PASS] == []


@half
@pytest.mark.parametrize(
    ("key", "leaf"), [("mean_activations", "mean_activations"), ("top_heads", "cie"), ("fv_vector", "function_vector")]
)
def test_a_third_more_is_no_rounding(key: str, leaf: str, dtype: str) -> None:
    rig = rig_in("llama", dtype)

    def too_large(self: Pipeline, *inputs: Any) -> Any:
        leaves = dict(getattr(Pipeline, key)(self, *inputs))
        leaves[leaf] = leaves[leaf] * 1.33
        return leaves

    failed = [result.key for result in rig.judge(rig.candidate(**{key: too_large})) if result.status is Status.FAIL]
    assert failed[:1] == [key]


@half
def test_a_vector_is_the_sum_of_its_terms_rounded_once_and_one_step_more_is_told(dtype: str) -> None:
    eps = torch.finfo(DTYPES[dtype]).eps
    terms = torch.tensor([[1.0, 2 / eps, 3.0], [2.0, 1.0, -3.0]], dtype=DTYPES[dtype])  # a sum between two numbers
    vector = terms.double().sum(dim=0).to(terms.dtype)

    def told(vector: Any) -> list[Any]:
        found = refinements._not_its_terms({"function_vector": vector, "head_terms": terms})
        return [finding.coordinate for finding in found]

    assert told(vector) == []
    assert told(vector + torch.tensor([2 * eps, 0.0, 0.0], dtype=terms.dtype)) == [{"dim": 0}]
