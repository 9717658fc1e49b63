"""The drill: the module that a fault was planted in is the one that is named, and nothing else moves."""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from fvcore import shipped
from fvcore.embedded.random_models import RIG_TOKENIZERS, random_model, toy_tokenizer, trials_for
from fvcore.gates import StageError, Verdict
from fvcore.trials import fixed as trials
from pytest_fvparity.drill.conclusion import lines
from pytest_fvparity.parity.checks import ParityRun, check
from tests.late import RUNNING
from tests.pytest_fvparity.worlds import World, reports

if RUNNING:
    import torch
    from torch import Tensor

    from fvcore.activations import head_activations
    from fvcore.artifacts import Artifact
    from fvcore.model import model as models
    from fvcore.model.hooks import read_heads
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Pipeline, Settings, slots_of, trial_keys
    from pytest_fvparity.candidates.adapters.torch_hooks import TorchHooks
    from pytest_fvparity.candidates.candidates import FromFolder
    from pytest_fvparity.drill.candidate_modules import Watched
    from pytest_fvparity.golden.golden import Golden, relative_path
    from pytest_fvparity.parity.tolerances import Tolerances
    from pytest_fvparity.selftest.mean_heads import average, heads_by_token, left_padded, mean_of, to_slots
    from pytest_fvparity.selftest.rig import Recorded, changed


ROOT = Path(__file__).parents[2]
KEY = "mean_activations"
if RUNNING:
    SETTINGS = Settings(edit_layer=1, n_top_heads=3, engine="exact")
LAYER = 1  # of three: there is one before and one behind
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Ground:
    """A model of three layers, its trials, and what is right on them."""

    lm: LanguageModel
    fixed: Any
    golden: Recorded

    @property
    def lengths(self) -> list[int]:
        prompts = self.golden.artifacts["prompt_boundary"]
        return [len(cast("list[int]", ids)) for leaf, ids in prompts.items() if leaf.endswith("clean/input_ids")]

    def candidate(self, lm: LanguageModel, **stations: Any) -> Pipeline:
        planted: type[Pipeline] = type("Planted", (Pipeline,), stations)
        return planted(lm, self.fixed, SETTINGS)

    def judge(self, candidate: Any, model: Any = None, loaded: Any = "sound", key: str = KEY) -> Verdict:
        """One key's verdict, as the plugin gives it; `loaded` is what the drill loads anew, None for no drill."""
        reference = None if loaded is None else (lambda: self.lm if loaded == "sound" else loaded())
        tolerances = Tolerances.read(None, (), "fp32", "cpu")
        run = ParityRun(candidate, self.golden, tolerances, model=model, reference=reference)
        return check(run, key)

    def drill(self, candidate: Any, model: Any = None, **how: Any) -> dict[str, Any]:
        verdict = self.judge(candidate, model, **how)
        assert not verdict.passed
        (warning,) = [f for f in verdict.findings if f.message.startswith("drill into")]
        found = dict(verdict.details["drill"])
        assert warning.message == found["conclusion"]
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        return found


@cache
def ground(family: str) -> Ground:
    tokenizer = toy_tokenizer(RIG_TOKENIZERS[family])
    lm = LanguageModel.wrap(random_model(family, len(tokenizer), n_layers=3), tokenizer, f"random-{family}")
    fixed = trials_for(lm, seed=1)  # its first prompt is the shortest, so that it is padded
    return Ground(lm, fixed, recorded(lm, fixed))


def recorded(lm: LanguageModel, fixed: Any) -> Recorded:
    sound = Pipeline(lm, fixed, SETTINGS)
    prompts = sound.prompt_boundary()
    slots = sound.slot_map(prompts)
    return Recorded({"prompt_boundary": prompts, "slot_map": slots, KEY: sound.mean_activations(prompts, slots)})


def planted(family: str, change: Change) -> tuple[Ground, LanguageModel]:
    found = ground(family)
    return found, changed(found.lm, change)


def drilled(family: str, change: Change) -> dict[str, Any]:
    """The candidate is fvcore's pipeline on a model that was changed."""
    here, lm = planted(family, change)
    return here.drill(here.candidate(lm), lm.hf)


def named(found: dict[str, Any]) -> tuple[str, str]:
    return found["first"]["module"], found["first"]["side"]


def scaled(path: str, by: float = 1.01) -> Change:
    def change(hf: Any) -> None:
        with torch.no_grad():
            hf.get_submodule(path).weight.mul_(by)

    return change


DOWN = scaled("model.layers.0.mlp.down_proj")


def with_eps(path: str, name: str) -> Change:
    return lambda hf: setattr(hf.get_submodule(path), name, 1e-2)


