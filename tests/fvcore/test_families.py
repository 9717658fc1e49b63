"""Every family of the table, proved on a tiny random model: nothing about it is taken from its documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import EVERY_FAMILY
from fvcore.model.spec import MODEL_SPECS
from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch
    from torch import Tensor

    from fvcore.artifacts import Artifact, tensor_leaf
    from fvcore.embedded.random_models import random_lm, random_model, trials_for
    from fvcore.fast.engines import why_not_fast
    from fvcore.injection import inject_logits
    from fvcore.model.diagnostics import block_output, caveats, diagnostics
    from fvcore.model.hooks import add_to_residual, edit_heads, read_heads
    from fvcore.model.model import LanguageModel, ModelError, doubts, load
    from fvcore.pipeline import Pipeline, Settings, run
    from fvcore.trials.fixed import FixedTrials
    from fvcore.vectors import head_term

TEXT = "Q: hot\nA: cold\n\nQ: unhappy\nA: glad\n\nQ: sunny\nA:"

# Engine `fast` runs rows at positions that no prompt has. These say, in modules of their own, which position sees which:
# a local window by the length of the keys; ALiBi by the length of the mask.
# A state beside the attention; a mask of its own shape.
NOT_FAST = ("gpt_neo", "bloom", "falcon_h1", "gpt_bigcode")
WITHOUT_SDPA = ("gptj", "gpt_neo", "gemma2", "bloom", "gpt_oss", "codegen")
WITH_BIAS = (
    "gpt2", "gpt_neo", "gpt_neox", "phi", "starcoder2", "opt", "falcon", "bloom", "gpt_oss", "persimmon", "gpt_bigcode",
)  # fmt: skip
WIDE = (
    "qwen3", "mixtral", "gemma", "gemma2", "gemma3_text", "gpt_oss", "exaone4", "glm4", "cohere2", "hunyuan_v1_dense",
    "ernie4_5", "llama4_text", "falcon_h1",
)  # fmt: skip
NORMED = ("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4", "glm4")

# One of every kind; the rest are slow. Conv1D with bias; norms behind the attention, a soft cap, windows, heads x width
# != d_model; ALiBi; a factor on the residual stream; experts.
OF_EVERY_KIND = ("gpt2", "gemma2", "bloom", "granite", "mixtral")


@dataclass(frozen=True)
class Family:
    """A family's tiny model, what the stations compute on it, and a folder to save it in."""

    name: str
    lm: LanguageModel
    folder: Path

    @cached_property
    def trials(self) -> FixedTrials:
        return trials_for(self.lm, n_trials=2, n_shots=3)

    @cached_property
    def exact(self) -> tuple[Pipeline, dict[str, Artifact]]:
        return self._run("exact")

    @cached_property
    def fast(self) -> tuple[Pipeline, dict[str, Artifact]]:
        return self._run("fast")

    def _run(self, engine: str) -> tuple[Pipeline, dict[str, Artifact]]:
        settings = Settings(edit_layer=0, n_top_heads=3, engine=engine)
        return Pipeline(self.lm, self.trials, settings), run(self.lm, self.trials, settings)


CHECKS: list[Callable[[Family], None]] = []


def check(claim: Callable[[Family], None]) -> Callable[[Family], None]:
    CHECKS.append(claim)
    return claim


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_EVERY_KIND else pytest.mark.slow) for name in EVERY_FAMILY]
)
def test_a_family_is_what_the_table_says(tiny: Callable[[str], LanguageModel], tmp_path: Path, name: str) -> None:
    family = Family(name, tiny(name), tmp_path)
    for claim in CHECKS:
        claim(family)


def ids_of(lm: LanguageModel) -> Tensor:
    return lm.ids(lm.tokenizer(TEXT).input_ids)


def test_every_family_of_the_table_is_here() -> None:
    assert set(EVERY_FAMILY) == set(MODEL_SPECS)


@check
def its_parts_are_where_the_table_says(family: Family) -> None:
    lm = family.lm

    assert (lm.spec.name, lm.spec.found_by) == (family.name, "model_type")
    assert lm.n_layers == 2
    assert (lm.n_heads * lm.d_head == lm.d_model) == (family.name not in WIDE)
    for layer in range(lm.n_layers):
        assert lm.hf.get_submodule(lm.spec.out_proj_path(layer)) is lm.o_proj(layer)
        assert any(module is lm.o_proj(layer) for module in lm.blocks[layer].modules())


