"""What a candidate leaves behind is told at the key that did it, and the next one finds everything as it was."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from fvcore.gates import StageError, Status
from pytest_fvparity.parity.custody import nothing_left_by_factory
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    import torch

    from fvcore.pipeline import Pipeline
    from pytest_fvparity.selftest.rig import Rig, changed, rig_of


@pytest.fixture
def own() -> Rig:
    """A rig with a model and a tokenizer that a test may spoil."""
    rig = rig_of("llama")
    return replace(rig, lm=replace(changed(rig.lm), tokenizer=copy.deepcopy(rig.lm.tokenizer)))


def statuses(rig: Rig, **stations: Any) -> dict[str, tuple[Status, str]]:
    """key -> status, and the first finding or the message."""
    results = rig.judge(rig.candidate(**stations))
    return {r.key: (r.status, f.message if (f := r.verdict.first_mismatch) else r.message) for r in results}


def doing(what: Callable[[Any], object]) -> Callable[..., Any]:
    """A station that answers rightly and then does something to the model."""

    def mean_activations(self: Any, *inputs: Any) -> Any:
        answer = Pipeline.mean_activations(self, *inputs)
        what(self.lm)
        return answer

    return mean_activations


def in_place(lm: Any) -> None:
    with torch.no_grad():
        lm.o_proj(1).weight.mul_(1.5)


def through_data(lm: Any) -> None:
    lm.o_proj(1).weight.data[0] += 0.25


def swapped_rows(lm: Any) -> None:
    weight = lm.o_proj(1).weight.data
    weight.copy_(weight.flip(0))


def another_parameter(lm: Any) -> None:
    lm.o_proj(1).weight = torch.nn.Parameter(lm.o_proj(1).weight * 2)


def patched_forward(lm: Any) -> None:
    lm.o_proj(0).forward = lambda x: x * 0


def patched_class(lm: Any) -> None:
    cls = type(lm.blocks[0])
    right = cls.forward
    cls.forward = lambda self, *args, **named: right(self, *args, **named)


def swapped_submodule(lm: Any) -> None:
    lm.blocks[0].mlp = copy.deepcopy(lm.blocks[0].mlp)


def global_hook(lm: Any) -> None:
    torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)


def own_hook(lm: Any) -> None:
    lm.blocks[0].register_forward_hook(lambda module, args, output: None)


ENTERED: list[Any] = []


def enters_inference_mode(lm: Any) -> None:
    ENTERED.append(torch.inference_mode())  # kept, for the mode ends with the object
    ENTERED[-1].__enter__()


def without_bos(lm: Any) -> None:
    lm.tokenizer._tokenizer.post_processor = None


LEFT: dict[str, tuple[Callable[[Any], object], str]] = {
    "weights in place": (in_place, "changed weights at model.layers.1.self_attn.o_proj.weight; put back"),
    "weights through .data": (through_data, "changed weights at model.layers.1.self_attn.o_proj.weight"),
    "weights in another order": (swapped_rows, "changed weights at model.layers.1.self_attn.o_proj.weight"),
    "another parameter": (another_parameter, "changed weights at model.layers.1.self_attn.o_proj.weight"),
    "half precision": (lambda lm: lm.hf.half(), "changed weights at "),
    "a buffer": (lambda lm: lm.hf.model.rotary_emb.inv_freq.mul_(0.5), "changed weights at model.rotary_emb.inv_freq"),
    "a patched forward": (patched_forward, "a forward of its own at model.layers.0.self_attn.o_proj"),
    "a patched class": (patched_class, "other code in the model's library, at LlamaDecoderLayer.forward"),
    "another submodule": (swapped_submodule, "other submodules at model.layers.0.mlp"),
    "a global hook": (global_hook, "1 hook(s) on the model, at every module"),
    "a hook": (own_hook, "1 hook(s) on the model, at model.layers.0"),
    "training mode": (lambda lm: lm.hf.train(), "another training mode at the model, model"),
    "generation": (
        lambda lm: setattr(lm.hf.generation_config, "temperature", 0.3),
        "another generation_config.temperature",
    ),
    "attention": (lambda lm: lm.hf.set_attn_implementation("eager"), "another config._attn_implementation"),
    "default dtype": (lambda lm: torch.set_default_dtype(torch.float64), "torch's default dtype at torch.float64"),
    "default device": (lambda lm: torch.set_default_device("meta"), "torch's default device at meta"),
    "autocast": (lambda lm: torch.autocast("cpu").__enter__(), "torch's autocast on cpu at True"),
    "inference mode": (enters_inference_mode, "torch's inference mode at True (it was False)"),
    "determinism": (lambda lm: torch.use_deterministic_algorithms(True), "torch's deterministic algorithms at True"),
    "another folder": (lambda lm: os.chdir("/"), "the working directory at / (it was "),
    "no BOS": (without_bos, "a tokenizer that gives other ids"),
    "added tokens": (lambda lm: lm.tokenizer.add_tokens(["Q:"]), "1 more token(s) in the tokenizer"),
}


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A test that fails must not spoil the next one."""
    forward = type(rig_of("llama").lm.blocks[0]).forward
    yield
    type(rig_of("llama").lm.blocks[0]).forward = forward
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_autocast_enabled("cpu", False)
    torch.use_deterministic_algorithms(False)
    assert not torch.is_inference_mode_enabled()
    torch.nn.modules.module._global_forward_hooks.clear()


