"""A state in a file is the state: the same answers, on other queries too, in this model alone, and in PEFT's form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fvcore.experiments.select_kv import files
from fvcore.experiments.select_kv.errors import SelectKVRuntimeError
from fvcore.formats import FormatError, read_json, read_jsonl, read_safetensors, write_safetensors
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.select_kv import states
    from tests.fvcore.experiments.select_kv.worlds import CLOSE, DEMO, QUERY, SELECTED, builder, read, runtime

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.prefix import Prefix


def some_prefix(family: str = "llama", sink: bool = True, **changes: object) -> Prefix:
    return builder(family, "gather", "compact", sink, **changes).build(read(family, sink), DEMO, SELECTED)


def test_a_state_comes_back_slot_by_slot_with_what_was_said_of_it(tmp_path: Path) -> None:
    prefix, info = some_prefix(), runtime("llama").info

    path = states.save(tmp_path / "one.safetensors", prefix, info, {"query": "Q: hot"})
    again = states.load(path, info)

    assert replace(again, layers=()) == replace(prefix, layers=())
    assert all(torch.equal(a, b) for mine, its in zip(prefix.layers, again.layers, strict=True) for a, b in zip(mine, its, strict=True))  # fmt: skip
    assert states.about(path) == {"query": "Q: hot"}
    assert path.read_bytes() == states.save(tmp_path / "two", prefix, info, {"query": "Q: hot"}).read_bytes()


def test_a_saved_state_answers_as_the_run_did_and_other_queries_of_its_relation(small_run: Path) -> None:
    from fvcore.experiments.select_kv.model_runtime import load_runtime
    from tests.select_kv_run import small_settings

    asked, rows = load_runtime(small_settings(small_run)), read_jsonl(small_run / files.ON_ROWS)
    path = small_run / files.state(rows[0]["sample_id"])

    (own,) = states.ask(asked, path, [rows[0]["query_text"]])
    assert (int(own.argmax()) in rows[0]["answer_ids"]) is rows[0]["arms"]["select"]["hit"]
    assert states.say(asked, path, rows[0]["query_text"], 1).strip() == rows[0]["answer"]
    # 18 relations are asked in turn: sample 18 is of the first one's.
    (other,) = states.ask(asked, path, [rows[18]["query_text"]])
    assert int(other.argmax()) in rows[18]["answer_ids"]


def test_a_state_of_another_model_or_of_none_is_refused(tmp_path: Path) -> None:
    path = states.save(tmp_path / "one.safetensors", some_prefix(), runtime("llama").info)

    renamed = replace(runtime("llama").info, model_id="somewhere/else")
    with pytest.raises(SelectKVRuntimeError, match=r"a state of .*, and this model is somewhere/else"):
        states.load(path, renamed)
    with pytest.raises(SelectKVRuntimeError, match="d_head"):
        states.load(path, replace(runtime("llama").info, d_head=2 * runtime("llama").info.d_head))
    write_safetensors(tmp_path / "plain.safetensors", {"k.0": torch.ones(1)})
    with pytest.raises(FormatError, match="expected a state"):
        states.load(tmp_path / "plain.safetensors")


def test_a_cartridge_holds_the_slots_that_are_seen_and_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    prefix, info = some_prefix(prefix_len=12), runtime("llama").info
    assert prefix.null_len == 12 - len(SELECTED)

    states.to_cartridge(tmp_path, prefix, info)

    config, held = read_json(tmp_path / "adapter_config.json"), read_safetensors(tmp_path / "adapter_model.safetensors")
    n = 1 + len(SELECTED)
    assert (config["num_virtual_tokens"], config["num_frozen_tokens"]) == (n, 1)
    rows = held["prompt_embeddings"].view(n, info.n_layers, 2, info.n_kv_heads, info.d_head)
    keys, values = prefix.layers[1]
    shown = [slot for slot, seen in enumerate(prefix.mask) if seen]
    assert torch.equal(rows[:, 1, 0].transpose(0, 1), keys[0, :, shown])
    assert torch.equal(rows[:, 1, 1].transpose(0, 1), values[0, :, shown])

    absolute = builder("llama", "gather", "absolute", True).build(read("llama", True), DEMO, SELECTED)
    for other in (absolute, replace(prefix, visible_layers=(0,))):
        with pytest.raises(SelectKVRuntimeError, match="expected compact positions and all layers"):
            states.to_cartridge(tmp_path, other, info)


@pytest.mark.filterwarnings("ignore")
def test_peft_says_on_the_cartridge_what_the_model_says_on_the_state(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    prefix, asked = some_prefix(prefix_len=12), runtime("llama")
    expected = asked.next_logits([QUERY], prefix)[0]

    model = peft.PeftModel.from_pretrained(asked.lm.hf, states.to_cartridge(tmp_path, prefix, asked.info))
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([QUERY])).logits[0, -1]

    assert float((found - expected).abs().max()) < CLOSE
