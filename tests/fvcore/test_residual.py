"""What is read of the residual stream is what leaves each block, edited first, and a pass can go on from it."""

from __future__ import annotations

import pytest

from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch
    from torch import Tensor

    from fvcore.embedded.random_models import FAMILIES, random_lm
    from fvcore.model.model import LanguageModel, ModelError
    from fvcore.model.residual import Cached, residual_stream


LAYERS = 4


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    assert request.param in FAMILIES
    return random_lm(request.param, n_layers=LAYERS)


@pytest.fixture(scope="module")
def ids(lm: LanguageModel) -> Tensor:
    return torch.randint(3, lm.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))


@inference_mode
def states(lm: LanguageModel, ids: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = lm.hf(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    return found


def test_a_block_s_output_is_the_next_hidden_state_and_the_last_one_is_before_the_norm(
    lm: LanguageModel, ids: Tensor
) -> None:
    hidden, stream = states(lm, ids), residual_stream(lm, ids)
    assert list(stream) == list(range(LAYERS))
    for layer in range(LAYERS - 1):
        assert torch.equal(stream[layer], hidden[layer + 1])
    norm = next(
        module
        for name, module in lm.hf.named_modules()
        if name.rsplit(".", 1)[-1] in {"norm", "ln_f", "final_layer_norm"}
    )
    assert not torch.allclose(stream[LAYERS - 1], hidden[-1])
    torch.testing.assert_close(norm(stream[LAYERS - 1]), hidden[-1])


def test_what_is_edited_is_what_is_recorded_and_what_goes_on_also_after_the_library_s_own_capturing(
    lm: LanguageModel, ids: Tensor
) -> None:
    states(lm, ids)
    plain = residual_stream(lm, ids)
    edited = residual_stream(lm, ids, {1: lambda hidden: hidden + 1.0})
    assert torch.equal(edited[0], plain[0])
    assert torch.equal(edited[1], plain[1] + 1.0)
    assert not torch.allclose(edited[2], plain[2])


def test_a_pass_ends_where_it_is_told_to(lm: LanguageModel, ids: Tensor) -> None:
    ran: list[int] = []
    handle = lm.blocks[3].register_forward_pre_hook(lambda module, args: ran.append(3))
    stream = residual_stream(lm, ids, last=2)
    handle.remove()
    assert list(stream) == [0, 1, 2]
    assert not ran
    assert torch.equal(stream[2], residual_stream(lm, ids)[2])


def test_a_pass_that_goes_on_from_a_cached_layer_equals_a_whole_one(lm: LanguageModel, ids: Tensor) -> None:
    def add(hidden: Tensor) -> Tensor:
        return hidden + torch.tensor([0.5, -2.0, 3.0])[:, None, None]

    rows = ids[:1].expand(3, -1)
    whole = residual_stream(lm, rows, {1: add}, last=3)
    cached = Cached(1, residual_stream(lm, ids[:1])[1])
    residual_stream(lm, rows, start=cached)  # what blocks return is asked of a model once
    ran: list[int] = []
    handle = lm.blocks[1].get_submodule(lm.spec.attn_path_in_block).register_forward_hook(lambda *_: ran.append(1))
    on = residual_stream(lm, rows, {1: add}, start=cached, last=3)
    handle.remove()
    assert list(on) == [1, 2, 3]
    assert not ran
    for layer in on:
        torch.testing.assert_close(on[layer], whole[layer], atol=1e-5, rtol=1e-5)


def test_gradients_begin_at_the_leaf_and_no_weight_gets_one(lm: LanguageModel, ids: Tensor) -> None:
    stream = residual_stream(lm, ids, leaf=1, last=2)
    assert not stream[0].requires_grad
    assert stream[1].is_leaf
    (slope,) = torch.autograd.grad(stream[2][:, -1].sum(), [stream[1]])
    assert slope.abs().max() > 0
    assert all(weight.grad is None for weight in lm.hf.parameters())
    assert not residual_stream(lm, ids)[2].requires_grad


def test_a_layer_that_there_is_not_is_refused(lm: LanguageModel, ids: Tensor) -> None:
    with pytest.raises(ModelError, match="4"):
        residual_stream(lm, ids, last=4)