QUICK = [
    "weights through .data",
    "a patched class",
    "another submodule",
    "training mode",
    "default device",
    "added tokens",
]


@pytest.mark.parametrize("name", slow_but(QUICK, LEFT))
def test_what_is_left_is_named_at_its_key_and_gone_afterwards(own: Rig, name: str) -> None:
    leave, words = LEFT[name]

    first = statuses(own, mean_activations=doing(leave))
    then = statuses(own)

    assert [status for status, _ in first.values()] == [Status.PASS] * 2 + [Status.FAIL] + [Status.BLOCKED] * 3
    assert first["mean_activations"][1].startswith("at mean_activations the candidate left ")
    assert words in first["mean_activations"][1]
    assert {status for status, _ in then.values()} == {Status.PASS}


def test_a_model_that_cannot_be_put_back_is_judged_no_more(own: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvcore.model.leftovers.COPIED", 0)

    first = statuses(own, mean_activations=doing(in_place))
    then = statuses(own)

    assert "it cannot be put back" in first["mean_activations"][1]
    status, message = then["prompt_boundary"]
    assert status is Status.ERROR
    assert "at mean_activations the candidate left changed weights at model.layers.1" in message


@pytest.mark.parametrize(
    ("leave", "words"),
    [(in_place, "left changed weights at model.layers.1"), (own_hook, None), (patched_forward, None)],
)
def test_a_factory_may_take_hold_of_the_model_and_not_change_it(own: Rig, leave: Any, words: str | None) -> None:
    said = None
    try:
        with nothing_left_by_factory(own.lm):
            leave(own.lm)
    except StageError as error:
        said = str(error)

    assert (said is None) == (words is None)
    assert said is None or words in said
    assert own.lm.o_proj(1).weight.equal(rig_of("llama").lm.o_proj(1).weight)


def test_what_is_left_by_a_candidate_that_fails_stands_beside_its_error(own: Rig) -> None:
    def fail(lm: Any) -> None:
        in_place(lm)
        raise RuntimeError("no means today")

    status, message = statuses(own, mean_activations=doing(fail))["mean_activations"]

    assert status is Status.ERROR
    assert "no means today" in message
    assert "at mean_activations the candidate left changed weights" in message
    assert {status for status, _ in statuses(own).values()} == {Status.PASS}


def hidden_states(lm: Any, **how: Any) -> Any:
    return lm.hf(input_ids=lm.ids([1, 2, 3]), output_hidden_states=True, **how).hidden_states


def test_hooks_of_the_library_itself_are_no_leftovers_and_stay(own: Rig) -> None:
    def read(lm: Any) -> None:
        assert len(hidden_states(lm)) == lm.n_layers + 1
        lm.hf.set_attn_implementation("eager")
        assert len(lm.hf(input_ids=lm.ids([1, 2]), output_attentions=True).attentions) == lm.n_layers
        lm.hf.set_attn_implementation("sdpa")

    for _ in range(2):
        assert {status for status, _ in statuses(own, mean_activations=doing(read)).values()} == {Status.PASS}
    assert len(hidden_states(own.lm)) == own.lm.n_layers + 1


def test_a_candidate_that_clears_all_hooks_takes_none_of_the_library_away(own: Rig) -> None:
    def clears(lm: Any) -> None:
        hidden_states(lm)
        for module in lm.hf.modules():
            module._forward_hooks.clear()

    for _ in range(2):  # set by the candidate itself; there before it came
        assert {status for status, _ in statuses(own, mean_activations=doing(clears)).values()} == {Status.PASS}
        assert len(hidden_states(own.lm)) == own.lm.n_layers + 1


def test_a_vocabulary_that_grows_is_cut_to_what_it_was(own: Rig) -> None:
    def grows(lm: Any) -> None:
        lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        lm.hf.resize_token_embeddings(len(lm.tokenizer))

    before = {name: value.clone() for name, value in own.lm.hf.state_dict().items()}
    seen = statuses(own, mean_activations=doing(grows))

    assert seen["mean_activations"][0] is Status.FAIL
    assert {status for status, _ in statuses(own).values()} == {Status.PASS}
    assert all(value.equal(before[name]) for name, value in own.lm.hf.state_dict().items())
    assert "[PAD]" not in own.lm.tokenizer.get_vocab()


def test_weights_of_any_form_are_told_apart() -> None:
    from fvcore.model.leftovers import _mark

    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool):
        for shape in ((), (3,), (5, 7), (8, 16), (2, 3, 8)):
            x = torch.arange(1, 1 + int(torch.tensor(shape).prod())).reshape(shape).to(dtype)
            y = x.clone()
            y.view(-1)[-1] = 0
            assert _mark(x) == _mark(x.clone())
            assert _mark(x) != _mark(y)
        swapped = torch.arange(64.0).view(8, 8)
        assert _mark(swapped) != _mark(swapped.flip(0))


