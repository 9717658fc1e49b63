"""`fvcore spec ...`: what a tokenizer and a model really are, on disk and in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fvcore.cli import app
from fvcore.embedded.random_models import random_lm, toy_tokenizer
from fvcore.formats import write_text
from fvcore.model.spec import ALIASES, MODEL_SPECS, ModelError
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.fast import engines
    from fvcore.model import audit
    from fvcore.model.model import LanguageModel, n_layers_on_disk, spec_on_disk


LLAMA = MODEL_SPECS["llama"]


def spec(*words: object) -> Result:
    runner = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"})
    return runner.invoke(app, ["spec", *map(str, words)])


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random_lm("llama", directory=tmp_path / "model")
    return tmp_path / "model"


# ---------------------------------------------------------------- BOS and padding


@pytest.mark.parametrize(
    ("bos", "eos", "first_is_bos", "policy"),
    [
        (None, 2, False, "none"),
        (1, 2, True, "tokenizer"),
        (2, 2, True, "tokenizer"),  # as OPT does it: the id says nothing, the first token does
        (2, 2, False, "none"),
        (1, 2, False, "manual"),
    ],
)
def test_what_the_tokenizer_does_is_asked_before_what_its_ids_say(
    bos: int | None, eos: int, first_is_bos: bool, policy: str
) -> None:
    assert audit.bos_policy(bos, eos, first_is_bos) == policy


@pytest.mark.parametrize(("pad", "eos", "policy"), [(0, 2, "pad_token"), (None, 2, "eos_token"), (None, None, "none")])
def test_padding_is_the_own_token_or_the_end_of_text(pad: int | None, eos: int | None, policy: str) -> None:
    assert audit.pad_policy(pad, eos) == policy


def test_a_bos_that_is_also_the_eos_and_is_prepended_counts() -> None:
    tokenizer = toy_tokenizer("bos")
    tokenizer.eos_token = "<s>"
    found = audit.bos_audit(tokenizer, LLAMA, "opt-like")

    assert found["bos_token_id"] == found["eos_token_id"] == found["first_ids"][0]
    assert (found["decision_bos_policy"], found["decision_prepend_bos"]) == ("tokenizer", True)


@pytest.mark.parametrize(
    ("kind", "policy", "prepends", "manual"),
    [("bos", "tokenizer", True, False), ("gpt2", "none", False, False), ("plain", "manual", False, True)],
)
def test_a_bos_that_nobody_inserts_is_not_prepended(kind: str, policy: str, prepends: bool, manual: bool) -> None:
    found = audit.bos_audit(toy_tokenizer(kind), LLAMA, kind)

    assert (found["decision_bos_policy"], found["decision_prepend_bos"]) == (policy, prepends)
    assert found["requires_manual_bos_injection"] == manual
    assert found["first_token_is_bos_add_special_tokens_true"] == prepends
    assert not found["first_token_is_bos_add_special_tokens_false"]


def test_a_spec_is_compared_with_what_the_tokenizer_does() -> None:
    for says, agrees in ((True, True), (False, False), (None, True)):
        found = audit.bos_audit(toy_tokenizer("bos"), LLAMA.changed(prepend_bos=says), "x")
        assert found["agrees_with_spec"] == agrees


# ---------------------------------------------------------------- audit


def test_an_audit_of_the_tokenizer_reads_no_weights(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    done = spec("audit", model, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output

    bos = read(tmp_path / "out", "bos_audit_llama.json")
    # The names of §6.5 of the milestone plans' audit.
    assert {
        "spec_key", "hf_model_id", "tokenizer_class", "tokenizer_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id",
        "first_token_is_bos_add_special_tokens_true", "first_token_is_bos_add_special_tokens_false", "decision_bos_policy",
        "decision_pad_policy", "decision_prepend_bos", "requires_manual_bos_injection",
    } <= set(bos)  # fmt: skip
    smoke = read(tmp_path / "out", "resolver_smoke_llama.json")
    assert (smoke["smoke_level"], smoke["deferred_to_m5b"]) == ("L1_tokenizer_only", True)
    assert smoke["blocks_ok"] is smoke["out_proj_ok"] is smoke["hook_ok"] is None
    assert smoke["derived_out_proj_paths"] == ["model.layers.0.self_attn.o_proj"]
    assert "decision_bos_policy" in done.output
    assert not (tmp_path / "out" / "diagnostics_llama.json").exists()


def test_an_audit_of_a_loaded_model_says_what_was_loaded(model: Path, tmp_path: Path) -> None:
    done = spec(
        "audit", model, "--loaded", "--dtype", "bf16", "--quant", "none", "--device", "cpu", "--out", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output

    facts = read(tmp_path / "out", "diagnostics_llama.json")
    assert {
        "model_name", "model_spec", "resolved_quant", "resolved_device_map", "resolved_dtype", "has_hf_device_map",
        "out_proj_class", "out_proj_path", "out_proj_weight_shape", "out_proj_bias", "n_layers", "n_heads", "n_kv_heads",
        "head_dim", "hidden_size", "block_output", "attn_implementation", "bos_token_id", "eos_token_id", "pad_token_id",
        "versions",
    } <= set(facts)  # fmt: skip
    assert set(facts["parameter_dtypes"]) == {"bf16"}
    smoke = read(tmp_path / "out", "resolver_smoke_llama.json")
    assert (smoke["checked_layer_indices"], smoke["last_dim"], smoke["hook_ok"]) == ([0, 1], 32, True)


def test_the_summary_has_one_row_for_each_model(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    random_lm("olmo2", "plain", directory=other)
    for path, words in ((model, []), (other, ["--loaded"]), (model, ["--loaded"])):
        assert spec("audit", path, "--out", tmp_path / "out", *words).exit_code == 0
    rows = read(tmp_path / "out", "summary.json")

    assert [(row["spec_key"], row["smoke_level"], row["resolver_ok"]) for row in rows] == [
        ("olmo2", "L2_model_loaded", True),
        ("llama", "L2_model_loaded", True),
    ]
    assert [row["prepend_bos"] for row in rows] == [False, True]
    assert "post_attn_norm" in rows[0]["warnings"][0]
    assert all((tmp_path / "out" / name).is_file() for row in rows for name in row["files"])


def test_the_plans_folder_is_there_for_the_asking(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert spec("audit", model, "--layout", "plan").exit_code == 0
    assert (tmp_path / "artifacts/model_spec_audit/bos_audit_llama.json").is_file()
    assert spec("audit", model).exit_code == 0
    assert (tmp_path / "reports/model_spec_audit/bos_audit_llama.json").is_file()
    with pytest.raises(ModelError, match="--layout: expected own or plan, found 'other'"):
        audit_folder("other")


def audit_folder(layout: str) -> Path:
    from fvcore.model.commands import _folder

    return _folder(None, layout)


def test_a_name_of_odd_characters_is_a_file_name() -> None:
    assert audit.file_name("bos_audit", "brand new (by structure)") == "bos_audit_brand_new_by_structure.json"


# ---------------------------------------------------------------- smoke


def test_smoke_takes_quant_none_and_writes_what_it_saw(model: Path, tmp_path: Path) -> None:
    done = spec("smoke", model, "--quant", "none", "--dtype", "fp32", "--device", "cpu", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    smoke = read(tmp_path / "out", "resolver_smoke_llama.json")
    assert (smoke["smoke_level"], smoke["blocks_ok"], smoke["out_proj_ok"]) == ("L2_model_loaded", True, True)
    assert (smoke["out_proj_class"], smoke["out_proj_weight_shape"]) == ("Linear", [32, 32])
    assert smoke["out_proj_bias_shape"] is None


def test_a_negative_smoke_shows_that_failures_are_told(model: Path, tmp_path: Path) -> None:
    done = spec("smoke", model, "--negative", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    smoke = read(tmp_path / "out", "resolver_smoke_llama.json")
    assert (smoke["blocks_ok"], smoke["out_proj_ok"]) == (True, False)
    assert (smoke["failed_segment"], smoke["exception_type"]) == ("no_such_part", "PartMissing")
    assert "missing 'no_such_part' at 'model.layers.0.self_attn'; found there: q_proj" in smoke["message"]


def test_a_resolver_that_told_no_failure_fails_the_negative_smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "require_parts", lambda hf, spec: None)
    assert not audit.resolver_smoke(random_lm("llama"), "x", negative=True).ok


def test_smoke_under_a_wrong_spec_writes_the_missing_part_and_fails(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    write_text(path, "blocks_path: model.blocks\nattn_path_in_block: self_attn\nout_proj_path_in_attn: o_proj\n")
    done = spec("smoke", model, "--spec", path, "--out", tmp_path / "out")
    assert done.exit_code == 1
    smoke = read(tmp_path / "out", "resolver_smoke_wrong.json")
    assert (smoke["failed_segment"], smoke["blocks_ok"], smoke["out_proj_ok"]) == ("blocks", False, None)
    assert "the model is" not in smoke["message"].lower()


def test_smoke_of_what_this_machine_cannot_load_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fvcore.model.placement.find_spec", lambda name: None)
    done = spec("smoke", model, "--quant", "4bit", "--out", tmp_path / "out")
    assert done.exit_code == 1
    smoke = read(tmp_path / "out", "resolver_smoke_llama.json")
    assert (smoke["exception_type"], smoke["failed_segment"]) == ("ModelError", None)
    assert "needs bitsandbytes" in smoke["message"]


def test_numbers_that_are_none_fail_the_smoke_and_name_dtype_and_quant() -> None:
    lm = random_lm("llama")
    with torch.no_grad():
        lm.hf.model.norm.weight.fill_(float("nan"))
    smoke = audit.resolver_smoke(lm, "x")
    assert (smoke.hook_ok, smoke.ok) == (False, False)
    assert "not finite with dtype fp32, quant none on cpu; use cpu, fp32, quant none for parity" in str(smoke.message)


def test_a_projection_that_nothing_runs_through_fails_the_smoke() -> None:
    lm = random_lm("llama")
    for block in lm.blocks:
        block.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)  # type: ignore[method-assign]
    smoke = audit.resolver_smoke(lm, "x")
    assert (smoke.exception_type, smoke.ok) == ("HookNeverFired", False)
    assert "the hook never fired" in str(smoke.message)


# ---------------------------------------------------------------- list and parity


def test_the_list_shows_every_spec_with_its_aliases() -> None:
    shown = spec("list").output
    assert all(name in shown for name in MODEL_SPECS)
    assert all(alias in shown for alias in ("pythia", "gpt-j", "llama3"))
    assert ALIASES


def test_reduced_parity_says_where_it_is() -> None:
    done = spec("parity", "tiny-llama", "--fv-src", "nowhere", "--help")
    assert done.exit_code == 2
    assert "run `fvparity spec parity` with the same words" in done.stderr


def test_a_loaded_models_spec_is_the_one_of_its_config(model: Path) -> None:
    assert spec_on_disk(str(model)).name == "llama"
    assert n_layers_on_disk(str(model)) == 2
    assert LanguageModel.wrap(random_lm("llama").hf).spec == spec_on_disk(str(model))


# ---------------------------------------------------------------- engines


def test_both_engines_are_compared_row_by_row(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = spec("engines", model, "--json")
    rows = json.loads(done.output)
    assert done.exit_code == 0
    assert {"the prompt itself", "a vector added behind layer 0"} <= {row["logits"] for row in rows}
    assert all(float(row["apart"]) <= float(row["allowed"]) for row in rows)

    monkeypatch.setattr(engines, "apart", lambda lm: iter([engines.Apart("the prompt itself", 0.5, 1e-5)]))
    apart = spec("engines", model)
    assert apart.exit_code == 1
    assert "a run takes exact in its place" in apart.output