def hooked(path: str, edit: Callable[[Tensor], Tensor]) -> Change:
    """A hook that somebody left behind."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return lambda hf: hf.get_submodule(path).register_forward_hook(hook)


# ---------------------------------------------------------------- a fault in a module

IN_MODULES = {
    "llama": {
        "eps of a norm": (with_eps(f"model.layers.{LAYER}.input_layernorm", "variance_epsilon"), f"model.layers.{LAYER}.input_layernorm"),
        "weight of a norm": (scaled("model.layers.0.post_attention_layernorm"), "model.layers.0.post_attention_layernorm"),
        "query weight": (scaled(f"model.layers.{LAYER}.self_attn.q_proj"), f"model.layers.{LAYER}.self_attn.q_proj"),
        "mlp of an earlier layer": (scaled("model.layers.0.mlp.down_proj"), "model.layers.0.mlp.down_proj"),
        "projection of an earlier layer": (scaled("model.layers.0.self_attn.o_proj"), "model.layers.0.self_attn.o_proj"),
        "embedding": (scaled("model.embed_tokens"), "model.embed_tokens"),
        "hook left on an mlp": (hooked("model.layers.0.mlp", lambda x: x * 1.01), "model.layers.0.mlp"),
        "hook left on a block": (hooked("model.layers.0", lambda x: x * 1.01), "model.layers.0"),
    },
    "gpt2": {
        "eps of a norm": (with_eps(f"transformer.h.{LAYER}.ln_1", "eps"), f"transformer.h.{LAYER}.ln_1"),
        "weight of a norm": (scaled("transformer.h.0.ln_2"), "transformer.h.0.ln_2"),
        "attention weights": (scaled(f"transformer.h.{LAYER}.attn.c_attn"), f"transformer.h.{LAYER}.attn.c_attn"),
        "mlp of an earlier layer": (scaled("transformer.h.0.mlp.c_proj"), "transformer.h.0.mlp.c_proj"),
        "position embedding": (scaled("transformer.wpe"), "transformer.wpe"),
    },
    "gptj": {"mlp of an earlier layer": (scaled("transformer.h.0.mlp.fc_in"), "transformer.h.0.mlp.fc_in")},
    "gpt_neox": {"mlp of an earlier layer": (scaled("gpt_neox.layers.0.mlp.dense_4h_to_h"), "gpt_neox.layers.0.mlp.dense_4h_to_h")},
    "qwen3": {"norm of the keys": (scaled("model.layers.0.self_attn.k_norm"), "model.layers.0.self_attn.k_norm")},
}  # fmt: skip


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, cases in IN_MODULES.items() for name in cases])
def test_the_module_with_the_fault_is_named(family: str, name: str) -> None:
    change, module = IN_MODULES[family][name]

    found = drilled(family, change)

    assert found["kind"] == "module"
    assert named(found) == (module, "output")
    assert "all before it is bit for bit equal" in found["conclusion"] or "embed" in module


@pytest.mark.parametrize(("family", "module"), [("llama", "model.layers.0"), ("gpt2", "transformer.h.0")])
def test_every_module_up_to_the_heads_stands_in_the_table_and_none_behind(family: str, module: str) -> None:
    here = ground(family)
    found = drilled(family, scaled({"llama": f"{module}.mlp.down_proj", "gpt2": f"{module}.mlp.c_proj"}[family]))

    assert found["layer"] == LAYER  # the fault lies in the layer before
    rows = found["modules"]
    first = rows.index(found["first"])
    assert [row["differs"] for row in rows[:first]] == [False] * first
    assert {row["max_abs_diff"] for row in rows[:first]} == {0.0}
    assert (rows[-1]["module"], rows[-1]["side"]) == (here.lm.spec.out_proj_path(LAYER), "input")
    assert rows[-1]["differs"]
    inside = {row["module"] for row in rows if row["module"].startswith(f"{module}.")}
    never_run = {"transformer.h.0.attn.attn_dropout"}  # what does its work is the kernel of the attention
    assert inside == {name for name, _ in here.lm.hf.named_modules() if name.startswith(f"{module}.")} - never_run
    text = lines(found)
    assert text[-1].strip().startswith(f"what enters {here.lm.spec.out_proj_path(LAYER)} ")
    assert sum("<- first" in line for line in text) == 1
    assert len(text) < 15


def test_where_how_much_and_both_values_are_said() -> None:
    here, lm = planted("llama", DOWN)
    found = here.drill(here.candidate(lm), lm.hf)
    first = found["first"]
    outputs = []
    for model in (here.lm, lm):
        kept: list[Tensor] = []
        handle = model.hf.get_submodule("model.layers.0.mlp.down_proj").register_forward_hook(
            lambda module, args, output, kept=kept: kept.append(output)
        )
        model.logits(model.ids(here.golden.artifacts["prompt_boundary"][f"{found['trial']}/clean/input_ids"]))
        handle.remove()
        outputs.append(kept[0][0])

    at = (first["coordinate"]["position"], first["coordinate"]["dim"])
    assert found["trial"] == "0:0"
    assert first["expected"] == pytest.approx(float(outputs[0][at]))
    assert first["actual"] == pytest.approx(float(outputs[1][at]))
    assert first["max_abs_diff"] == pytest.approx(float((outputs[0] - outputs[1]).abs().max()))
    assert f"position {at[0]}, dim {at[1]}" in found["conclusion"]


def test_code_between_modules_is_told_from_modules() -> None:
    def other_scale(hf: Any) -> None:
        hf.model.layers[0].self_attn.scaling *= 1.1

    def no_residual(hf: Any) -> None:
        block = hf.model.layers[0]
        forward = block.forward

        def without(hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
            return forward(hidden_states, *rest, **named) - hidden_states

        block.forward = without

    found = drilled("llama", other_scale)
    assert named(found) == ("model.layers.0.self_attn.o_proj", "input")
    assert "made by the attention itself" in found["conclusion"]

    found = drilled("llama", no_residual)
    assert named(found) == ("model.layers.0", "output")
    assert "It is made in its own forward, for what its modules give agrees" in found["conclusion"]


def test_rotary_frequencies_are_found_before_any_block() -> None:
    def other_theta(hf: Any) -> None:
        hf.model.rotary_emb.inv_freq *= 0.9

    assert named(drilled("llama", other_theta)) == ("model.rotary_emb", "output")


def test_a_module_in_half_precision_is_named_with_its_dtype() -> None:
    def halved(hf: Any) -> None:
        module = hf.get_submodule("model.layers.0.mlp.up_proj")
        forward = module.forward
        module.forward = lambda x: forward(x).bfloat16()

    here, lm = planted("llama", halved)
    lm.hf.get_submodule("model.layers.0.mlp.down_proj").register_forward_pre_hook(lambda m, args: (args[0].float(),))
    found = here.drill(here.candidate(lm), lm.hf)

    assert named(found) == ("model.layers.0.mlp.up_proj", "output")
    assert "torch.bfloat16 in place of torch.float32" in found["conclusion"]


def test_a_candidates_own_copy_of_the_model_is_looked_at() -> None:
    here, lm = planted("gpt2", scaled("transformer.h.0.mlp.c_proj"))
    found = here.drill(here.candidate(lm), here.lm.hf)  # the session's model is not what the candidate runs

    assert named(found) == ("transformer.h.0.mlp.c_proj", "output")


def test_the_adapter_on_plain_hooks_is_looked_at() -> None:
    here, lm = planted("llama", DOWN)

    assert named(here.drill(TorchHooks(lm, here.fixed, SETTINGS), lm.hf)) == ("model.layers.0.mlp.down_proj", "output")


def test_a_fault_in_one_trial_is_found_in_that_trial() -> None:
    here = ground("llama")
    last = trial_keys(here.golden.artifacts["prompt_boundary"])[-1]
    ids = here.golden.artifacts["prompt_boundary"][f"{last}/clean/input_ids"]

    def on_one_prompt(hf: Any) -> None:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            return output * 1.01 if output.shape[1] == len(cast("list[int]", ids)) else output

        hf.get_submodule("model.layers.0.mlp.gate_proj").register_forward_hook(hook)

    assert len(set(here.lengths)) == 3
    found = drilled("llama", on_one_prompt)
    assert found["trial"] == last
    assert named(found) == ("model.layers.0.mlp.gate_proj", "output")


# ---------------------------------------------------------------- a fault after the modules


def transposed(lm: LanguageModel, ids: list[int], slots: Any) -> Tensor:
    by_token = heads_by_token(lm, ids)
    n_layers, n_heads, n_tokens, d_head = by_token.shape
    flat = by_token.transpose(1, 2).reshape(n_layers, n_tokens, d_head, n_heads)
    return to_slots(flat.permute(0, 3, 1, 2), slots, average)


def first_tokens(lm: LanguageModel, ids: list[int], slots: Any) -> Tensor:
    return to_slots(heads_by_token(lm, ids), slots, lambda word: word[:, :, 0])


def largest_of_word(lm: LanguageModel, ids: list[int], slots: Any) -> Tensor:
    return to_slots(heads_by_token(lm, ids), slots, lambda word: word.amax(dim=2))


def shifted(lm: LanguageModel, ids: list[int], slots: Any) -> Tensor:
    return to_slots(heads_by_token(lm, ids).roll(1, dims=2), slots, average)


def doubled(lm: LanguageModel, ids: list[int], slots: Any) -> Tensor:
    return 2 * to_slots(heads_by_token(lm, ids), slots, average)


@pytest.mark.parametrize(
    ("heads_of", "told"),
    [
        (transposed, "what comes of split into (d_head, n_heads)"),
        (first_tokens, "what comes of the first token of a word"),
        (shifted, "what comes of read one token early"),
        (largest_of_word, "Only slots of words with several tokens differ"),
        (doubled, "slots differ"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fault_of_reading_is_no_modules_fault(family: str, heads_of: Any, told: str) -> None:
    here = ground(family)
    found = here.drill(here.candidate(here.lm, mean_activations=mean_of(heads_of)), here.lm.hf)

    assert found["kind"] == "after_modules"
    assert "no module differs" in found["conclusion"]
    assert told in found["conclusion"]
    assert found["modules"] == []


def test_both_faults_are_told() -> None:
    here, lm = planted("llama", scaled("model.layers.0.self_attn.q_proj"))
    found = here.drill(here.candidate(lm, mean_activations=mean_of(first_tokens)), lm.hf)

    assert named(found) == ("model.layers.0.self_attn.q_proj", "output")
    assert "the reading differs too" in found["conclusion"]


# ---------------------------------------------------------------- what is fed


def without_bos(lm: LanguageModel, ids: list[int], slots: Any) -> Tensor:
    return to_slots(torch.nn.functional.pad(heads_by_token(lm, ids[1:]), (0, 0, 1, 0)), slots, average)


def with_second_bos(lm: LanguageModel, ids: list[int], slots: Any) -> Tensor:
    return to_slots(heads_by_token(lm, [ids[0], *ids])[:, :, 1:], slots, average)


def test_other_token_ids_come_first() -> None:
    here = ground("llama")
    found = here.drill(here.candidate(here.lm, mean_activations=mean_of(without_bos)), here.lm.hf)

    ids = here.golden.artifacts["prompt_boundary"]["0:0/clean/input_ids"]
    assert found["kind"] == "token_ids"
    assert found["trial"] == "0:0"
    assert f"its {len(ids)} token ids were never fed" in found["conclusion"]  # type: ignore[arg-type]
    assert f"position 0: expected {ids[0]} '<s>', fed {ids[1]} 'Q'" in found["conclusion"]  # type: ignore[index]


def batch(masked: str = "rightly", side: str = "left") -> Any:
    """All prompts in one padded batch, with the mask and the positions that belong to it, or a mask that does not."""

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        keys = trial_keys(prompts)
        rows = [cast("list[int]", prompts[f"{key}/clean/input_ids"]) for key in keys]
        ids, mask = left_padded(rows)
        if side == "right":
            width = ids.shape[1]
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
        positions = None if masked == "not" else (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        given = {"rightly": mask, "not": None, "too much": mask & (torch.arange(mask.shape[1]) != mask.shape[1] - 3)}[
            masked
        ]
        long = given if given is None else given.long()
        with read_heads(self.lm) as heads, torch.no_grad():
            self.lm.hf(input_ids=ids, attention_mask=long, position_ids=positions, use_cache=False)
        means = [
            to_slots(
                torch.stack([heads[layer][row, mask[row]] for layer in range(self.lm.n_layers)]).transpose(1, 2),
                slots_of(slot_map, key, "clean"),
                average,
            )
            for row, key in enumerate(keys)
        ]
        return {KEY: torch.stack(means).mean(dim=0)}

    return mean_activations


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "module"), [("llama", "model.layers.0.mlp.down_proj"), ("gpt2", "transformer.h.0.mlp.c_proj")]
)
def test_a_batched_candidate_is_aligned(family: str, module: str, side: str) -> None:
    here, lm = planted(family, scaled(module))
    found = here.drill(here.candidate(lm, mean_activations=batch(side=side)), lm.hf)

    assert named(found) == (module, "output")
    assert (found["fed"]["n_rows"], found["fed"]["attention_mask"]) == (3, "given")
    pads = max(here.lengths) - here.lengths[0]
    assert pads > 0
    assert found["fed"]["first_position"] == (pads if side == "left" else 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batched_candidate_is_not_blamed_for_being_batched(family: str, side: str) -> None:
    here = ground(family)

    def spoiled(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        found = batch(side=side)(self, prompts, slot_map)[KEY]
        return {KEY: found + 0.01}

    found = here.drill(here.candidate(here.lm, mean_activations=spoiled), here.lm.hf)
    assert found["kind"] == "after_modules"


def packed(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
    """All prompts in one row without padding; positions that begin anew keep them apart."""
    keys = trial_keys(prompts)
    rows = [cast("list[int]", prompts[f"{key}/clean/input_ids"]) for key in keys]
    positions = torch.tensor([[i for row in rows for i in range(len(row))]])
    with read_heads(self.lm) as heads, torch.no_grad():
        ids = torch.tensor([[token for row in rows for token in row]])
        self.lm.hf(input_ids=ids, position_ids=positions, use_cache=False)
    every, means, first = torch.stack([heads[layer][0] for layer in range(self.lm.n_layers)]), [], 0
    for key, row in zip(keys, rows, strict=True):
        by_token = every[:, first : first + len(row)].transpose(1, 2)
        means.append(to_slots(by_token, slots_of(slot_map, key, "clean"), average))
        first += len(row)
    return {KEY: torch.stack(means).mean(dim=0)}


def test_prompts_that_share_a_row_and_do_not_see_each_other_are_well_fed() -> None:
    here, lm = planted("llama", scaled("model.layers.1.input_layernorm"))
    assert here.judge(here.candidate(here.lm, mean_activations=packed), here.lm.hf).passed

    found = here.drill(here.candidate(lm, mean_activations=packed), lm.hf)
    assert named(found) == ("model.layers.1.input_layernorm", "output")


@pytest.mark.parametrize(
    ("station", "told"),
    [
        (
            lambda: mean_of(with_second_bos),
            "1 token(s) stand before the prompt in its row, and no attention mask was given",
        ),
        (lambda: mean_of(head_activations, regime="corrupted"), "while the prompt 0:0/corrupted was"),
        (lambda: batch("not"), "stand before the prompt in its row, and no attention mask was given"),
        (lambda: batch("too much"), "the attention mask hides 1 of the prompt's own tokens"),
    ],
    ids=["a second BOS", "another regime", "no mask", "a mask that hides too much"],
)
def test_what_else_was_fed_is_told(station: Callable[[], Any], told: str) -> None:
    here = ground("llama")
    found = here.drill(here.candidate(here.lm, mean_activations=station()), here.lm.hf)

    assert found["kind"] == "token_ids"
    assert told in found["conclusion"]


# ---------------------------------------------------------------- a candidate that is asked


if RUNNING:

    @dataclass
    class Offering:
        """A candidate whose modules nobody can look at: it says what they compute."""

        hidden: Callable[[], LanguageModel]
        fixed: Any
        kept: tuple[str, ...] = ("/",)
        asked: list[tuple[int, int]] = field(default_factory=list)

        heads_of: Any = head_activations

        def __post_init__(self) -> None:
            own: Any = type("Planted", (Pipeline,), {KEY: mean_of(self.heads_of)})(self.hidden(), self.fixed, SETTINGS)
            self.prompt_boundary, self.slot_map = own.prompt_boundary, own.slot_map
            self.mean_activations = own.mean_activations

        def block_outputs(self, prompts: Artifact, layer: int) -> dict[str, Tensor]:
            lm, keys = self.hidden(), trial_keys(prompts)
            self.asked.append((layer, len(keys)))
            leaves: dict[str, Tensor] = {}
            block = lm.blocks[layer]
            for key in keys:
                handles = []
                for name, module in block.named_modules():
                    leaf = f"{key}/{name or 'block'}"

                    def leaving(m: Any, args: Any, output: Any, leaf: str = leaf) -> None:
                        leaves[leaf] = (output[0] if isinstance(output, tuple) else output)[0]

                    def entering(m: Any, args: Any, named: Any, leaf: str = leaf) -> None:
                        leaves[f"{leaf}:input"] = [*args, *named.values()][0][0]

                    handles.append(module.register_forward_hook(leaving))
                    handles.append(module.register_forward_pre_hook(entering, with_kwargs=True))
                with torch.no_grad():
                    lm.logits(lm.ids(prompts[f"{key}/clean/input_ids"]))
                for handle in handles:
                    handle.remove()
            return {leaf: value for leaf, value in leaves.items() if any(name in leaf for name in self.kept)}


@pytest.mark.parametrize(
    "path", ["model.layers.0.mlp.down_proj", "model.layers.2.self_attn.v_proj", "model.layers.1.input_layernorm"]
)
def test_a_candidate_that_offers_its_modules_is_asked(path: str) -> None:
    here, lm = planted("llama", scaled(path))
    candidate = Offering(lambda: lm, here.fixed)

    found = here.drill(candidate)

    assert named(found) == (path, "output")
    bad = found["layer"]
    assert candidate.asked[0] == (bad, 3)
    assert candidate.asked[1:] == [(layer, 1) for layer in range(int(path.split(".")[2]) + 1)]


def test_an_asked_candidate_whose_heads_agree_has_no_faulty_module() -> None:
    here = ground("llama")
    found = here.drill(Offering(lambda: here.lm, here.fixed, heads_of=transposed))
    assert found["kind"] == "after_modules"
    assert "split into (d_head, n_heads)" in found["conclusion"]


def test_of_modules_that_are_not_offered_nothing_is_claimed() -> None:
    here, lm = planted("llama", scaled("model.layers.1.input_layernorm"))

    found = here.drill(Offering(lambda: lm, here.fixed, kept=("o_proj:input", "/block")))

    assert named(found) == ("model.layers.1.self_attn.o_proj", "input")
    assert "It is made behind what enters model.layers.1, which agrees" in found["conclusion"]
    assert "attention itself" not in found["conclusion"]


def test_what_differs_only_beside_other_prompts_is_told() -> None:
    here = ground("llama")

    class Crowded(Offering):
        def block_outputs(self, prompts: Artifact, layer: int) -> dict[str, Tensor]:
            leaves = super().block_outputs(prompts, layer)
            crowd = len(trial_keys(prompts)) > 1
            return {leaf: value * 1.1 for leaf, value in leaves.items()} if crowd else leaves

    found = here.drill(Crowded(lambda: here.lm, here.fixed, heads_of=doubled))
    assert found["kind"] == "unsteady"
    assert "agrees when this one is looked at" in found["conclusion"]


def test_an_asked_candidate_may_say_which_ids_it_fed() -> None:
    here = ground("llama")

    class Telling(Offering):
        def block_outputs(self, prompts: Artifact, layer: int) -> dict[str, Any]:
            fed = {f"{key}/input_ids": prompts[f"{key}/clean/input_ids"] for key in trial_keys(prompts)}
            ids = cast("list[int]", fed["1:1/input_ids"])
            return {**super().block_outputs(prompts, layer), **fed, "1:1/input_ids": torch.tensor(ids[1:])}

    found = here.drill(Telling(lambda: here.lm, here.fixed, heads_of=doubled))
    assert (found["kind"], found["trial"]) == ("token_ids", "1:1")


def test_what_an_asked_candidate_must_give_is_said() -> None:
    here, lm = planted("llama", DOWN)

    found = here.drill(Offering(lambda: lm, here.fixed, kept=("/block",)))

    assert found["kind"] == "not_provided"
    assert "block_outputs gives no leaf '0:0/self_attn.o_proj:input'" in found["conclusion"]


def test_a_candidate_that_shows_nothing_is_one_sentence() -> None:
    class Closed:
        def mean_activations(self, prompts: Artifact, slot_map: Artifact) -> Artifact:
            return {KEY: here.golden.mean_activations()[KEY] + 1}  # type: ignore[operator]

    here = ground("llama")
    found = here.drill(Closed(), here.lm.hf)

    assert found["kind"] == "not_provided"
    assert "Closed does not run model.layers.0.self_attn.o_proj of the model it was given" in found["conclusion"]
    assert "block_outputs(prompts, layer)" in found["conclusion"]


def test_a_folder_may_hold_what_its_modules_gave(tmp_path: Path) -> None:
    from fvcore import artifacts

    path = "model.layers.1.input_layernorm"
    here, lm = planted("llama", scaled(path))
    golden = here.golden.artifacts
    candidate = Offering(lambda: lm, here.fixed)
    artifacts.save(candidate.mean_activations(golden["prompt_boundary"], golden["slot_map"]), tmp_path / KEY)

    found = here.drill(FromFolder(tmp_path))
    assert found["kind"] == "not_provided"
    assert f"{tmp_path} holds no block_outputs_1.json" in found["conclusion"]

    artifacts.save(candidate.block_outputs(golden["prompt_boundary"], 1), tmp_path / "block_outputs_1")
    assert named(here.drill(FromFolder(tmp_path))) == (path, "output")


ELSEWHERE = """
import torch
from pathlib import Path
from fvcore.model import model as models
from fvcore.trials import fixed as trials
from fvcore.pipeline import Pipeline, Settings

