"""A spec is found by name, by type, by structure or in a file, and every way to get it wrong has its message."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore import provenance
from fvcore.embedded.random_models import random_lm, random_model, toy_tokenizer
from fvcore.formats import FormatError, write_text
from fvcore.model import spec as specs
from fvcore.model.spec import ALIASES, HF_IDS, MODEL_SPECS, ModelSpec, spec_named
from tests.late import RUNNING

if RUNNING:
    import torch
    from torch import nn
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        CLIPVisionConfig,
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        T5Config,
        T5EncoderModel,
    )

    from fvcore.fast.engines import why_not_fast
    from fvcore.model import model as models
    from fvcore.model import placement
    from fvcore.model.hooks import read_heads
    from fvcore.model.model import LanguageModel, ModelError
    from fvcore.model.placement import Placement
    from fvcore.model.tokenizer import bos_left_out


PATHS = {"blocks_path": "model.layers", "attn_path_in_block": "self_attn", "out_proj_path_in_attn": "o_proj"}


def spec_file(folder: Path, **fields: Any) -> Path:
    path = folder / "mine.yaml"
    write_text(path, "".join(f"{name}: {value}\n" for name, value in (PATHS | fields).items() if value is not None))
    return path


if RUNNING:

    class Inside(nn.Module):
        """A model inside a module, as adapters make it."""

        def __init__(self, hf: Any, name: str = "model", model_type: str | None = None) -> None:
            super().__init__()
            self.config = hf.config
            self.add_module(name, hf)
            if model_type:
                self.config.model_type = model_type

        def forward(self, **given: Any) -> Any:
            return next(self.children())(**given)


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("llama", "llama"),
        ("GPT2-XL", "gpt2"),
        ("gpt-j-6b", "gptj"),
        ("Pythia", "gpt_neox"),
        ("gpt-neox", "gpt_neox"),
        ("LLaMA3", "llama"),
        ("meta-llama/Llama-3.1-8B", "llama"),
        ("google/gemma-2-2b", "gemma2"),
    ],
)
def test_a_name_is_a_key_an_alias_or_an_id_of_the_hub(name: str, family: str) -> None:
    spec = spec_named(name)
    assert (spec.name, spec.paths) == (family, MODEL_SPECS[family].paths)


def test_aliases_are_lower_case_and_stand_for_families() -> None:
    assert set(ALIASES.values()) | set(HF_IDS.values()) <= set(MODEL_SPECS)
    assert all(alias == alias.lower() for alias in ALIASES)
    assert not set(ALIASES) & set(MODEL_SPECS)
    assert set(HF_IDS.values()) == set(MODEL_SPECS)


@pytest.mark.parametrize("name", ["llama-but-longer", "my-gpt2", "", "bert"])
def test_a_part_of_a_name_is_no_name(name: str) -> None:
    with pytest.raises(ModelError) as error:
        spec_named(name)
    assert f"Unsupported model spec: {name!r}" in str(error.value)
    assert ", ".join(sorted(MODEL_SPECS)) in str(error.value)


def test_a_wrapped_spec_has_the_name_of_the_bare_one() -> None:
    assert spec_named("llama3_wrapped").paths == ("model.model.layers", "self_attn", "o_proj")


# ---------------------------------------------------------------- by place and structure


@pytest.mark.parametrize("wrapper", ["model", "module"])
def test_a_wrapped_model_is_found_at_its_longer_path(wrapper: str) -> None:
    hf = random_model("gpt2", 40)
    lm = LanguageModel.wrap(Inside(hf, wrapper))

    assert (lm.spec.name, lm.spec.blocks_path) == ("gpt2", f"{wrapper}.transformer.h")
    assert lm.o_proj(1) is hf.transformer.h[1].attn.c_proj
    with read_heads(lm) as heads:
        lm.logits(lm.ids(range(5)))
    assert heads[1].shape == (1, 5, 4, 8)


def test_the_spec_of_the_bare_model_on_a_wrapped_one_says_what_is_there_and_what_to_do() -> None:
    with pytest.raises(ModelError) as error:
        LanguageModel.wrap(Inside(random_model("llama", 40)), spec="llama3")
    message = str(error.value)
    assert "Spec 'llama' failed to resolve blocks_path 'model.layers': missing 'layers' at 'model'" in message
    assert "found there: model, lm_head" in message
    assert "such blocks lie at 'model.model.layers'" in message
    assert "llama_wrapped" in message
    assert LanguageModel.wrap(Inside(random_model("llama", 40)), spec="llama_wrapped").n_layers == 2


VISION = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def text_sizes(n_tokens: int) -> dict[str, Any]:
    return {
        "vocab_size": n_tokens, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "initializer_range": 0.3, "head_dim": 12,
    }  # fmt: skip


def llava(n_tokens: int) -> Any:
    config = LlavaConfig(
        text_config=LlamaConfig(**text_sizes(n_tokens)), vision_config=CLIPVisionConfig(**VISION), image_token_index=3
    )
    return LlavaForConditionalGeneration(config)


def gemma3(n_tokens: int) -> Any:
    config = Gemma3Config(
        text_config=text_sizes(n_tokens) | {"sliding_window": 8}, vision_config=VISION, mm_tokens_per_image=4
    )
    return Gemma3ForConditionalGeneration(config)


@pytest.mark.parametrize(("make", "family"), [(llava, "llama"), (gemma3, "gemma3_text")])
def test_the_text_tower_of_a_multimodal_model_is_a_model(make: Any, family: str, tmp_path: Path) -> None:
    tokenizer = toy_tokenizer("bos")
    torch.manual_seed(0)
    hf = make(len(tokenizer))
    lm = LanguageModel.wrap(hf, tokenizer)

    assert (lm.spec.name, lm.spec.blocks_path) == (family, "model.language_model.layers")
    assert (lm.n_layers, lm.n_heads, lm.d_head, lm.d_model) == (3, 4, 12, 32)  # the text's, not the images'
    assert lm.vocab_size == len(tokenizer)
    assert lm.o_proj(2) is hf.model.language_model.layers[2].self_attn.o_proj
    assert why_not_fast(lm) == ""
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert models.load(str(tmp_path)).weights_sha == lm.weights_sha


def test_an_unknown_type_is_found_by_structure_and_says_so() -> None:
    hf = random_model("llama", 40)
    hf.config.model_type = "brand_new"
    lm = LanguageModel.wrap(hf)

    assert (lm.spec.name, lm.spec.found_by) == ("brand_new (by structure)", "structure")
    assert lm.spec.paths == MODEL_SPECS["llama"].paths


def test_two_places_that_fit_are_not_chosen_between() -> None:
    hf = random_model("llama", 40)
    hf.transformer = random_model("gpt2", 40).transformer
    hf.config.model_type = "two_headed"
    with pytest.raises(ModelError, match=r"transformer\.h / attn / c_proj") as error:
        LanguageModel.wrap(hf)
    assert "model.layers / self_attn / o_proj" in str(error.value)
    assert "exactly one known place must fit" in str(error.value)


def test_an_unknown_architecture_names_the_known_ones_and_the_ways_out() -> None:
    hf = T5EncoderModel(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    hf.config.is_encoder_decoder = False
    with pytest.raises(ModelError) as error:
        LanguageModel.wrap(hf)
    message = str(error.value)
    assert "no ModelSpec for model_type 't5'" in message
    assert ", ".join(sorted(MODEL_SPECS)) in message
    assert "of those these do: none" in message
    assert "into a YAML file" in message
    assert "fvcore/model/spec.py" in message


def test_an_encoder_decoder_is_no_causal_model_although_its_decoder_looks_like_one() -> None:
    config = BartConfig(
        vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16,
    )  # fmt: skip
    hf = BartForConditionalGeneration(config)
    assert hf.get_submodule("model.decoder.layers.0.self_attn.out_proj") is not None
    with pytest.raises(ModelError, match="'bart' is an encoder-decoder; expected a causal language model"):
        LanguageModel.wrap(hf)


# ---------------------------------------------------------------- files


def test_a_file_is_a_spec(tmp_path: Path) -> None:
    spec = specs.spec_of(str(spec_file(tmp_path, prepend_bos="true", n_layers=2, device_map="auto")))

    assert spec == ModelSpec(
        name="mine", **PATHS, prepend_bos=True, n_layers=2, device_map="auto", found_by="file mine.yaml"
    )
    assert LanguageModel.wrap(random_model("llama", 20), spec=spec).spec is spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_path_in_block": None}, "missing key 'attn_path_in_block'"),
        ({"blocks_path": "''"}, "key 'blocks_path': expected names joined by dots (found '')"),
        ({"out_proj_path_in_attn": "o_proj."}, "key 'out_proj_path_in_attn': expected names joined by dots"),
        ({"prepend_bos": "'yes'"}, "key 'prepend_bos': input should be a valid boolean (found 'yes')"),
        ({"blocks": "model.layers"}, "unknown key 'blocks'"),
        ({"n_layers": 0}, "key 'n_layers': input should be greater than or equal to 1 (found 0)"),
        ({"dtype": "float32"}, "key 'dtype': input should be 'fp32', 'fp16' or 'bf16' (found 'float32')"),
        ({"quantization": "2bit"}, "key 'quantization': input should be 'none', '8bit' or '4bit' (found '2bit')"),
    ],
)
def test_a_wrong_file_names_the_field(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = spec_file(tmp_path, **fields)
    with pytest.raises(FormatError) as error:
        specs.read_spec(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "Fields: name, blocks_path" in str(error.value)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "list.yaml", "- model.layers\n")
    with pytest.raises(FormatError, match="expected a mapping of a ModelSpec's fields, found list"):
        specs.read_spec(tmp_path / "list.yaml")
    with pytest.raises(FormatError, match="no such file"):
        specs.spec_of(str(tmp_path / "absent.yaml"))


def test_a_file_of_another_ending_says_how_a_spec_file_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "spec.json", "{}")
    with pytest.raises(ModelError, match=r"a spec file ends in \.yaml or \.yml"):
        specs.spec_of(str(tmp_path / "spec.json"))


def test_a_tokenizer_of_a_known_release_without_its_bos_is_named() -> None:
    class Early:
        bos_token, bos_token_id, eos_token_id = "<|begin_of_text|>", 128000, 128001

        def __init__(self, adds: bool) -> None:
            self.adds = adds

        def __len__(self) -> int:
            return 128256

        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            return SimpleNamespace(input_ids=[128000] * (self.adds and add_special_tokens) + [48, 25])

    assert "the tokenizer of Llama 3, whose models were trained behind '<|begin_of_text|>'" in bos_left_out(
        Early(False)
    )
    assert bos_left_out(Early(True)) == ""
    assert bos_left_out(toy_tokenizer("plain")) == ""


def test_the_file_knows_the_words_that_loading_knows() -> None:
    fields = specs.SpecFile.model_json_schema()["properties"]
    assert fields["dtype"]["anyOf"][0]["enum"] == list(placement.DTYPES)
    assert fields["quantization"]["anyOf"][0]["enum"] == list(placement.QUANTS)


# ---------------------------------------------------------------- a spec against the model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": 3}, "Model block count mismatch with spec: spec='mine' expected=3 got=2 path=model.layers"),
        ({"n_heads": 8}, "n_heads mismatch with spec 'mine': expected=8 got=4"),
        ({"head_dim": 16}, "head_dim mismatch with spec 'mine': expected=16 got=8"),
        ({"hidden_size": 64}, "hidden_size mismatch with spec 'mine': expected=64 got=32"),
        (
            {"attn_path_in_block": "mlp", "out_proj_path_in_attn": "down_proj"},
            "model.layers.0.mlp.down_proj takes 64 numbers, and 4 heads of 8 are 32; is it the attention's output projection?",
        ),
    ],
)
def test_sizes_that_are_stated_must_be_the_models(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        LanguageModel.wrap(random_model("llama", 20), spec=str(spec_file(tmp_path, **fields)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 32}, "Model config missing hidden_size or n_heads (spec 'llama', SimpleNamespace)"),
        ({"num_attention_heads": 4}, "Model config missing hidden_size or n_heads"),
        ({"hidden_size": 32, "num_attention_heads": 5}, "hidden_size must be divisible by n_heads: 32 and 5"),
    ],
)
def test_a_config_without_usable_sizes_is_refused(sizes: dict[str, int], message: str) -> None:
    hf = Inside(random_model("llama", 20))
    hf.config = SimpleNamespace(model_type="llama", **sizes)
    with pytest.raises(ModelError) as error:
        LanguageModel.wrap(hf)
    assert message in str(error.value)


@pytest.mark.parametrize(("kind", "says"), [("bos", False), ("gpt2", True)])
def test_a_spec_that_contradicts_the_tokenizer_about_bos_is_refused(tmp_path: Path, kind: str, says: bool) -> None:
    lm = random_lm("llama", kind, directory=tmp_path / "model")
    right = models.load(str(tmp_path / "model"), spec=str(spec_file(tmp_path, prepend_bos=str(not says).lower())))
    assert right.spec.prepend_bos is not says
    with pytest.raises(ModelError) as error:
        models.load(str(tmp_path / "model"), spec=str(spec_file(tmp_path, prepend_bos=str(says).lower())))
    message, first = str(error.value), lm.tokenizer("Q: a").input_ids[:4]
    assert f"prepend_bos = {str(says).lower()}, and the tokenizer adds {'no' if says else 'a'} BOS" in message
    assert f"first ids of 'Q: a': {first}, bos id {lm.tokenizer.bos_token_id}" in message
    assert "add_special_tokens=True" in message


# ---------------------------------------------------------------- how it is loaded


def test_what_is_not_asked_is_the_specs_then_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: object())
    spec = ModelSpec(name="mine", **PATHS, dtype="bf16", device_map="auto")

    assert Placement.of(None, None, None, None, None) == Placement("fp32", "cpu", None, "none")
    assert Placement.of(spec, None, None, None, None) == Placement("bf16", "cpu", "auto", "none")
    assert Placement.of(spec, "fp16", "cpu", None, "none") == Placement("fp16", "cpu", None, "none")
    assert Placement.of(spec, None, None, "balanced", None).options()["device_map"] == "balanced"


def test_a_specs_dtype_is_loaded_unless_another_is_asked(tmp_path: Path) -> None:
    random_lm("llama", directory=tmp_path / "model")
    path = str(spec_file(tmp_path, dtype="bf16"))

    assert models.load(str(tmp_path / "model"), spec=path).dtype == "bf16"
    assert models.load(str(tmp_path / "model"), spec=path, dtype="fp32").dtype == "fp32"


@pytest.mark.parametrize(
    ("asked", "here", "message"),
    [
        ({"quant": "4bit"}, (), "quant 4bit needs bitsandbytes, which is not installed: `pip install bitsandbytes`"),
        ({"quant": "8bit"}, ("bitsandbytes",), "quant 8bit needs accelerate, which is not installed"),
        ({"quant": "4bit"}, ("bitsandbytes", "accelerate"), "quant 4bit needs a CUDA device and this machine has none"),
        ({"quant": "int3"}, (), "unknown quant 'int3'; expected one of none, 8bit, 4bit"),
        ({"device_map": "auto"}, (), "device_map 'auto' needs accelerate, which is not installed"),
        ({"device_map": "auto", "device": "cpu"}, (), "two answers to one question"),
    ],
)
def test_what_this_machine_cannot_do_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], here: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: object() if name in here else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError) as error:
        models.load("tiny-llama", **asked)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert (
        "unknown" in message or "two answers" in message or "use cpu, fp32, quant none for parity" in str(error.value)
    )


def test_quantised_weights_are_made_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **given: made.append(given))
    found = Placement.of(None, "bf16", "cuda:1", None, "4bit")

    assert found.options()["device_map"] == {"": "cuda:1"}
    assert made == [
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }
    ]
    with pytest.raises(ModelError, match="runs on a CUDA device, and device is cpu"):
        Placement.of(None, None, None, None, "8bit")


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert Placement.of(None, None, "auto", None, None).device == device


def test_a_model_that_does_not_load_says_what_was_asked_for(tmp_path: Path) -> None:
    random_lm("llama", directory=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"Asked for: dtype bf16, quant none, device cpu; use cpu, fp32, quant none"):
        models.load(str(tmp_path), dtype="bf16")


@pytest.mark.parametrize(
    ("config", "quant"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({}, "quantised"),
        (None, "none"),
    ],
)
def test_the_profile_says_which_quantisation_was_loaded(config: dict[str, Any] | None, quant: str) -> None:
    hf = random_model("llama", 20)
    if config is not None:
        hf.config.quantization_config = config
    lm = LanguageModel.wrap(hf)

    assert lm.quant == quant
    assert any("quantised" in sentence for sentence in models.doubts(lm)) == (quant != "none")


# ---------------------------------------------------------------- what was tested


def test_a_family_or_a_version_that_was_not_tested_is_said_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers

    version, written = transformers.__version__, tmp_path / "tested.json"
    minor = provenance.minor_of(version)

    def said(families: str, tested: str) -> dict[str, tuple[str, str]]:
        write_text(written, f'{{"families": [{families}], "transformers": ["{tested}"]}}')
        provenance.tested.cache_clear()
        return provenance.untested("llama", version, written)

    assert said('"llama"', minor) == {}
    assert said('"gpt2"', minor) == {"untested family": ("1 in docs/support.md", "llama")}
    assert said('"llama"', "4.1") == {"untested transformers": ("4.1", version)}
    written.unlink()
    provenance.tested.cache_clear()
    assert provenance.untested("llama", version, written) == {}
    monkeypatch.setattr(models, "untested", lambda family, version: {"untested family": ("none", family)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = models.load("tiny-llama")
    assert models.untested_in(lm) == {"untested family": ("none", "llama")}
