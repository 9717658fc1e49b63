"""What was really loaded: parts, sizes, dtypes, quantisation, placement, and how a block treats what its heads write.

Facts are asked of the modules, most of them while three tokens run through.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fvcore.model.hooks import read_blocks, watch_modules
from fvcore.model.model import DTYPES, LanguageModel, doubts, untested_in
from fvcore.provenance import versions

SHORT = {dtype: name for name, dtype in DTYPES.items()}
IDS = (1, 2, 3)


def diagnostics(lm: LanguageModel) -> dict[str, Any]:
    """JSON values by name. Runs the model once; raises what its code raises."""
    first = lm.head_layers[0]
    o_proj: Any = lm.o_proj(first)
    dtypes = Counter(SHORT.get(p.dtype, str(p.dtype).removeprefix("torch.")) for p in lm.hf.parameters())
    device_map = getattr(lm.hf, "hf_device_map", None)
    holder = lm.config if lm.tokenizer is None else lm.tokenizer
    return {
        "model_name": lm.name,
        "model_type": lm.hf.config.model_type,
        "model_spec": lm.spec.name,
        "spec_found_by": lm.spec.found_by,
        "blocks_path": lm.spec.blocks_path,
        "out_proj_path": lm.spec.out_proj_path(first),
        "out_proj_class": type(o_proj).__name__,
        "out_proj_weight_shape": list(o_proj.weight.shape),
        "out_proj_bias": getattr(o_proj, "bias", None) is not None,
        "n_layers": lm.n_layers,
        "n_heads": lm.n_heads,
        "n_kv_heads": lm.n_kv_heads,
        "head_dim": lm.d_head,
        "head_dims": list(lm.d_heads),
        "hidden_size": lm.d_model,
        "block_output": block_output(lm),
        "norm_after_attention": norm_after_attention(lm),
        "residual_multiplier": residual_multiplier(lm),
        "attn_implementation": lm.attn_implementation,
        "resolved_dtype": lm.dtype,
        "parameter_dtypes": dict(dtypes),
        "resolved_quant": lm.quant,
        "has_hf_device_map": device_map is not None,
        "resolved_device_map": {k: str(v) for k, v in device_map.items()} if device_map else {"": str(lm.device)},
        **{f"{name}_token_id": getattr(holder, f"{name}_token_id", None) for name in ("bos", "eos", "pad")},
        "warnings": [*doubts(lm), *caveats(lm)],
        "untested": {what: now for what, (_, now) in untested_in(lm).items()},
        "versions": versions(),
    }


@torch.inference_mode()
def block_output(lm: LanguageModel) -> str:
    """What blocks return: tensor, tuple, or mixed."""
    with read_blocks(lm, 1) as (_, tuples):
        lm.logits(lm.ids(IDS))
    return "mixed" if len(set(tuples)) > 1 else "tuple" if tuples[0] else "tensor"


@torch.inference_mode()
def norm_after_attention(lm: LanguageModel) -> str | None:
    """The module of the first block with heads, outside its attention, that changes what the attention puts out before it
    is added.

    None where the output projection writes to the residual stream as it is.
    """
    block, attention = lm.blocks[lm.head_layers[0]], lm.spec.attn_path_in_block
    projection = f"{attention}.{lm.spec.out_proj_path_in_attn}"
    seen: dict[str, dict[str, Tensor]] = {"input": {}, "output": {}}

    def see(name: str, side: str, tensor: Tensor | None, _: Mapping[str, Any]) -> None:
        if tensor is not None:
            seen[side][name] = tensor.clone()

    with watch_modules(block, see):
        lm.logits(lm.ids(IDS))
    written = seen["output"][projection]
    for name, taken in seen["input"].items():
        if not name or name.split(".")[0] == attention.split(".")[0]:
            continue
        # Dropout in eval mode takes it too, and hands it on as it was.
        if _same(taken, written) and not _same(seen["output"].get(name, written), written):
            return name
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.reshape(-1), other.reshape(-1))


def residual_multiplier(lm: LanguageModel) -> float:
    """What a block multiplies its attention's output with before it is added, where it names such a number."""
    return float(getattr(lm.blocks[0], "residual_multiplier", 1.0))


def caveats(lm: LanguageModel) -> list[str]:
    """What to know about a function vector of this model: its heads' outputs are not what reaches the residual stream."""
    return lm.once("caveats", lambda: "\n".join(_caveats(lm))).splitlines()


def _caveats(lm: LanguageModel) -> Iterator[str]:
    if without := [str(layer) for layer, width in enumerate(lm.d_heads) if not width]:
        yield (
            f"layers_without_heads: {', '.join(without)} have no {lm.spec.attn_path_in_block}.{lm.spec.out_proj_path_in_attn}; "
            "their means and effects are zeros, and none of them is ranked"
        )
    if len(widths := sorted({width for width in lm.d_heads if width})) > 1:
        yield (
            f"head_widths: {', '.join(map(str, widths))}, by layer; means are {widths[-1]} wide, zeros behind narrower heads"
        )
    if (norm := norm_after_attention(lm)) is not None:
        yield (
            f"post_attn_norm: {norm!r} stands between the output projection and the residual stream; the function vector "
            "is the projection's output, before that norm, as the reference defines it"
        )
    if (factor := residual_multiplier(lm)) != 1:
        yield (
            f"residual_multiplier: attention output is added {factor:g} times; the function vector is the projection's "
            "output, without that factor, as the reference defines it"
        )
