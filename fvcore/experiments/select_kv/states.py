"""A state in a file: the slots of a prefix, saved from one run, put under any query by one call, or handed to PEFT.

`k.<layer>` and `v.<layer>` are (1, kv_heads, slot, d_head), keys rotated at the positions they stand for; what is to be known
of the slots and of the model stands beside the tensors. A state is of one model: another one's caches mean nothing to it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fvcore.experiments.select_kv.errors import SelectKVRuntimeError
from fvcore.experiments.select_kv.prefix import Prefix
from fvcore.experiments.select_kv.runtime import Layers, Runtime, RuntimeInfo
from fvcore.formats import FormatError, read_safetensors, safetensors_metadata, write_json, write_safetensors

FORMAT = "select-kv-state-1"
OF_MODEL = ("n_layers", "n_kv_heads", "d_head", "position_scheme", "rope_type")
"""What two models must share for one's cache to have a meaning, or at least a shape, in the other."""


def save(path: Path, prefix: Prefix, info: RuntimeInfo, about: Mapping[str, str] | None = None) -> Path:
    """Write a state; `about` is kept beside it, such as the sample it was chosen on."""
    slots = {one.name: getattr(prefix, one.name) for one in fields(prefix) if one.name != "layers"}
    model = {name: getattr(info, name) for name in ("model_id", "dtype", *OF_MODEL)}
    meta = {
        "format": FORMAT,
        "slots": json.dumps(slots),
        "model": json.dumps(model),
        "about": json.dumps(dict(about or {})),
    }
    pairs = enumerate(prefix.layers)
    tensors = {f"{part}.{layer}": tensor for layer, pair in pairs for part, tensor in zip("kv", pair, strict=True)}
    write_safetensors(path, tensors, meta)
    return path


def load(path: Path, info: RuntimeInfo | None = None) -> Prefix:
    """A state, on the device and in the dtype of the model that `info` describes.

    Raises FormatError for a file that holds no state, SelectKVRuntimeError for a state of another model.
    """
    tensors, meta = read_safetensors(path), safetensors_metadata(path)
    if meta.get("format") != FORMAT:
        raise FormatError(f"{path}: expected a state ({FORMAT}), found {meta.get('format', 'tensors without a word')}")
    model, slots = json.loads(meta["model"]), json.loads(meta["slots"])
    if info is not None:
        _require_model(path, model, info)
    layers = tuple((tensors[f"k.{layer}"], tensors[f"v.{layer}"]) for layer in range(model["n_layers"]))
    named: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in slots.items()}
    return Prefix(layers=_placed(layers, info), **named)


def about(path: Path) -> dict[str, str]:
    """What `save` was told of a state."""
    return dict(json.loads(safetensors_metadata(path).get("about", "{}")))


def ask(runtime: Runtime, path: Path, texts: Sequence[str]) -> Tensor:
    """(text, vocab): the logits of what follows each text on the state in a file."""
    prefix = load(path, runtime.info)
    return runtime.next_logits([tokens(runtime, text) for text in texts], prefix)


def say(runtime: Runtime, path: Path, text: str, n: int) -> str:
    """What the model goes on with, `n` likeliest tokens one after another, on the state in a file."""
    ids = runtime.greedy(tokens(runtime, text), load(path, runtime.info), n)
    return str(runtime.tokenizer.decode(list(ids)))


def tokens(runtime: Runtime, text: str) -> list[int]:
    """A query's tokens: the sink is in the state, and no other token of the tokenizer's own may come between."""
    return list(runtime.tokenizer(text, add_special_tokens=False).input_ids)


def to_cartridge(folder: Path, prefix: Prefix, info: RuntimeInfo) -> Path:
    """Write a state as an adapter of PEFT's type CARTRIDGE, which `PeftModel.from_pretrained` loads and can train on.

    Null slots are left out: PEFT shows every slot, and gives a query the position behind the last. Raises
    SelectKVRuntimeError where that is not the position that the state was made for, or where not every layer sees it.
    """
    visible = [slot for slot, shown in enumerate(prefix.mask) if shown]
    if prefix.next_position != len(visible) or prefix.visible_layers is not None:
        raise SelectKVRuntimeError(
            f"a cartridge's query stands at its number of slots in every layer: expected compact positions and all layers, "
            f"found {prefix.positioning_mode} ones, next {prefix.next_position} behind {len(visible)} slots"
            + ("" if prefix.visible_layers is None else f", in layers {list(prefix.visible_layers)} alone")
        )
    rows = [part[0, :, visible].transpose(0, 1).flatten(1) for pair in prefix.layers for part in pair]
    import torch

    write_safetensors(folder / "adapter_model.safetensors", {"prompt_embeddings": torch.cat(rows, dim=-1)})
    config = {
        "peft_type": "CARTRIDGE",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": info.model_id,
        "revision": info.revision,
        "inference_mode": True,
        "num_virtual_tokens": len(visible),
        "num_frozen_tokens": prefix.sink_len,
        "num_layers": info.n_layers,
        "num_attention_heads": info.n_kv_heads,
        "token_dim": info.n_kv_heads * info.d_head,
        "num_transformer_submodules": 1,
    }
    write_json(folder / "adapter_config.json", config)
    return folder


def _placed(layers: Layers, info: RuntimeInfo | None) -> Layers:
    from fvcore.model.placement import DTYPES

    if info is None:
        return layers
    return tuple((k.to(info.device, DTYPES[info.dtype]), v.to(info.device, DTYPES[info.dtype])) for k, v in layers)


def _require_model(path: Path, model: Mapping[str, Any], info: RuntimeInfo) -> None:
    other = {name: model[name] for name in OF_MODEL if model[name] != getattr(info, name)}
    # A directory has another path on another machine, and the same name.
    if Path(str(model["model_id"])).name != Path(info.model_id).name or other:
        told = "".join(f"; {name} {there!r} there, {getattr(info, name)!r} here" for name, there in other.items())
        raise SelectKVRuntimeError(
            f"{path}: a state of {model['model_id']}, and this model is {info.model_id}{told}. A cache means something to "
            "the model that filled it alone: load that one, or make the state again"
        )