def harmless(lm: Any) -> None:
    """What rewrites of the method do on their way, and what changes no number."""
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm.tokenizer.padding_side = "left"
    lm.tokenizer(["a", "a b c"], padding=True)
    lm.hf.generation_config.pad_token_id = lm.tokenizer.eos_token_id
    lm.hf.config.use_cache = False
    lm.hf.generate(lm.ids([1, 2, 3]), max_new_tokens=2, do_sample=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lm.hf(input_ids=lm.ids([1, 2, 3]))
    handle = lm.blocks[0].register_forward_hook(lambda module, args, output: None)
    handle.remove()


def test_what_changes_no_number_is_no_leftover(own: Rig) -> None:
    assert {status for status, _ in statuses(own, mean_activations=doing(harmless)).values()} == {Status.PASS}


# ---------------------------------------------------------------- what is edited in place


def editing_its_input(self: Any, prompts: Any, slot_map: Any, means: Any) -> Any:
    answer = Pipeline.top_heads(self, prompts, slot_map, means)
    means["mean_activations"] *= 1.05
    return answer


def editing_a_list(self: Any, prompts: Any) -> Any:
    answer = Pipeline.slot_map(self, prompts)
    cast("list[int]", prompts["0:0/clean/input_ids"])[0] = 0
    return answer


def test_an_input_that_is_edited_after_the_answer_is_told(own: Rig) -> None:
    seen = statuses(own, top_heads=editing_its_input)

    assert seen["top_heads"][0] is Status.FAIL
    assert seen["top_heads"][1].startswith(
        "while it was asked for top_heads the candidate changed mean_activations, which"
    )
    assert seen["fv_vector"][0] is Status.BLOCKED
    assert "changed prompt_boundary, which it was handed" in statuses(own, slot_map=editing_a_list)["slot_map"][1]


def test_an_answer_that_is_edited_later_is_told_at_the_key_that_edits_it(own: Rig) -> None:
    kept: list[Any] = []

    def mean_activations(self: Any, *inputs: Any) -> Any:
        kept.append(Pipeline.mean_activations(self, *inputs))
        return kept[-1]

    def top_heads(self: Any, *inputs: Any) -> Any:
        with torch.inference_mode():
            kept[-1]["mean_activations"] *= 1.05
        return Pipeline.top_heads(self, *inputs)

    seen = statuses(own, mean_activations=mean_activations, top_heads=top_heads)

    assert seen["mean_activations"][0] is Status.PASS
    assert seen["top_heads"][1].startswith(
        "while it was asked for top_heads the candidate changed its own answer to mean_act"
    )


def test_a_buffer_that_is_used_again_for_the_same_key_is_no_edit(own: Rig) -> None:
    buffer: dict[str, Any] = {}

    def fv_vector(self: Any, *inputs: Any) -> Any:
        answer = Pipeline.fv_vector(self, *inputs)
        if not buffer:
            buffer.update(answer)
        with torch.inference_mode():
            buffer["function_vector"].copy_(answer["function_vector"])
        return buffer

    results = own.judge(own.candidate(fv_vector=fv_vector), repeat=3)

    assert {result.status for result in results} == {Status.PASS}


# ---------------------------------------------------------------- who answers another thing to the same inputs


def test_noise_is_called_unsteady_and_not_accumulated(own: Rig) -> None:
    calls: list[int] = []

    def fv_vector(self: Any, *inputs: Any) -> Any:
        calls.append(1)
        answer = Pipeline.fv_vector(self, *inputs)
        return answer | {"function_vector": answer["function_vector"] + 0.1 * (len(calls) == 1)}

    results = {result.key: result for result in own.judge(own.candidate(fv_vector=fv_vector))}

    assert (results["fv_vector"].status, results["fv_vector"].verdict.details["fault"]) == (Status.FAIL, "unsteady")


def test_a_first_call_that_fails_is_called_unsteady(own: Rig) -> None:
    calls: list[int] = []

    def top_heads(self: Any, *inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("not yet")
        return Pipeline.top_heads(self, *inputs)

    results = {result.key: result for result in own.judge(own.candidate(top_heads=top_heads))}

    assert results["top_heads"].verdict.details["fault"] == "unsteady"
    assert "not yet" in results["top_heads"].verdict.findings[0].message
