"""Hooks: what they read and change while they are set, and that nothing is left of them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from typing import Any

import pytest

from fvcore.embedded.random_models import FAMILIES, of_config, random_model
from fvcore.provenance import versions
from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch
    from torch import Tensor
    from transformers import AutoConfig

    from fvcore.model.hooks import HookNeverFired, add_to_residual, edit_heads, read_blocks, read_heads
    from fvcore.model.model import LanguageModel, ModelError


if RUNNING:
    Tiny = Callable[[str], LanguageModel]
per_family = pytest.mark.parametrize("family", FAMILIES)

if RUNNING:
    VECTOR = torch.linspace(-1, 2, 32)


def ids_of(lm: LanguageModel) -> Tensor:
    return lm.ids(lm.tokenizer("Q: hot\nA: cold\n\nQ: unhappy\nA:").input_ids)


def hooks_on(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.hf.modules())


def _nothing(heads: Tensor) -> None:
    pass


INTERVENTIONS: dict[str, Callable[[LanguageModel], AbstractContextManager[Any]]] = {
    "read_heads": lambda lm: read_heads(lm),
    "edit_heads": lambda lm: edit_heads(lm, 1, _nothing),
    "add_to_residual": lambda lm: add_to_residual(lm, 1, VECTOR),
}
per_intervention = pytest.mark.parametrize("name", INTERVENTIONS)


@per_intervention
@per_family
def test_hooks_are_gone_after_the_block(tiny: Tiny, family: str, name: str) -> None:
    lm = tiny(family)
    with torch.inference_mode():
        before = lm.logits(ids_of(lm))
        with INTERVENTIONS[name](lm):
            assert hooks_on(lm) > 0
            lm.logits(ids_of(lm))
        assert hooks_on(lm) == 0
        assert torch.equal(lm.logits(ids_of(lm)), before)


@per_intervention
def test_hooks_are_gone_after_an_exception_and_it_is_the_one_that_is_seen(tiny: Tiny, name: str) -> None:
    lm = tiny("llama")
    with pytest.raises(ZeroDivisionError), INTERVENTIONS[name](lm):
        _ = 1 // 0
    assert hooks_on(lm) == 0


def test_hooks_are_gone_when_the_edit_itself_fails(tiny: Tiny) -> None:
    lm = tiny("llama")

    def edit(heads: Tensor) -> None:
        heads[0, 99999, 0] = 0

    with pytest.raises(IndexError), edit_heads(lm, 0, edit):
        lm.logits(ids_of(lm))
    assert hooks_on(lm) == 0


@per_intervention
def test_a_hook_that_never_fired_is_an_error(tiny: Tiny, name: str) -> None:
    with (
        pytest.raises(HookNeverFired, match="the hook never fired; was the model run"),
        INTERVENTIONS[name](tiny("llama")),
    ):
        pass


def test_reading_half_of_the_layers_is_an_error(tiny: Tiny) -> None:
    lm = tiny("llama")
    with pytest.raises(HookNeverFired, match="reading heads at layer 1: the hook never fired"), read_heads(lm):
        lm.o_proj(0)(torch.zeros(1, 1, 32))


def test_a_layer_that_is_not_there_is_refused_before_anything_is_hooked(tiny: Tiny) -> None:
    lm = tiny("llama")
    for layer in (-1, 2):
        with pytest.raises(ModelError, match="edit_layer out of range"), add_to_residual(lm, layer, VECTOR):
            lm.logits(ids_of(lm))
    assert hooks_on(lm) == 0


# ---------------------------------------------------------------- adding to the residual stream


@per_family
@pytest.mark.parametrize("layer", [0, 1])
@inference_mode
def test_adding_zero_changes_nothing(tiny: Tiny, family: str, layer: int) -> None:
    lm = tiny(family)
    base = lm.logits(ids_of(lm))
    with add_to_residual(lm, layer, torch.zeros(32)):
        assert torch.equal(lm.logits(ids_of(lm)), base)


@per_family
@inference_mode
def test_adding_a_vector_changes_logits_from_its_token_on_and_none_before(tiny: Tiny, family: str) -> None:
    lm = tiny(family)
    base = lm.logits(ids_of(lm))[0]
    for layer, token in product((0, 1), (-1, -3, 5)):
        with add_to_residual(lm, layer, VECTOR, token):
            injected = lm.logits(ids_of(lm))[0]
        at = token % base.shape[0]
        assert torch.equal(injected[:at], base[:at])
        changed = (injected - base).abs().amax(dim=-1) > 1e-3
        # Behind the last block tokens do not see each other any more.
        behind = [[i] for i in range(at, len(base))] if layer == 0 else [[at]]
        assert changed.nonzero().tolist() == behind, (layer, token)


@per_family
@inference_mode
def test_the_vector_is_added_to_the_output_of_the_block_as_it_is(tiny: Tiny, family: str) -> None:
    lm = tiny(family)
    outputs: list[Any] = []
    with add_to_residual(lm, 1, VECTOR):
        # Registered later, so it sees the edited output.
        handle = lm.blocks[1].register_forward_hook(lambda module, args, output: outputs.append(output))
        lm.logits(ids_of(lm))
        handle.remove()
    handle = lm.blocks[1].register_forward_hook(lambda module, args, output: outputs.append(output))
    lm.logits(ids_of(lm))
    handle.remove()
    injected, base = outputs
    assert type(injected) is type(base)
    # In versions of the library before 5.24 this one returns a tuple, in older ones others too.
    assert isinstance(base, tuple) or family != "gptj" or not versions()["transformers"].startswith("5.23.")
    if isinstance(base, tuple):
        assert len(injected) == len(base)
        injected, base = injected[0], base[0]
    assert torch.equal(injected[:, :-1], base[:, :-1])
    assert torch.equal(injected[0, -1], base[0, -1] + VECTOR)


@inference_mode
def test_the_vector_takes_the_dtype_of_the_stream(tiny: Tiny) -> None:
    lm = tiny("llama")
    logits = []
    for vector in (VECTOR, VECTOR.double()):
        with add_to_residual(lm, 0, vector):
            logits.append(lm.logits(ids_of(lm)))
    assert logits[1].dtype == torch.float32
    assert torch.equal(*logits)


# ---------------------------------------------------------------- reading and editing heads


@per_family
@inference_mode
def test_heads_are_the_slices_of_what_enters_the_projection(tiny: Tiny, family: str) -> None:
    lm = tiny(family)
    entering: list[Tensor] = []
    handle = lm.o_proj(1).register_forward_pre_hook(lambda module, args: entering.append(args[0].clone()))
    with read_heads(lm) as heads:
        lm.logits(ids_of(lm))
    handle.remove()
    assert list(heads) == [0, 1]
    assert heads[1].shape == (1, ids_of(lm).shape[1], lm.n_heads, lm.d_head)
    for head in range(lm.n_heads):
        assert torch.equal(heads[1][0, :, head], entering[0][0, :, head * lm.d_head : (head + 1) * lm.d_head])


@per_family
@inference_mode
def test_editing_replaces_what_the_projection_sees(tiny: Tiny, family: str) -> None:
    lm = tiny(family)
    base = lm.logits(ids_of(lm))[0]

    def edit(heads: Tensor) -> None:
        heads[0, 4, 2] = 7.0

    with edit_heads(lm, 0, edit), read_heads(lm) as seen:
        edited = lm.logits(ids_of(lm))[0]
    with read_heads(lm) as clean:
        lm.logits(ids_of(lm))
    expected = clean[0].clone()
    expected[0, 4, 2] = 7.0
    assert torch.equal(seen[0], expected)
    assert torch.equal(edited[:4], base[:4])
    assert (edited[4:] - base[4:]).abs().amax(dim=-1).min() > 1e-4


@inference_mode
def test_editing_leaves_the_activations_it_was_given_alone(tiny: Tiny) -> None:
    lm = tiny("llama")
    given: list[Tensor] = []
    handle = lm.o_proj(0).register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with edit_heads(lm, 0, Tensor.zero_):
        lm.logits(ids_of(lm))
    handle.remove()
    assert given[0].abs().max() > 0


@inference_mode
def test_heads_that_were_read_are_not_changed_by_a_later_edit(tiny: Tiny) -> None:
    lm = tiny("llama")
    with read_heads(lm) as clean:
        lm.logits(ids_of(lm))

    def spoil(module: Any, args: Any) -> None:
        args[0].zero_()

    # Set after the reading hook, so it changes the very tensor that was read.
    with read_heads(lm) as heads:
        handle = lm.o_proj(0).register_forward_pre_hook(spoil)
        lm.logits(ids_of(lm))
        handle.remove()
    assert torch.equal(heads[0], clean[0])


# ---------------------------------------------------------------- what is no residual stream


def several_streams() -> Any:
    """Blocks that hand on (stream, row, token, d_model): an index of a token would be one of a row."""
    sizes: dict[str, Any] = {"hidden_size": 32, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"vocab_size": 60, "vocab_size_per_layer_input": 60, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    sizes |= {"intermediate_size": 64, "num_hidden_layers": 2, "num_kv_shared_layers": 0, "sliding_window": 16}
    sizes |= {"layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0]}
    return of_config(AutoConfig.for_model("gemma3n_text", altup_num_inputs=4, **sizes))


def leaving(change: Callable[[Tensor], Any], layer: int) -> Any:
    """A model with a block that hands on something else."""
    hf = random_model("llama", 60)
    block = hf.model.layers[layer]
    forward = block.forward
    block.forward = lambda *args, **kwargs: change(forward(*args, **kwargs))
    return hf


def flat_projection() -> Any:
    """A projection that is handed tokens without rows."""

    class Flat(torch.nn.Linear):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x.flatten(0, 1)).view(*x.shape[:2], -1)

    hf = random_model("llama", 60)
    hf.model.layers[1].self_attn.o_proj.__class__ = Flat
    return hf


NO_STREAMS: dict[str, tuple[Callable[[], Any], str]] = {
    "several streams": (several_streams, r"what enters block 0 is \(4, 2, 3, 32\), expected \(row, token, 32\)"),
    "tokens before rows": (
        lambda: leaving(lambda x: x.transpose(0, 1), 1),
        r"what leaves block 1 is \(3, 2, 32\), expected \(2, 3\) and a width",
    ),
    "another width": (lambda: leaving(lambda x: x.repeat(1, 1, 2), 1), r"what leaves block 1 is \(2, 3, 64\)"),
    "no rows": (lambda: leaving(lambda x: x.flatten(0, 1), 1), r"what leaves block 1 is \(6, 32\)"),
    "something by name": (lambda: leaving(lambda x: {"hidden_states": x}, 0), "what leaves block 0 is a dict"),
    "tokens without rows": (flat_projection, r"what enters the projection of layer 1 is \(6, 32\)"),
}


@pytest.mark.parametrize("what", NO_STREAMS)
def test_a_model_without_a_residual_stream_is_refused_when_it_is_wrapped(what: str) -> None:
    made, said = NO_STREAMS[what]

    with pytest.raises(ModelError, match=f"{said}.*residual stream is another thing.*not supported"):
        LanguageModel.wrap(made(), name=what)


@inference_mode
def test_a_tensor_of_another_shape_is_never_edited_or_read(tiny: Tiny) -> None:
    """Whatever the model did when it was wrapped."""
    lm = tiny("llama")
    block = lm.blocks[1]
    forward = block.forward
    block.forward = lambda *args, **kwargs: torch.stack([forward(*args, **kwargs)] * 4)
    try:
        for hooked in (add_to_residual(lm, 1, VECTOR), read_blocks(lm, 1)):
            with pytest.raises(ModelError, match=r"what leaves block 1 is \(4, 1, \d+, 32\)"), hooked:
                lm.logits(ids_of(lm))
    finally:
        del block.forward