@check
@inference_mode
def the_terms_of_all_heads_and_one_bias_are_what_the_projection_puts_out(family: Family) -> None:
    lm, outputs = family.lm, list[Tensor]()
    handles = [
        lm.o_proj(layer).register_forward_hook(lambda module, args, output: outputs.append(output)) for layer in (0, 1)
    ]
    try:
        with read_heads(lm) as heads:  # raises where a hook does not fire
            lm.logits(ids_of(lm))
    finally:
        for handle in handles:
            handle.remove()

    assert set(heads) == {0, 1}
    for layer in (0, 1):
        bias: Any = getattr(lm.o_proj(layer), "bias", None)
        assert (bias is not None) == (family.name in WITH_BIAS)
        each = 0 if bias is None else bias
        terms = [head_term(lm, layer, head, heads[layer][0, -1, head]) - each for head in range(lm.n_heads)]
        total = sum(terms) if bias is None else sum(terms) + bias
        torch.testing.assert_close(total, outputs[layer].reshape(-1, lm.d_model)[-1], atol=1e-5, rtol=1e-5)
        assert min(float(term.norm()) for term in terms) > 1e-3


@check
@inference_mode
def what_enters_the_projection_is_what_each_head_gathered(family: Family) -> None:
    """In the first layer: of the token itself alone, as anything before the attention would be, it is not."""
    lm = family.lm
    ids = ids_of(lm)
    changed = ids.clone()
    changed[0, -8:-3] = (changed[0, -8:-3] + 7) % lm.vocab_size  # within every window
    with read_heads(lm) as before:
        lm.logits(ids)
    with read_heads(lm) as after:
        lm.logits(changed)

    moved = (before[0] - after[0])[0].abs().amax(dim=-1)  # (token, head)
    assert moved[:-8].max() < 1e-5
    assert moved[-3:].amax(dim=0).min() > 1e-3


@check
@inference_mode
def a_head_can_be_replaced_and_its_replacement_is_seen(family: Family) -> None:
    lm = family.lm
    ids = ids_of(lm)
    before = lm.logits(ids)[0]

    def silence(heads: Tensor) -> None:
        heads[:, -1, 1] = 0

    with edit_heads(lm, 0, silence):
        after = lm.logits(ids)[0]

    assert torch.equal(before[:-1], after[:-1])
    assert (before[-1] - after[-1]).abs().max() > 1e-3


@check
@inference_mode
def a_vector_reaches_the_residual_stream_whatever_blocks_return(family: Family) -> None:
    lm = family.lm
    ids, vector = ids_of(lm), 3 * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    returned = list[Any]()
    handle = lm.blocks[0].register_forward_hook(lambda module, args, output: returned.append(output))
    before = lm.logits(ids)[0]
    handle.remove()
    with add_to_residual(lm, 0, vector):
        after = lm.logits(ids)[0]
    with add_to_residual(lm, 0, 0 * vector):
        unmoved = lm.logits(ids)[0]

    assert block_output(lm) == ("tuple" if isinstance(returned[0], tuple) else "tensor")
    assert torch.equal(before[:-1], after[:-1])
    assert (before[-1] - after[-1]).abs().max() > 1e-2
    torch.testing.assert_close(unmoved, before, atol=0, rtol=0)


@check
@inference_mode
def a_later_token_changes_nothing_earlier(family: Family) -> None:
    lm = family.lm
    ids = ids_of(lm)
    changed = ids.clone()
    changed[0, 9] = (changed[0, 9] + 7) % lm.vocab_size
    before, after = lm.logits(ids)[0], lm.logits(changed)[0]

    torch.testing.assert_close(before[:9], after[:9], atol=1e-5, rtol=0)
    assert (before[9:] - after[9:]).abs().amax(dim=-1).max() > 1e-2


@check
@inference_mode
def eager_and_sdpa_are_the_same_where_both_exist(family: Family) -> None:
    random_lm(family.name, directory=family.folder)
    eager = load(str(family.folder), attn="eager")
    if family.name in WITHOUT_SDPA:
        with pytest.raises(ModelError, match=r"does not support an attention implementation|leaves out the soft cap"):
            load(str(family.folder), attn="sdpa")
        return
    sdpa = load(str(family.folder), attn="sdpa")

    assert (eager.attn_implementation, sdpa.attn_implementation) == ("eager", "sdpa")
    torch.testing.assert_close(eager.logits(ids_of(eager)), sdpa.logits(ids_of(sdpa)), atol=3e-5, rtol=0)


def test_a_soft_cap_is_not_lost_on_the_way(tmp_path: Path) -> None:
    lm = random_lm("gemma2", directory=tmp_path)
    assert load(str(tmp_path)).attn_implementation == "eager"
    with pytest.raises(ModelError, match=r"leaves out the soft cap .* \(attn_logit_softcapping 50\); use eager"):
        load(str(tmp_path), attn="sdpa")
    lm.config._attn_implementation = "sdpa"
    assert any("leaves out the soft cap" in sentence for sentence in doubts(lm))


