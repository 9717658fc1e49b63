"""A first-order estimate is a derivative, and screening says what it skipped."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest

from fvcore.embedded.random_models import FAMILIES
from fvcore.heads import top_heads
from fvcore.model.spec import ModelError
from tests.fvcore.test_sweep import AWKWARD_PAIRS, trials_for, world
from tests.late import RUNNING

if RUNNING:
    import torch
    from torch import Tensor

    from fvcore.activations import head_activations
    from fvcore.artifacts import tensor_leaf
    from fvcore.fast import engines
    from fvcore.fast.chunks import Advance
    from fvcore.fast.screening import Trials, screened_top_heads
    from fvcore.fast.sweep import Head
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
        (estimate,), (reach,), _ = Trials.run(lm, [(ids, target, slots)], near).first_order()
        (effect,) = engines.causal_indirect_effects(lm, [(ids, target, slots)], near)
        largest = float(estimate.abs().max())
        assert largest > 0
        assert bool((estimate.abs() <= 1.001 * reach).all())
        torch.testing.assert_close(effect, estimate, rtol=0, atol=2e-2 * largest)


def test_no_gradient_is_left_on_the_model() -> None:
    Trials.run(*world("llama")).first_order()
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in world("llama")[0].hf.parameters()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_screened_heads_are_the_top_heads_and_their_effects_are_computed(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 2)
    lm, cases, means = world(family)
    full = engines.causal_indirect_effects(lm, cases, means).mean(dim=0)
    reach = Trials.run(lm, cases, means).first_order()[1].mean(dim=0)

    found = screened_top_heads(lm, cases, means, 1)

    assert [(h.layer, h.head) for h in found.heads] == [(h.layer, h.head) for h in top_heads(full, 1)]
    aie = found.cie.mean(dim=0)
    for head in lm.heads:
        if head in found.computed:
            assert abs(float(aie[head] - full[head])) < 1e-6
        else:
            assert float(aie[head] + found.margin * reach[head]) < found.heads[-1].aie
    assert found.n_skipped == len(lm.heads) - len(found.computed)
    assert f"{found.n_skipped} of {len(lm.heads)} heads were not computed" in str(found)


def test_gradients_may_be_off_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 2)
    lm, cases, means = world("llama")
    with torch.inference_mode():
        assert screened_top_heads(lm, cases, means, 1).estimates.any()


def test_all_is_computed_where_few_heads_are_or_trials_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, cases, means = world("llama")
    monkeypatch.setattr(Trials, "first_order", None)
    some = [(1, 1), (0, 0), (1, 0)]
    found = screened_top_heads(lm, cases, means, 1, some)
    assert (found.computed, found.n_skipped) == (sorted(some), 0)
    assert torch.equal(found.readings, engines.target_readings(lm, cases, means, sorted(some)))

    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 1)
    assert screened_top_heads(lm, cases, means, 1, max_memory=1).n_skipped == 0
    with pytest.raises(TypeError):  # where there is something to skip, and room, estimates are made
        screened_top_heads(lm, cases, means, 1)


class Told:
    """Trials whose effects and estimates are given, of one trial."""

    def __init__(self, effects: Tensor, estimates: Tensor, reaches: Tensor) -> None:
        self.given = (estimates[None], reaches[None], torch.zeros(1, 1, 3))
        self.effects = effects

    def first_order(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.given

    def readings(self, heads: Sequence[Head], max_memory: int | None, advance: Advance) -> Tensor:
        return torch.stack([self.effects[head] for head in heads])[None, :, None].expand(-1, -1, 3)


@pytest.mark.parametrize("reach", [0.1, 100.0])
def test_errors_count_by_how_far_a_head_is_moved(reach: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best head has an estimate of nothing: it is found where its replacement can reach far, and only there."""
    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 0)
    lm, cases, means = world("llama")
    estimates = torch.linspace(0.9, 0.1, len(lm.heads)).view(lm.n_layers, lm.n_heads)
    effects, reaches, last = estimates + 0.01, torch.ones_like(estimates), lm.heads[-1]
    reaches[last], effects[last] = reach, 5.0
    monkeypatch.setattr(Trials, "run", lambda *_: Told(effects, estimates, reaches))

    found = screened_top_heads(lm, cases, means, 1)

    far = reach > 1
    assert found.computed == lm.heads[:2] + [last] * far
    assert (found.heads[0].layer, found.heads[0].head) == (last if far else lm.heads[0])
    assert torch.equal(found.cie[0].flatten()[2:-1], estimates.flatten()[2:-1])  # where nothing was computed
    assert found.cie[0, 0, :2].tolist() == effects[0, :2].tolist()


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
