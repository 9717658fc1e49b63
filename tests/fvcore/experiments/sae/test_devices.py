"""Planted causes are found in bf16 and on a GPU as well; autoencoders stay in fp32. Without a GPU its cases are skipped."""

from __future__ import annotations

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.embedded.planted import build
    from fvcore.experiments.sae import bench as benches
    from fvcore.experiments.sae.bench import Bench, Held
    from fvcore.experiments.sae.selftest import Survey, survey


def require(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


def survey_on(device: str, dtype: str) -> Survey:
    require(device)
    one = survey(build(0))
    plain = benches.planted(one.world)
    assert isinstance(plain.store, Held)
    plain.lm.hf.to(device, getattr(torch, dtype))
    saes = {layer: sae.to(device, torch.float32) for layer, sae in plain.store.saes.items()}
    vars(one)["bench"] = Bench(plain.lm, Held(saes), plain.contexts)
    return one


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "bfloat16"), ("cuda", "float32"), ("cuda", "bfloat16")])
def test_planted_causes_are_found_there_too(device: str, dtype: str) -> None:
    one = survey_on(device, dtype)
    assert one.world.true <= one.validated
    assert one.validated <= one.world.true | one.world.open


def test_numbers_on_a_gpu_are_those_of_the_cpu() -> None:
    there, here = survey_on("cuda", "float32"), survey(build(0))
    assert [(one.source, one.target) for one in there.pathways] == [(one.source, one.target) for one in here.pathways]
    for one, other in zip(there.pathways, here.pathways, strict=True):
        assert one.delta_mean == pytest.approx(other.delta_mean, rel=1e-3, abs=1e-3)