# ---------------------------------------------------------------- both engines


@check
def engine_fast_is_engine_exact_or_says_why_not(family: Family) -> None:
    (fast, quick), (_, exact) = family.fast, family.exact

    assert (fast.engine == "fast") == (family.name not in NOT_FAST)
    (note,) = fast.notes("mean_activations") or [""]
    assert ("does not hold" in note and why_not_fast(fast.lm) in note) == (family.name in NOT_FAST)
    # The tolerances of a comparison across implementations, fp32 on the CPU.
    means, cie = tensor_leaf(exact["mean_activations"], "mean_activations"), tensor_leaf(exact["top_heads"], "cie")
    torch.testing.assert_close(tensor_leaf(quick["mean_activations"], "mean_activations"), means, atol=5e-5, rtol=0)
    bound = max(1e-6, 1e-4 * float(cie.abs().max()))
    torch.testing.assert_close(tensor_leaf(quick["top_heads"], "cie"), cie, atol=bound, rtol=0)
    assert float(cie.abs().max()) > 50 * bound  # or the bound would hide what it should show
    assert quick["top_heads"]["heads"] == exact["top_heads"]["heads"]
    vector = tensor_leaf(exact["fv_vector"], "function_vector")
    torch.testing.assert_close(tensor_leaf(quick["fv_vector"], "function_vector"), vector, atol=5e-4, rtol=0)


@check
@inference_mode
def injection_is_the_same_by_both_engines(family: Family) -> None:
    stations, exact = family.exact
    lm, key = stations.lm, "0:0"
    prompt = exact["prompt_boundary"][f"{key}/corrupted/input_ids"]
    vector = tensor_leaf(exact["fv_vector"], "function_vector")
    moved = tensor_leaf(exact["injection_output"], f"{key}/with_logits")
    base = tensor_leaf(exact["injection_output"], f"{key}/base_logits")

    assert (moved - base).abs().max() > 1e-2
    if family.name in NOT_FAST:
        assert why_not_fast(lm)
        return
    (logits,) = inject_logits(lm, [prompt], [vector], [0])  # type: ignore[list-item]
    torch.testing.assert_close(logits, torch.stack([base, moved]), atol=5e-4, rtol=0)


# ---------------------------------------------------------------- what a function vector leaves out


@check
def a_norm_or_a_factor_behind_the_attention_is_seen_in_the_model(family: Family) -> None:
    normed, scaled = family.name in NORMED, family.name == "granite"
    said = caveats(family.lm)

    assert [sentence.split(":")[0] for sentence in said] == (
        ["post_attn_norm"] * normed + ["residual_multiplier"] * scaled
    )
    assert not normed or "_layernorm' stands between" in said[0]
    assert not scaled or "0.4 times" in said[0]


def test_the_report_warns_of_it_at_the_vector(tiny: Callable[[str], LanguageModel]) -> None:
    for family, n_notes in (("olmo2", 1), ("llama", 0)):
        lm = tiny(family)
        notes = Pipeline(lm, trials_for(lm, n_trials=1), Settings(edit_layer=0)).notes("fv_vector")
        assert sum("post_attn_norm" in note for note in notes) == n_notes


@check
def diagnostics_say_what_was_loaded(family: Family) -> None:
    lm = family.lm
    said = diagnostics(lm)

    shape = [lm.n_heads * lm.d_head, lm.d_model]
    assert said["out_proj_weight_shape"] == (shape if family.name == "gpt2" else shape[::-1])
    assert said["out_proj_bias"] == (family.name in WITH_BIAS)
    assert said["n_kv_heads"] is None or lm.n_heads % said["n_kv_heads"] == 0
    assert (said["resolved_dtype"], said["resolved_quant"], said["resolved_device_map"]) == (
        "fp32",
        "none",
        {"": "cpu"},
    )
    assert set(said["parameter_dtypes"]) == {"fp32"}
    assert (said["bos_token_id"], said["eos_token_id"]) == (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id)


def test_a_dtype_that_only_a_part_has_is_told() -> None:
    hf = random_model("llama", 30)
    hf.lm_head.to(torch.bfloat16)
    hf.lm_head.register_forward_pre_hook(lambda module, args: (args[0].to(torch.bfloat16),))
    lm = LanguageModel.wrap(hf)
    n_parameters = len(list(hf.parameters()))

    assert lm.dtype == "fp32"
    assert diagnostics(lm)["parameter_dtypes"] == {"fp32": n_parameters - 1, "bf16": 1}
