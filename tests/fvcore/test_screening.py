"""A first-order estimate is a derivative, and screening says what it skipped."""

from __future__ import annotations

import copy

import pytest

from fvcore.embedded.random_models import FAMILIES
from fvcore.heads import top_heads
from fvcore.model.spec import ModelError
from tests.fvcore.test_sweep import AWKWARD_PAIRS, cases_on, trials_for, world
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.activations import head_activations
    from fvcore.artifacts import tensor_leaf
    from fvcore.fast import engines
    from fvcore.fast.screening import first_order_effects, screened_top_heads
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Pipeline, Settings, profile_of


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
        (effect,) = engines.causal_indirect_effects(lm, [(ids, target, slots)], near)
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
    full = engines.causal_indirect_effects(lm, cases, means).mean(dim=0)

    found = screened_top_heads(lm, cases, means, 2)

    assert [(h.layer, h.head) for h in found.heads] == [(h.layer, h.head) for h in top_heads(full, 2)]
    aie = found.cie.mean(dim=0)
    torch.testing.assert_close(aie[found.computed], full[found.computed], rtol=0, atol=1e-6)
    assert found.n_skipped == int((~found.computed).sum())
    assert bool((aie[~found.computed] + found.bound < found.heads[-1].aie).all())


def test_few_heads_are_computed_where_few_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 2)
    lm, _, _ = world("llama")
    cases, means = cases_on(lm)
    exact = first_order_effects(lm, cases, means)  # a world in which the estimates are right
    monkeypatch.setattr(
        "fvcore.fast.screening.target_readings",
        lambda lm, cases, means, heads: torch.stack(
            [torch.zeros(len(cases)), *(exact[:, layer, head] for layer, head in heads)], dim=1
        )[..., None],
    )

    found = screened_top_heads(lm, cases, means, 1)

    assert found.bound == 0
    assert found.n_skipped >= lm.n_layers * lm.n_heads - 4
    assert f"{found.n_skipped} of {lm.n_layers * lm.n_heads} heads were not computed" in str(found)
    assert torch.equal(found.cie, exact)  # where nothing was computed the estimate stands

    some = [(0, 0), (1, 1), (1, 0)]
    assert screened_top_heads(lm, cases, means, 1, some).n_asked == 3


def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where half of what is asked is computed, and the error of estimates is no reason to compute more."""
    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 1)
    monkeypatch.setattr("fvcore.fast.screening.SAFETY", 0.0)


def test_a_pipeline_screens_on_request_and_says_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    few_are_enough(monkeypatch)
    lm, fixed = world("llama")[0], trials_for(world("llama")[0], n_trials=2, n_shots=4, seed=3, pairs=AWKWARD_PAIRS)
    screened, fast = (
        Pipeline(lm, fixed, Settings(edit_layer=1, n_top_heads=1, engine=e)) for e in ("screened", "fast")
    )
    prompts = fast.prompt_boundary()
    slots = fast.slot_map(prompts)
    means = fast.mean_activations(prompts, slots)
    found, expected = (one.top_heads(prompts, slots, means) for one in (screened, fast))

    assert found["heads"] == expected["heads"]
    assert torch.equal(screened.mean_activations(prompts, slots)["mean_activations"], means["mean_activations"])
    same = (tensor_leaf(found, "cie") - tensor_leaf(expected, "cie")).abs().amax(dim=0) < 1e-6
    (note,) = screened.notes("top_heads")
    assert f"engine screened: {int((~same).sum())} of {same.numel()} heads were not computed" in note
    assert not bool(same.all())
    assert fast.notes("top_heads") == []
    assert profile_of(lm, fixed, screened.settings).conditions.engine == "screened"
    with pytest.raises(ModelError, match="last token alone"):
        Settings(edit_layer=1, n_top_heads=1, token_class_idx=3, engine="screened").require_fit(lm)