class There(Pipeline):
    OFFERED

def make(job):
    lm = models.load(job["model_dir"], job["device"], job["dtype"])
    with torch.no_grad():
        lm.hf.model.layers[0].mlp.down_proj.weight.mul_(1.01)
    return There(lm, trials.read(Path(job["trials"])), Settings(**job["settings"]))
"""

OFFERED = """
    def block_outputs(self, prompts, layer):
        leaves = {}
        for key in sorted({leaf.partition("/")[0] for leaf in prompts if ":" in leaf}):
            ids = torch.tensor([prompts[f"{key}/clean/input_ids"]])
            handles = []
            for name, module in self.lm.hf.model.layers[layer].named_modules():
                leaf = f"{key}/{name or 'block'}"
                def leaving(m, args, output, leaf=leaf):
                    leaves[leaf] = (output[0] if isinstance(output, tuple) else output)[0]
                def entering(m, args, leaf=leaf):
                    if args:
                        leaves[leaf + ":input"] = args[0][0]
                handles += [module.register_forward_hook(leaving), module.register_forward_pre_hook(entering)]
            with torch.no_grad():
                self.lm.logits(ids)
            [handle.remove() for handle in handles]
        return leaves
"""


@pytest.mark.parametrize(
    ("offered", "told"),
    [
        (OFFERED, "*the first that differs is what leaves model.layers.0.mlp.down_proj*"),
        pytest.param(
            "pass",
            "*the modules could not be compared: *has no method 'block_outputs'*may offer a method block_outputs(*",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_candidate_in_another_interpreter_is_asked(
    pytester: pytest.Pytester, world: World, offered: str, told: str
) -> None:
    (pytester.path / "mine.py").write_text(ELSEWHERE.replace("OFFERED", offered.strip()))
    words = ["--fv-candidate=mine:make", f"--fv-candidate-python={sys.executable}"]

    result = pytester.runpytest_inprocess("-m", "parity", "--fv-drill", *words, *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    (warning,) = report["checks"][2]["warnings"]
    pytest.LineMatcher([warning["message"]]).fnmatch_lines([told])


@pytest.mark.parametrize("adapter", ["nnsight", "transformer_lens"])
def test_the_adapters_on_other_libraries_show_their_modules(adapter: str) -> None:
    path = "model.layers.1.mlp.down_proj"
    judge = shipped_judge("tiny-llama")
    make = importlib.import_module(f"pytest_fvparity.candidates.adapters.{adapter}").make
    if importlib.util.find_spec(adapter) is None:
        with pytest.raises(StageError, match="this adapter needs"):
            judge(path, 1.01, make)
        return
    found = judge(path, 1.01, make)
    assert named(found) == (path, "output")


def shipped_judge(name: str) -> Callable[..., dict[str, Any]]:
    """Plants a factor into a module of a shipped model, whose golden is the reference's, and drills."""
    lm = models.load(name)
    trials_path = shipped.trials_of(name, ROOT)
    assert trials_path is not None
    fixed = trials.read(trials_path)
    golden = Golden.open(ROOT / "golden" / relative_path(fixed.dataset, fixed.id, "src"))
    tolerances = Tolerances.read(None, (), "fp32", "cpu", golden.noise)

    def judge(path: str, by: float, make: Any = Pipeline) -> dict[str, Any]:
        wrong = replace(changed(lm, scaled(path, by)), source=lm.source)
        candidate = make(wrong, fixed, SETTINGS)
        run = ParityRun(candidate, golden, tolerances, model=wrong.hf, reference=lambda: models.load(name))
        return dict(check(run, KEY).details["drill"])

    return judge


