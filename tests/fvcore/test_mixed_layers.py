"""Models whose layers differ: some without heads, some with wider ones, some whose width is another than the config's.

Every number is held to one computed here from torch's own hooks and the weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.every_type import tiny_model
from fvcore.embedded.random_models import random_model, toy_tokenizer, trials_for
from fvcore.formats import write_text
from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch

    from fvcore.experiments.select_kv.errors import SelectKVRuntimeError
    from fvcore.experiments.select_kv.model_runtime import ModelRuntime
    from fvcore.experiments.steps.settings import StepSettings
    from fvcore.fast.engines import why_not_fast
    from fvcore.fast.screening import screened_top_heads
    from fvcore.heads import top_heads
    from fvcore.injection import inject_logits
    from fvcore.model.audit import resolver_smoke
    from fvcore.model.diagnostics import diagnostics
    from fvcore.model.model import LanguageModel, ModelError
    from fvcore.pipeline import Pipeline, Settings, _asked, run, slots_of, trial_keys


WIDTHS = {"deepseek_v3": (10, 10, 10, 10), "gemma4_text": (8, 16, 8, 16), "qwen3_next": (0, 8, 0, 8)}
PER_MODEL = pytest.mark.parametrize("kind", WIDTHS)


@cache
def model(kind: str) -> LanguageModel:
    tokenizer = toy_tokenizer("bos")
    return LanguageModel.wrap(tiny_model(kind, len(tokenizer)), tokenizer, kind)


@cache
def made(kind: str, engine: str = "exact") -> dict[str, Any]:
    lm = model(kind)
    return run(lm, trials_for(lm, n_trials=2, n_shots=2), Settings(1, n_top_heads=5, engine=engine))


@PER_MODEL
def test_the_width_of_a_head_is_what_its_projection_takes(kind: str) -> None:
    lm = model(kind)
    assert lm.d_heads == WIDTHS[kind]
    assert lm.d_head == max(WIDTHS[kind])
    assert lm.head_layers == tuple(layer for layer in range(4) if WIDTHS[kind][layer])


@inference_mode
@PER_MODEL
def test_means_are_those_that_plain_hooks_see(kind: str) -> None:
    lm, artifacts = model(kind), made(kind)
    prompts, slots = artifacts["prompt_boundary"], artifacts["slot_map"]
    trials = trial_keys(prompts)
    means = artifacts["mean_activations"]["mean_activations"]
    for layer, width in enumerate(WIDTHS[kind]):
        assert not means[layer, ..., width:].any()
        if not width:
            continue
        entered: list[Any] = []
        handle = lm.hf.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, entered=entered: entered.append(args[0])
        )
        for trial in trials:
            lm.hf(torch.tensor([prompts[f"{trial}/clean/input_ids"]]), use_cache=False)
        handle.remove()
        last = [x[0, -1].view(4, -1) for x in entered]
        predictive = slots[f"{trials[0]}/clean/query_predictive_slot"]
        assert torch.equal(means[layer, :, predictive, :width], torch.stack(last).mean(dim=0))


@inference_mode
@PER_MODEL
def test_effects_are_those_of_a_replaced_slice_and_layers_without_heads_have_none(kind: str) -> None:
    lm, artifacts = model(kind), made(kind)
    prompts, means = artifacts["prompt_boundary"], artifacts["mean_activations"]["mean_activations"]
    trial = trial_keys(prompts)[0]
    ids, target = _asked(prompts, trial)
    row = torch.tensor([ids])
    base = lm.hf(row, use_cache=False).logits[0, -1].softmax(-1)[target]
    for layer, width in enumerate(WIDTHS[kind]):
        for head in range(4):
            found = artifacts["top_heads"]["cie"][0, layer, head]
            if not width:
                assert found == 0
                continue

            def replaced(_: Any, args: Any, layer: int = layer, head: int = head, width: int = width) -> Any:
                x = args[0].clone()
                x[0, -1, head * width : (head + 1) * width] = means[layer, head, -1, :width]
                return (x,)

            handle = lm.hf.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(replaced)
            probability = lm.hf(row, use_cache=False).logits[0, -1].softmax(-1)[target]
            handle.remove()
            assert found == probability - base


@inference_mode
@PER_MODEL
def test_the_vector_is_the_sum_of_the_columns_of_its_heads(kind: str) -> None:
    lm, artifacts = model(kind), made(kind)
    means, heads = artifacts["mean_activations"]["mean_activations"], artifacts["top_heads"]["heads"]
    assert {layer for layer, _ in heads} <= set(lm.head_layers)
    total = torch.zeros(32)
    for layer, head in heads:
        width, weight = WIDTHS[kind][layer], lm.hf.model.layers[layer].self_attn.o_proj.weight
        total += weight[:, head * width : (head + 1) * width] @ means[layer, head, -1, :width]
    torch.testing.assert_close(artifacts["fv_vector"]["function_vector"], total)


@inference_mode
def test_engine_fast_agrees_where_heads_are_wider_in_some_layers() -> None:
    assert not why_not_fast(model("gemma4_text"))
    exact, fast = (made("gemma4_text", engine) for engine in ("exact", "fast"))
    for key, leaf in (("mean_activations", "mean_activations"), ("top_heads", "cie"), ("fv_vector", "function_vector")):
        torch.testing.assert_close(fast[key][leaf], exact[key][leaf], rtol=1e-4, atol=1e-6)


def test_screening_asks_for_no_head_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 1)
    lm, artifacts = model("gemma4_text"), made("gemma4_text")
    prompts = artifacts["prompt_boundary"]
    cases = [(*_asked(prompts, key), slots_of(artifacts["slot_map"], key, "corrupted")) for key in trial_keys(prompts)]
    screening = screened_top_heads(lm, cases, artifacts["mean_activations"]["mean_activations"], 2)
    assert [[head.layer, head.head] for head in screening.heads] == artifacts["top_heads"]["heads"][:2]
    assert bool(screening.estimates.any(dim=0)[list(lm.head_layers)].all())


def test_a_layer_without_heads_is_never_ranked_though_all_others_do_harm() -> None:
    harmful = torch.tensor([[0.0, 0.0], [-2.0, -1.0]])
    assert [(head.layer, head.head) for head in top_heads(harmful, 2, [1])] == [(1, 1), (1, 0)]


def test_as_many_heads_can_be_asked_for_as_there_are() -> None:
    lm = model("qwen3_next")
    Settings(0, n_top_heads=8).require_fit(lm)
    with pytest.raises(ModelError, match="9 top heads asked for, qwen3_next has 8"):
        Settings(0, n_top_heads=9).require_fit(lm)


@inference_mode
def test_a_vector_is_added_behind_every_block_with_heads_or_without() -> None:
    lm = model("qwen3_next")
    vector = made("qwen3_next")["fv_vector"]["function_vector"]
    logits = inject_logits(lm, [list(range(3, 12))], [vector], range(4), engine="exact")
    assert all(not torch.equal(logits[0, 0], arm) for arm in logits[0, 1:])


def test_steps_sweep_the_layers_that_have_heads_and_refuse_another_by_name() -> None:
    lm = model("qwen3_next")
    assert StepSettings().layers_of(lm) == [1, 3]
    with pytest.raises(
        ModelError, match=r"layer 2 of qwen3_next has no attention heads \(--layers\); these have: 1, 3"
    ):
        StepSettings(layers=(1, 2)).layers_of(lm)


def test_what_is_said_of_a_model_says_which_layers_differ() -> None:
    mixed, wide = (diagnostics(model(kind)) for kind in ("qwen3_next", "gemma4_text"))
    assert mixed["out_proj_path"] == "model.layers.1.self_attn.o_proj"
    assert any(note.startswith("layers_without_heads: 0, 2 have no self_attn.o_proj") for note in mixed["warnings"])
    assert wide["head_dims"] == [8, 16, 8, 16]
    assert any(note.startswith("head_widths: 8, 16, by layer") for note in wide["warnings"])
    smoke = resolver_smoke(model("qwen3_next"), "qwen3_next")
    assert smoke.ok
    assert smoke.checked_layer_indices == [1, 3]


@pytest.mark.parametrize(
    ("kind", "message"), [("qwen3_next", "LinearAttentionLayer"), ("gemma4_text", "are 8, 16 wide")]
)
def test_a_state_of_layers_that_differ_is_refused(kind: str, message: str) -> None:
    with pytest.raises(SelectKVRuntimeError, match=message):
        ModelRuntime(model(kind))


def test_a_report_says_which_layers_have_no_heads() -> None:
    lm = model("qwen3_next")
    notes = Pipeline(lm, trials_for(lm, 1, 2), Settings(1)).notes("fv_vector")
    assert any("layers_without_heads" in note for note in notes)


@PER_MODEL
def test_a_spec_file_with_the_three_paths_does(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    width = f"head_dim: {WIDTHS[kind][1]}\n" if kind != "gemma4_text" else ""
    write_text(
        path,
        f"blocks_path: model.layers\nattn_path_in_block: self_attn\nout_proj_path_in_attn: o_proj\nn_heads: 4\n{width}",
    )
    assert LanguageModel.wrap(model(kind).hf, spec=str(path)).d_heads == WIDTHS[kind]


def test_a_projection_that_no_width_of_the_config_explains_is_none_of_attention(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    write_text(path, "blocks_path: model.layers\nattn_path_in_block: mlp\nout_proj_path_in_attn: down_proj\n")
    with pytest.raises(ModelError, match="takes 64 numbers, and 4 heads of 8 are 32; is it the attention's output"):
        LanguageModel.wrap(random_model("llama", 20), spec=str(path))
