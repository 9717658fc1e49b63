"""A small model of a user's own: what a rewrite can get wrong is as it was, and a wrong one is caught on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fvcore.cli import app
from fvcore.embedded.random_models import AWKWARD_PAIRS, EVERY_FAMILY, random_lm, trials_for
from fvcore.formats import FormatError, sha256_file, write_json
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    from safetensors import SafetensorError
    from transformers import AutoConfig, PreTrainedModel

    from fvcore.embedded.random_models import of_config
    from fvcore.embedded.shrink import draw
    from fvcore.embedded.small_config import small_config
    from fvcore.model.model import LanguageModel, ModelError, load
    from fvcore.pipeline import Settings, run
    from fvcore.trials.fixed import write
    from pytest_fvparity.selftest.rig import Rig
    from pytest_fvparity.selftest.run import catalogue

SIXTEEN = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256}
EIGHT_B: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3": (
        {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 36},
        {"hidden_size": 40, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2},
    ),
    "llama": (
        {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256},
        {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 128256},
    ),
    "qwen2": (
        {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": True},
        {"hidden_size": 112, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "deepseek_v3": ({}, {"first_k_dense_replace": 1, "num_attention_heads": 8, "num_key_value_heads": 8}),
    "smollm3": ({}, {"no_rope_layers": [1, 0, 1, 0], "num_hidden_layers": 4}),
    "llama4_text": ({}, {"layer_types": ["chunked_attention", "full_attention"] * 2, "no_rope_layers": [1, 0, 1, 0]}),
    "gemma3_text": ({}, {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}),
    "gpt2": ({"n_embd": 1600, "n_head": 25, "n_layer": 48}, {"n_embd": 64, "n_head": 8, "n_layer": 2, "n_positions": 1024}),
    "phi": ({"partial_rotary_factor": 0.4, "hidden_size": 2560}, {"hidden_size": 128, "num_attention_heads": 8}),
    "gemma": (SIXTEEN | {"hidden_size": 3072, "num_key_value_heads": 1}, {"hidden_size": 48, "num_key_value_heads": 1}),
    "gemma2": (
        SIXTEEN | {"hidden_size": 3584, "query_pre_attn_scalar": 224},
        {"hidden_size": 56, "query_pre_attn_scalar": 7, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
}  # fmt: skip
"""A published model's sizes, by type, and what of them is in the small one."""

AT_KEYS = {
    "prompt_boundary": "F01",
    "slot_map": "F20",
    "mean_activations": "F29",
    "top_heads": "F38",
    "fv_vector": "F57",
}
AT_KEYS |= {"injection_output": "F63"}


@pytest.mark.parametrize("kind", EIGHT_B)
def test_ratios_and_kinds_are_those_of_the_large_model(kind: str) -> None:
    large, expected = EIGHT_B[kind]
    small = small_config(AutoConfig.for_model(kind, **large))
    assert {name: getattr(small, name) for name in expected} == expected
    assert small.vocab_size == AutoConfig.for_model(kind, **large).vocab_size


def test_the_parameters_of_rotations_are_kept_and_lists_of_them_are_as_long_as_a_head() -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled["original_max_position_embeddings"] = 8192
    assert small_config(AutoConfig.for_model("llama", rope_parameters=scaled)).rope_parameters == scaled
    listed = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": list(range(48))}
    listed["original_max_position_embeddings"] = 4096
    small = small_config(AutoConfig.for_model("phi3", rope_parameters=listed))
    assert [len(small.rope_parameters[name]) for name in ("short_factor", "long_factor")] == [4, 4]


def shrunk(family: str) -> tuple[LanguageModel, Any]:
    """The small one of a family's random model, with trials of that."""
    large = random_lm(family, pairs=AWKWARD_PAIRS)
    trials = trials_for(large, n_shots=4, seed=3, pairs=AWKWARD_PAIRS)
    hf = of_config(small_config(large.hf.config))
    draw(hf, sorted({trial.target_id for trial in trials.trials}), seed=0)
    return LanguageModel.wrap(hf, large.tokenizer, family), trials


@pytest.mark.parametrize("family", slow_but(("gpt2", "gemma2", "granite"), EVERY_FAMILY))
def test_effects_are_far_above_what_a_tolerance_allows(family: str) -> None:
    lm, trials = shrunk(family)
    made = run(lm, trials, Settings(edit_layer=0, n_top_heads=3))
    effects: Any = made["top_heads"]["cie"]
    assert effects.abs().max() > 500 * 4e-6
    assert effects.abs().median() > 50 * 4e-6
    for name, parameter in lm.hf.named_parameters():
        assert parameter.ndim == 0 or parameter.flatten()[1:].unique().numel() > 1, name


def test_a_fault_of_each_key_is_caught_at_its_key() -> None:
    lm, trials = shrunk("qwen3")
    rig = Rig.recorded(lm, trials, Settings(edit_layer=1, n_top_heads=3, engine="exact"))
    faults = catalogue()
    seen = {key: str(faults[id].observe(rig)) for key, id in AT_KEYS.items()}
    assert seen == {key: f"fails at {key}" for key in AT_KEYS}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's directory without its weights, and trials of it."""
    folder = tmp_path_factory.mktemp("large")
    lm = random_lm("llama", directory=folder / "model")
    write(folder / "trials.json", trials_for(lm).file)
    (folder / "model" / "model.safetensors").unlink()
    return folder


def shrink(*words: object) -> Any:
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(app, ["spec", "shrink", *map(str, words)])


def test_a_directory_without_weights_is_enough_and_the_bytes_are_the_seeds(large: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        done = shrink(large / "model", "--out", tmp_path / name, "--trials", large / "trials.json", "--seed", seed)
        assert done.exit_code == 0, done.output
    digests = [
        {file.name: sha256_file(file) for file in (tmp_path / name).iterdir()} for name in ("one", "two", "three")
    ]
    assert digests[0] == digests[1]
    assert {name for name in digests[0] if digests[0][name] != digests[2][name]} == {"model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "three"}
    lm = load(str(tmp_path / "one"))
    assert lm.tokenizer_sha == load_tokenizer_sha(large / "model")
    assert repr(lm) == "LanguageModel(one: llama, 2 layers, 4 heads, d_model 32, fp32 on cpu)"


def load_tokenizer_sha(folder: Path) -> str:
    from fvcore.model.model import load_tokenizer, tokenizer_digest

    return tokenizer_digest(load_tokenizer(str(folder)))


def test_what_is_there_is_not_written_over(large: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Exception, match="is there already; expected a folder to be made"):
        raise shrink(large / "model", "--out", tmp_path, "--trials", large / "trials.json").exception
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_said_in_a_sentence_that_names_the_folder(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(FormatError, match=r"small: cannot be written \(I/O error: No space left"):
        raise shrink(large / "model", "--out", tmp_path / "small", "--trials", large / "trials.json").exception
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "t5"}, "'t5' is no causal language model"),
        ({"model_type": "mamba"}, "no number of heads"),
        ({"model_type": "gemma3"}, "'gemma3' reads more than text"),
        ({"model_type": "mine"}, "cannot load the config of"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_by_a_sentence(
    tmp_path: Path, large: Path, config: dict[str, Any], said: str
) -> None:
    write_json(tmp_path / "it" / "config.json", config)
    for file in (large / "model").glob("tokenizer*"):
        (tmp_path / "it" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=said):
        raise shrink(tmp_path / "it", "--out", tmp_path / "small", "--trials", large / "trials.json").exception
    assert not (tmp_path / "small").exists()