@pytest.mark.slow
def test_a_fault_smaller_than_what_is_allowed_where_it_is_made_is_pointed_at() -> None:
    judge = shipped_judge("tiny-llama")

    found = judge("model.layers.1.input_layernorm", 1.00003)

    assert named(found) == ("model.layers.1.self_attn.o_proj", "input")
    said = "but what leaves model.layers.1.input_layernorm is off by 0.00012 (allowed 0.00031), more than rounding"
    assert said in found["conclusion"]
    assert named(judge("model.layers.1.input_layernorm", 1.0003)) == ("model.layers.1.input_layernorm", "output")


def test_what_only_adds_up_blames_no_module_and_says_where_it_begins() -> None:
    lm = models.load("tiny-llama", dtype="bf16")
    trials_path = shipped.trials_of("tiny-llama", ROOT)
    assert trials_path is not None
    fixed = trials.read(trials_path)
    wrong = changed(lm, scaled("model.layers.1.self_attn.v_proj", 1.1))
    tolerances = Tolerances.read(None, (), "bf16", "cpu")
    candidate = Pipeline(wrong, fixed, SETTINGS)
    run = ParityRun(candidate, recorded(lm, fixed), tolerances, model=wrong.hf, reference=lambda: lm)

    found = dict(check(run, KEY).details["drill"])

    assert found["kind"] == "accumulated"
    assert not any(row["differs"] for row in found["modules"])
    assert named(found) == ("model.layers.1.self_attn.v_proj", "output")
    assert "no single module differs by more than is allowed, and together they do" in found["conclusion"]


