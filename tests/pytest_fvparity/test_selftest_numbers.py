"""Faults in the numbers, F24 to F69 and F74: each is caught at its key, and the beds are none the worse for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from fvcore import effects
from fvcore.effects import target_probability
from fvcore.model.model import LanguageModel
from fvcore.slots import SlotMap
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.selftest.bed import FAMILIES, Bed, bed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, observed
from pytest_fvparity.selftest.faults import activations as means
from pytest_fvparity.selftest.faults import effects as top_heads
from pytest_fvparity.selftest.faults import injection, vectors
from pytest_fvparity.selftest.run import catalogue, rows

NUMBERS = {f"F{n}" for n in (*range(24, 70), 74)}


def number_of(id: str) -> str:
    return id.partition("-")[0]


def ids() -> list[str]:
    return [id for id in catalogue() if number_of(id) in NUMBERS]


@pytest.mark.parametrize("id", ids())
def test_a_fault_in_the_numbers_has_its_expected_outcome(id: str) -> None:
    (row,) = rows([id])

    assert row.verdict in {"caught", "not run here"}, row.seen


def test_every_number_has_its_fault() -> None:
    assert {number_of(id) for id in catalogue()} >= NUMBERS


def test_only_missing_hardware_keeps_a_fault_from_running() -> None:
    if torch.cuda.is_available():
        pytest.skip("with CUDA all that is installed runs")

    idle = {row.fault.id for row in rows(["F32", "F33-nf4", "F33", "F30"]) if row.verdict == "not run here"}

    assert idle == {"F32", "F33-nf4"}


# ---------------------------------------------------------------- each re-implementation without its mistake


def forward_as_one_should(lm: LanguageModel, ids: Tensor, mask: Tensor) -> None:
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    lm.hf(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False)


def right_effect(lm: LanguageModel, ids: list[int], target: int, slots: SlotMap, mean: Tensor) -> Tensor:
    return top_heads.patched_runs(lm, ids, target, slots, mean) - target_probability(lm, ids, target)


def right_term(lm: LanguageModel, layer: int, head: int, activation: Tensor) -> Tensor:
    x = torch.zeros(lm.n_heads, lm.d_head)
    x[head] = activation
    term: Tensor = lm.o_proj(layer)(x.reshape(1, 1, -1))
    return term.reshape(-1)


def right_adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> AbstractContextManager[None]:
    return injection.hooked(
        lm.blocks[layer], lambda module, args, output: injection.added(output, vector, (slice(None), token))
    )


CONTROLS: dict[str, Callable[[Bed], Implementation | AbstractContextManager[Implementation]]] = {
    "words averaged": lambda bed: bed.candidate(mean_activations=means.pooled_by(means.average)),
    "batched with mask and positions": lambda bed: bed.candidate(mean_activations=means.batched(forward_as_one_should)),
    "first pass of kept references": lambda bed: bed.candidate(mean_activations=means.mean_of(means.UnclonedHeads())),
    "each head replaced": lambda bed: top_heads.with_effect(bed, right_effect),
    "each head's term": lambda bed: vectors.with_term(bed, right_term),
    "last slot": lambda bed: vectors.taken_from_slot(bed, -1),
    "block output edited": lambda bed: injection.with_adding(bed, right_adding),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("control", CONTROLS)
def test_a_reimplementation_without_its_mistake_passes(control: str, family: str) -> None:
    planted = CONTROLS[control](bed(family))
    if isinstance(planted, AbstractContextManager):
        with planted as candidate:
            seen = observed(bed(family).judge(candidate))
    else:
        seen = observed(bed(family).judge(planted))

    assert seen == Observed(Outcome.PASSES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recomputed_projection_with_its_bias_passes(family: str) -> None:
    def project(module: torch.nn.Module, heads: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)
        return top_heads.without_bias(module, heads) + (0 if bias is None else bias)

    with patch.object(effects, "edit_heads", top_heads.recomputing(project)):
        assert observed(bed(family).judge(bed(family).candidate())) == Observed(Outcome.PASSES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_left_padded_batch_edited_at_its_end_passes(family: str) -> None:
    seen = injection.judged_in_a_batch(bed(family), lambda mask: torch.full((2,), mask.shape[1] - 1))

    assert seen == Observed(Outcome.PASSES)


# ---------------------------------------------------------------- what a fault leaves behind


@pytest.mark.parametrize("family", FAMILIES)
def test_planting_leaves_the_bed_as_it_was(family: str) -> None:
    ours = bed(family)
    before = {name: value.clone() for name, value in ours.lm.hf.state_dict().items()}

    for id in ("F27", "F29", "F33", "F34", "F36", "F46", "F48", "F61", "F74", "F74-silent"):
        if family in catalogue()[id].families:
            catalogue()[id].observe(ours)

    modules = list(ours.lm.hf.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks or module.training for module in modules)
    assert all(torch.equal(before[name], value) for name, value in ours.lm.hf.state_dict().items())
    assert observed(ours.judge(ours.candidate())) == Observed(Outcome.PASSES)
