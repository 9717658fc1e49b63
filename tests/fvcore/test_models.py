"""A loaded model: its parts under their names in every family, its digests, and what loading refuses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import FAMILIES, random_lm, random_model, toy_tokenizer
from fvcore.formats import write_text
from fvcore.model import on_disk
from fvcore.model.spec import MODEL_SPECS, ModelSpec
from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch
    from safetensors.torch import load_file, save_file
    from torch import Tensor, nn
    from transformers import MambaConfig, MambaForCausalLM

    from fvcore.model import model as models
    from fvcore.model.hooks import read_heads
    from fvcore.model.model import LanguageModel, ModelError, tokenizer_digest, weights_digest
    from fvcore.vectors import head_term
    from pytest_fvparity.reference import driver


if RUNNING:
    Tiny = Callable[[str], LanguageModel]
PROMPT = "Q: hot\nA: cold\n\nQ: unhappy\nA:"

per_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> a directory with the family's tiny model, made once."""
    made: dict[str, Path] = {}

    def directory(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            random_lm(family, directory=made[family])
        return made[family]

    return directory


@pytest.fixture
def llama_directory(tmp_path: Path) -> Path:
    """A saved model of this test alone, free to be damaged."""
    random_lm("llama", directory=tmp_path)
    return tmp_path


def prompt_ids(lm: LanguageModel) -> Tensor:
    return lm.ids(lm.tokenizer(PROMPT).input_ids)


# ---------------------------------------------------------------- the parts


@per_family
def test_sizes_are_those_of_the_modules(tiny: Tiny, family: str) -> None:
    lm = tiny(family)
    assert (lm.n_layers, lm.n_heads, lm.d_model) == (2, 4, 32)
    assert lm.d_head == (12 if family == "qwen3" else 8)
    weight: Any = lm.o_proj(1).weight
    shape = weight.shape if family == "gpt2" else weight.shape[::-1]  # GPT-2's Conv1D keeps (in, out)
    assert tuple(shape) == (lm.n_heads * lm.d_head, lm.d_model)
    assert lm.blocks[1].get_submodule(lm.spec.out_proj_path(1).removeprefix(f"{lm.spec.block_path(1)}.")) is lm.o_proj(
        1
    )
    assert lm.dtype == "fp32"


def test_a_family_may_have_heads_wider_than_the_residual_stream(tiny: Tiny) -> None:
    lm = tiny("qwen3")
    assert lm.n_heads * lm.d_head == 48 != lm.d_model


@per_family
@inference_mode
def test_the_terms_of_all_heads_and_one_bias_are_the_output_of_the_projection(tiny: Tiny, family: str) -> None:
    lm = tiny(family)
    outputs: list[Tensor] = []
    handle = lm.o_proj(1).register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        with read_heads(lm) as heads:
            lm.logits(prompt_ids(lm))
    finally:
        handle.remove()
    bias = getattr(lm.o_proj(1), "bias", None)
    assert (bias is not None) == (family in {"gpt2", "gpt_neox"})
    each = 0 if bias is None else bias
    total = sum(head_term(lm, 1, head, heads[1][0, -1, head]) - each for head in range(lm.n_heads))
    expected = outputs[0].reshape(-1, lm.d_model)[-1]
    torch.testing.assert_close(total if bias is None else total + bias, expected, atol=1e-5, rtol=1e-5)


@per_family
def test_a_later_token_changes_no_earlier_logits(tiny: Tiny, family: str) -> None:
    lm = tiny(family)
    ids = prompt_ids(lm)
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % len(lm.tokenizer)
    with torch.inference_mode():
        before, after = lm.logits(ids)[0], lm.logits(changed)[0]
    torch.testing.assert_close(before[:6], after[:6], atol=1e-5, rtol=0)
    assert (before[6:] - after[6:]).abs().amax(dim=-1).min() > 1e-2


@per_family
def test_a_wrapped_model_is_in_eval_mode_without_gradients(family: str) -> None:
    hf = random_model(family, 50).train()
    lm = LanguageModel.wrap(hf)
    assert not any(module.training for module in lm.hf.modules())
    assert not any(parameter.requires_grad for parameter in lm.hf.parameters())
    ids = lm.ids(range(5, 15))
    assert torch.equal(lm.logits(ids), lm.logits(ids))


def test_a_layer_that_is_not_there_is_refused(tiny: Tiny) -> None:
    lm = tiny("llama")
    lm.require_layer(0)
    lm.require_layer(1)
    for layer in (-1, 2):
        with pytest.raises(ModelError, match=rf"edit_layer out of range: {layer} not in \[0, 1\]"):
            lm.require_layer(layer)


# ---------------------------------------------------------------- the specs


def test_an_unknown_family_names_the_known_ones() -> None:
    hf = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError) as error:
        LanguageModel.wrap(hf)
    assert "'mamba'" in str(error.value)
    assert ", ".join(sorted(MODEL_SPECS)) in str(error.value)
    assert "fvcore/model/spec.py" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"blocks_path": "model.blocks"},
            "blocks_path 'model.blocks': missing 'blocks' at 'model'; found there: embed_tokens, layers, norm",
        ),
        ({"blocks_path": "transformer.h"}, "missing 'transformer' at 'the model'; found there: model, lm_head"),
        (
            {"out_proj_path_in_attn": "dense"},
            "missing 'dense' at 'model.layers.0.self_attn'; found there: q_proj, k_proj, v_proj, o_proj",
        ),
        ({"out_proj_path_in_attn": "o_proj.inner"}, "missing 'inner' at 'model.layers.0.self_attn.o_proj'; found there: nothing"),
    ],
)  # fmt: skip
def test_a_wrong_path_names_the_missing_part_and_what_is_there(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    monkeypatch.setitem(MODEL_SPECS, "llama", MODEL_SPECS["llama"].changed(**change))
    with pytest.raises(ModelError) as error:
        LanguageModel.wrap(random_model("llama", 20))
    assert "Spec 'llama'" in str(error.value)
    assert message in str(error.value)


def test_a_path_wrong_in_a_later_layer_is_found() -> None:
    hf = random_model("llama", 20)
    attention = hf.model.layers[1].self_attn
    attention.other = attention.o_proj
    del attention.o_proj
    with pytest.raises(ModelError, match="o_proj"):
        LanguageModel.wrap(hf)


def test_paths_are_the_dotted_names_of_modules() -> None:
    spec = ModelSpec(name="x", blocks_path="a.b", attn_path_in_block="c", out_proj_path_in_attn="d.e")
    assert (spec.block_path(3), spec.out_proj_path(3)) == ("a.b.3", "a.b.3.c.d.e")


# ---------------------------------------------------------------- digests


def test_one_changed_weight_changes_the_digest() -> None:
    hf = random_model("llama", 20)
    before = weights_digest(hf)
    assert before == weights_digest(random_model("llama", 20))
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert weights_digest(hf) != before


def test_the_same_bytes_under_another_name_dtype_or_shape_have_another_digest() -> None:
    def zeros(name: str, n_in: int, n_out: int, dtype: torch.dtype) -> nn.Module:
        module = nn.ModuleDict({name: nn.Linear(n_in, n_out, bias=False, dtype=dtype)})
        nn.init.zeros_(next(module.parameters()))
        return module

    modules = [
        zeros("a", 2, 3, torch.float16),
        zeros("b", 2, 3, torch.float16),
        zeros("a", 3, 2, torch.float16),
        zeros("a", 2, 3, torch.bfloat16),
    ]
    assert len({weights_digest(module) for module in modules}) == 4


def test_digests_are_the_same_wherever_the_model_lies(saved: Callable[[str], Path], llama_directory: Path) -> None:
    one, other = (models.load(str(directory)) for directory in (saved("llama"), llama_directory))
    assert one.source != other.source
    assert (one.weights_sha, one.tokenizer_sha) == (other.weights_sha, other.tokenizer_sha)
    assert one.weights_sha == random_lm("llama").weights_sha


def test_a_tokenizers_digest_ignores_truncation_and_padding() -> None:
    tokenizer = toy_tokenizer("bos")
    before = tokenizer_digest(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert tokenizer_digest(tokenizer) == before == tokenizer_digest(toy_tokenizer("bos"))


def test_a_tokenizers_digest_sees_what_decides_the_ids() -> None:
    renumbered = toy_tokenizer("bos")
    vocab = renumbered.get_vocab()
    model = type(renumbered.backend_tokenizer.model)(
        vocab | {" dark": vocab[" weak"], " weak": vocab[" dark"]}, unk_token="[UNK]"
    )
    renumbered.backend_tokenizer.model = model
    kinds = [toy_tokenizer(kind) for kind in ("bos", "plain", "gpt2", "eos")]
    assert len({tokenizer_digest(tokenizer) for tokenizer in [*kinds, renumbered]}) == 5


# ---------------------------------------------------------------- loading


@per_family
def test_a_saved_model_loads_as_it_was(tiny: Tiny, saved: Callable[[str], Path], family: str) -> None:
    lm = models.load(str(saved(family)))
    assert (lm.dtype, lm.source, lm.device.type) == ("fp32", saved(family).resolve(), "cpu")
    assert lm.weights_sha == tiny(family).weights_sha
    assert not lm.hf.training


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gptj"])  # GPT-J has no sdpa
def test_eager_and_sdpa_give_the_same_logits(saved: Callable[[str], Path], family: str) -> None:
    eager, sdpa = (models.load(str(saved(family)), attn=attn) for attn in ("eager", "sdpa"))
    assert (eager.attn_implementation, sdpa.attn_implementation) == ("eager", "sdpa")
    ids = prompt_ids(eager)
    with torch.inference_mode():
        torch.testing.assert_close(eager.logits(ids), sdpa.logits(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_dtype_asked_for_is_the_dtype_loaded(saved: Callable[[str], Path], dtype: str) -> None:
    assert models.load(str(saved("llama")), dtype=dtype).dtype == dtype


def test_a_checkpoint_in_half_precision_loads_as_fp32_when_nothing_is_asked(tmp_path: Path) -> None:
    lm = random_lm("llama", directory=tmp_path)
    lm.hf.to(torch.bfloat16).save_pretrained(tmp_path)
    assert models.load(str(tmp_path)).dtype == "fp32"


def test_loading_seeds_what_is_drawn_afterwards(saved: Callable[[str], Path]) -> None:
    def drawn(seed: int) -> float:
        models.load(str(saved("llama")), seed=seed)
        return float(torch.rand(()))

    assert drawn(3) == drawn(3) != drawn(4)


WAY_OUT = r"Expected a shipped model \(.*\), a directory written by save_pretrained, or a hub id"


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model '.*nowhere': there is no directory .*nowhere, no shipped model"):
        models.load(str(tmp_path / "nowhere"))


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=WAY_OUT):
        models.load(str(tmp_path))


def test_a_dtype_that_is_not_known_is_refused(llama_directory: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'float8'; expected one of fp32, fp16, bf16"):
        models.load(str(llama_directory), dtype="float8")


def test_an_attention_that_is_not_known_is_refused(llama_directory: Path) -> None:
    with pytest.raises(ModelError, match=rf"cannot load the model .*{WAY_OUT}"):
        models.load(str(llama_directory), attn="psychic")


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_truncated_weights_are_refused(llama_directory: Path, kept: float) -> None:
    weights = llama_directory / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
    with pytest.raises(ModelError, match=rf"cannot load the model .*{WAY_OUT}"):
        models.load(str(llama_directory))


def test_a_checkpoint_that_lacks_a_weight_is_refused(llama_directory: Path) -> None:
    weights = llama_directory / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weight\(s\).*: model\.layers\.1\.mlp\.up_proj\.weight"):
        models.load(str(llama_directory))


def test_tied_weights_lack_nothing(tmp_path: Path) -> None:
    hf = random_model("gpt2", 50)
    hf.config.tie_word_embeddings = True
    hf.tie_weights()
    hf.save_pretrained(tmp_path)
    toy_tokenizer("gpt2").save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path)).hf
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


OWN_CODE = """
import pathlib

pathlib.Path({mark!r}).write_text("ran")


def __getattr__(name):
    raise SystemExit("code of a model's folder was run")
"""


@pytest.mark.parametrize("file, key", [("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")])
def test_code_that_lies_beside_a_model_is_not_run_whatever_standard_input_says(
    llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, key: str
) -> None:
    mark, value = tmp_path / "ran", json.loads((llama_directory / file).read_text())
    of_key = ["own.Own", "own.Own"] if key == "AutoTokenizer" else "own.Own"
    classes = {"auto_map": {key: of_key, "AutoModelForCausalLM": "own.Own"}, "tokenizer_class": "Own"}
    (llama_directory / file).write_text(json.dumps(value | classes | {"model_type": "of_its_own"}))
    (llama_directory / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    monkeypatch.setattr("builtins.input", lambda *said: "y")
    job = {"model_dir": str(llama_directory), "dtype": "float32", "device": "cpu"}

    for load in (lambda: models.load(str(llama_directory)), lambda: driver.load_model(job, None)):
        with contextlib.suppress(ModelError, ValueError):  # of a tokenizer it may take the library's own class
            load()

    assert not mark.exists()


def test_what_a_config_says_is_known_without_loading(tmp_path: Path) -> None:
    write_text(
        tmp_path / "config.json", '{"text_config": {"vocab_size": 9, "n_layer": 3, "n_head": 2}, "num_heads": 7}'
    )
    assert on_disk.sizes(str(tmp_path)) == (3, 2)
    assert on_disk.sizes("tiny-llama") == (6, 4)
    assert on_disk.sizes("wired") == (None, None)
    with pytest.raises(ModelError, match=r"3 not in \[0, 2\] .*--edit-layer 1"):
        on_disk.require_layer(str(tmp_path), 3)
    with pytest.raises(ModelError, match=r"no directory .*/ours/nope, .*`hf download ours/nope`"):
        on_disk.folder_of("ours/nope")