# ---------------------------------------------------------------- nothing else moves


def hooks_on(hf: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


def test_hooks_are_gone_afterwards_the_candidates_too() -> None:
    here, lm = planted("llama", DOWN)

    class Leaves(Pipeline):
        def mean_activations(self, prompts: Artifact, slot_map: Artifact) -> Artifact:
            self.lm.blocks[0].register_forward_hook(lambda module, args, output: None)
            return super().mean_activations(prompts, slot_map)

    verdict = here.judge(Leaves(lm, here.fixed, SETTINGS), lm.hf)

    assert named(dict(verdict.details["drill"])) == ("model.layers.0.mlp.down_proj", "output")
    assert sum("left" in f.message for f in verdict.findings) == 1
    assert hooks_on(lm.hf) == hooks_on(here.lm.hf) == 0


@pytest.mark.parametrize("error", [RuntimeError("no second time"), SystemExit(3), pytest.fail.Exception("not here")])
def test_an_error_in_the_drill_leaves_the_verdict(error: BaseException) -> None:
    here, lm = planted("llama", DOWN)
    n_asked: list[int] = []

    class Once(Pipeline):
        def mean_activations(self, prompts: Artifact, slot_map: Artifact) -> Artifact:
            n_asked.append(1)
            if len(n_asked) > 2:  # chained and isolated have been answered
                raise error
            return super().mean_activations(prompts, slot_map)

    plain = here.judge(here.candidate(lm), lm.hf, loaded=None)
    verdict = here.judge(Once(lm, here.fixed, SETTINGS), lm.hf)

    assert verdict.details["drill"]["kind"] == "failed"
    assert str(error) in verdict.details["drill"]["conclusion"]
    assert verdict.findings[:-1] == plain.findings
    assert not verdict.findings[-1].blocking
    assert (verdict.mismatch_count, verdict.compared) == (plain.mismatch_count, plain.compared)
    assert not verdict.passed
    assert hooks_on(lm.hf) == 0


def test_a_reference_that_cannot_be_loaded_is_said() -> None:
    here, lm = planted("llama", DOWN)

    def load() -> LanguageModel:
        raise MemoryError("no room for a second model")

    found = here.drill(here.candidate(lm), lm.hf, loaded=load)
    assert (found["kind"], "no room for a second model" in found["conclusion"]) == ("failed", True)


def test_ctrl_c_is_not_swallowed() -> None:
    here, lm = planted("llama", DOWN)

    def load() -> LanguageModel:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here.judge(here.candidate(lm), lm.hf, loaded=load)


def test_a_reference_that_does_not_give_the_golden_blames_nobody() -> None:
    here, lm = planted("llama", DOWN)
    other = changed(here.lm, scaled("model.layers.1.self_attn.v_proj"))

    found = here.drill(here.candidate(lm), lm.hf, loaded=lambda: other)

    assert found["kind"] == "not_reproduced"
    assert "no module is blamed" in found["conclusion"]
    assert found["first"] is None


def test_without_the_option_nothing_runs_and_what_passes_is_not_drilled(monkeypatch: pytest.MonkeyPatch) -> None:
    here, lm = planted("llama", DOWN)
    n_runs: list[int] = []
    monkeypatch.setattr(Watched, "__init__", lambda *_: pytest.fail("drilled"))

    class Counting(Pipeline):
        def mean_activations(self, prompts: Artifact, slot_map: Artifact) -> Artifact:
            n_runs.append(1)
            return super().mean_activations(prompts, slot_map)

    verdict = here.judge(Counting(lm, here.fixed, SETTINGS), lm.hf, loaded=None)
    assert not verdict.passed
    assert len(n_runs) == 2  # chained and isolated
    assert "drill" not in verdict.details
    assert all(f.blocking for f in verdict.findings)

    loads: list[int] = []
    assert here.judge(here.candidate(here.lm), here.lm.hf, loaded=lambda: loads.append(1)).passed
    assert not loads


def test_another_shape_has_no_layer_to_drill_into() -> None:
    here = ground("llama")
    station = lambda self, prompts, slot_map: {KEY: here.golden.mean_activations()[KEY][:2]}  # noqa: E731
    verdict = here.judge(here.candidate(here.lm, mean_activations=station), here.lm.hf)

    assert not verdict.passed
    assert "drill" not in verdict.details


def test_what_is_inherited_is_no_modules_fault() -> None:
    here = ground("llama")

    def other_prompts(self: Pipeline) -> Artifact:
        leaves = dict(here.golden.prompt_boundary())
        ids = cast("list[int]", leaves["0:0/clean/input_ids"])
        return {**leaves, "0:0/clean/input_ids": [*ids[:3], ids[3] + 1, *ids[4:]]}

    found = here.drill(here.candidate(here.lm, prompt_boundary=other_prompts), here.lm.hf)

    assert found["kind"] == "inherited"
    assert "prompt_boundary or slot_map" in found["conclusion"]


def test_random_states_and_switches_are_as_before() -> None:
    here, lm = planted("llama", DOWN)
    matmul = torch.backends.cuda.matmul

    def load() -> LanguageModel:
        torch.manual_seed(0)
        random.seed(0)
        matmul.allow_tf32 = not before
        return here.lm

    before = matmul.allow_tf32
    candidate = here.candidate(lm)
    torch.manual_seed(7)
    random.seed(7)
    expected = torch.get_rng_state(), random.getstate()
    here.drill(candidate, lm.hf, loaded=load)

    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert matmul.allow_tf32 == before


# ---------------------------------------------------------------- through pytest

OVERRIDDEN = """
import pytest
from fvcore.model import model as models

@pytest.fixture(scope="session")
def fv_model(request):
    lm = models.load(request.config.getoption("fv_model"))
    lm.hf.model.layers[1].input_layernorm.variance_epsilon = 1e-2
    return lm
"""


def test_through_pytest_the_terminal_and_the_report_say_it(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(OVERRIDDEN)

    result = pytester.runpytest_inprocess("-m", "parity", "--fv-drill", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    said = "*drill *into layer 1, trial *: the first that differs is what leaves model.layers.1.input_layernorm*"
    result.stdout.fnmatch_lines([said, "*reproduce *--fv-drill*"])
    (report,) = reports(pytester)
    check = report["checks"][2]
    assert (check["key"], check["status"], check["fault"]) == (KEY, "FAIL", "own")
    assert any("what leaves model.layers.1.input_layernorm" in line and "<- first" in line for line in check["drill"])
    (warning,) = check["warnings"]
    assert pytest.LineMatcher([warning["message"]]).fnmatch_lines([said]) is None
    assert warning["coordinate"]["layer"] == 1


def test_through_pytest_without_the_option_nothing_is_said(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(OVERRIDDEN)

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    assert "drill into" not in result.stdout.str()
    (report,) = reports(pytester)
    assert report["checks"][2]["warnings"] == []
