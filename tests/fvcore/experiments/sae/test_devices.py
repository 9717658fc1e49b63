"""Planted causes are found in bf16 and on a GPU as well; autoencoders stay in fp32. Without a GPU its cases are skipped."""

from __future__ import annotations

import pytest
import torch

from fvcore.embedded.planted import build
from fvcore.experiments.sae import bench as benches
from fvcore.experiments.sae.bench import Bench, Held
from fvcore.experiments.sae.selftest import Survey, survey

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def survey_on(device: str, dtype: torch.dtype) -> Survey:
    one = survey(build(0))
    plain = benches.planted(one.world)
    assert isinstance(plain.store, Held)
    plain.lm.hf.to(device, dtype)
    saes = {layer: sae.to(device, torch.float32) for layer, sae in plain.store.saes.items()}
    vars(one)["bench"] = Bench(plain.lm, Held(saes), plain.contexts)
    return one


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.float32, marks=ON_A_GPU),
        pytest.param("cuda", torch.bfloat16, marks=ON_A_GPU),
    ],
)
def test_planted_causes_are_found_there_too(device: str, dtype: torch.dtype) -> None:
    one = survey_on(device, dtype)
    assert one.world.true <= one.validated
    assert one.validated <= one.world.true | one.world.open


@ON_A_GPU
def test_numbers_on_a_gpu_are_those_of_the_cpu() -> None:
    here, there = survey(build(0)), survey_on("cuda", torch.float32)
    assert [(one.source, one.target) for one in there.pathways] == [(one.source, one.target) for one in here.pathways]
    for one, other in zip(there.pathways, here.pathways, strict=True):
        assert one.delta_mean == pytest.approx(other.delta_mean, rel=1e-3, abs=1e-3)
