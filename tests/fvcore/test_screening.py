"""A first-order estimate is a derivative, and screening says what it skipped."""

from __future__ import annotations

import copy

import pytest

from fvcore.embedded.random_models import FAMILIES
from fvcore.heads import top_heads
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.activations import head_activations
    from fvcore.fast import sweep
    from fvcore.fast.screening import first_order_effects, screened_top_heads
    from fvcore.model.model import LanguageModel
    from tests.fvcore.test_sweep import cases_on, world


@pytest.mark.parametrize("family", FAMILIES)
def test_an_estimate_is_the_effect_of_a_small_step_towards_the_mean(family: str) -> None:
    """Of means that are hardly more than the heads' own activations, the effect is of first order."""
    plain, cases, means = world(family)
    lm = LanguageModel.wrap(copy.deepcopy(plain.hf).double())  # or rounding would be as large as the effects
    small = 1e-3
    for ids, target, slots in cases:
        own = head_activations(lm, ids, slots)
        near = own + small * (means - own)
        (estimate,) = first_order_effects(lm, [(ids, target, slots)], near)
        (effect,) = sweep.causal_indirect_effects(lm, [(ids, target, slots)], near)
        largest = float(estimate.abs().max())
        assert largest > 0
        torch.testing.assert_close(effect, estimate, rtol=0, atol=2e-2 * largest)


def test_no_gradient_is_left_on_the_model() -> None:
    lm, cases, means = world("llama")
    first_order_effects(lm, cases, means)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in lm.hf.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_screened_heads_are_the_top_heads_and_their_effects_are_computed(family: str) -> None:
    lm, cases, means = world(family)
    full = sweep.causal_indirect_effects(lm, cases, means).mean(dim=0)

    found = screened_top_heads(lm, cases, means, 2)

    assert [(h.layer, h.head) for h in found.heads] == [(h.layer, h.head) for h in top_heads(full, 2)]
    computed = ~found.aie.isnan()
    torch.testing.assert_close(found.aie[computed], full[computed], rtol=0, atol=1e-6)
    assert found.n_skipped == int((~computed).sum())
    skipped = found.estimates[~computed]
    assert bool((skipped + found.bound < found.heads[-1].aie).all())


def test_few_heads_are_computed_where_few_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 2)
    lm, _, _ = world("llama")
    cases, means = cases_on(lm)
    exact = first_order_effects(lm, cases, means)  # a world in which the estimates are right
    monkeypatch.setattr(
        "fvcore.fast.screening.effects_of_heads",
        lambda lm, cases, means, heads: torch.stack([exact[:, layer, head] for layer, head in heads], dim=1),
    )

    found = screened_top_heads(lm, cases, means, 1)

    assert found.bound == 0
    assert found.n_skipped >= lm.n_layers * lm.n_heads - 4
    assert f"{found.n_skipped} of {lm.n_layers * lm.n_heads} heads skipped" in str(found)
