"""Where a loaded model's parts are: its spec found, every path of it walked, every size compared.

Modules are found by their dotted paths, bound once, and never told apart by reading layer numbers out of names.
"""

from typing import Any

from torch import nn

from fvcore.model.spec import WRAPPED, ModelError, ModelSpec, PartMissing, placed, spec_found

BLOCKS = "blocks_path"
"""What errors call the path of the blocks."""


def text_config(config: Any) -> Any:
    """The config with the sizes of the decoder: a multimodal model keeps it inside its own."""
    get = getattr(config, "get_text_config", None)
    return get() if get else getattr(config, "text_config", config)


def types_of(config: Any) -> list[str]:
    """Model types to look a spec up by: the model's, then its text tower's."""
    return list(dict.fromkeys([config.model_type, text_config(config).model_type]))


def spec_in(hf: Any) -> ModelSpec:
    """The spec that fits a model: by its type, its text tower's type, or its structure."""
    types = types_of(hf.config)
    if getattr(hf.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{types[0]!r} is an encoder-decoder; expected a causal language model, which has a decoder alone"
        )
    return spec_found(types, {name for name, _ in hf.named_modules()})


def head_width(config: Any) -> int:
    """d_head: what the config says, else a head's share of the residual stream."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def require_parts(hf: nn.Module, spec: ModelSpec) -> None:
    """Raise ModelError unless every part is where the spec says, and of the size that spec and config say."""
    n_layers = len(list(resolve_blocks(hf, spec).children()))
    projections = [resolve_out_proj(hf, spec, layer) for layer in range(n_layers)]
    if spec.n_layers not in (None, n_layers):
        raise ModelError(
            f"Model block count mismatch with spec: spec='{spec.name}' expected={spec.n_layers} got={n_layers} "
            f"path={spec.blocks_path}"
        )
    config = text_config(hf.config)
    hidden, n_heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not hidden or not n_heads:
        raise ModelError(f"Model config missing hidden_size or n_heads (spec '{spec.name}', {type(config).__name__})")
    if not getattr(config, "head_dim", None) and hidden % n_heads:
        raise ModelError(f"hidden_size must be divisible by n_heads: {hidden} and {n_heads} (spec '{spec.name}')")
    for name, found in {"hidden_size": hidden, "n_heads": n_heads, "head_dim": head_width(config)}.items():
        if (expected := getattr(spec, name)) not in (None, found):
            raise ModelError(f"{name} mismatch with spec '{spec.name}': expected={expected} got={found}")
    width = n_heads * head_width(config)
    for layer, projection in enumerate(projections):
        if in_width(projection) not in (None, width):
            raise ModelError(
                f"head_dim mismatch with spec '{spec.name}': {spec.out_proj_path(layer)} takes {in_width(projection)} "
                f"numbers, and {n_heads} heads of {head_width(config)} are {width}; is it the attention's output projection?"
            )


def resolve_blocks(hf: nn.Module, spec: ModelSpec) -> nn.Module:
    """The module whose children are the blocks. Raises PartMissing, as the two that follow."""
    return _resolve(hf, spec.blocks_path, BLOCKS, spec)


def resolve_attn(hf: nn.Module, spec: ModelSpec, layer: int) -> nn.Module:
    """The attention of a block."""
    return _resolve(hf, f"{spec.block_path(layer)}.{spec.attn_path_in_block}", "attn_path", spec)


def resolve_out_proj(hf: nn.Module, spec: ModelSpec, layer: int) -> nn.Module:
    """The output projection of a block's attention."""
    return _resolve(hf, spec.out_proj_path(layer), "out_proj path", spec)


def in_width(module: Any) -> int | None:
    """How many numbers a linear module takes; None for a class that does not say."""
    found = getattr(module, "in_features", None) or getattr(module, "nx", None)
    return None if found is None else int(found)


def _resolve(root: nn.Module, path: str, label: str, spec: ModelSpec) -> nn.Module:
    """Walk a dotted path; the error names the missing part, where it was looked for, and what stands there."""
    module, walked = root, ""
    for part in path.split("."):
        children = dict(module.named_children())
        if part not in children:
            raise PartMissing(
                f"Spec '{spec.name}' failed to resolve {label} '{path}': missing '{part}' at '{walked or 'the model'}'; "
                f"found there: {', '.join(children) or 'nothing'}{_elsewhere(root, spec)}",
                part,
                label,
            )
        module, walked = children[part], f"{walked}.{part}".lstrip(".")
    return module


def _elsewhere(root: nn.Module, spec: ModelSpec) -> str:
    """The way out where the parts do lie at another known place: the model is wrapped."""
    found = [place.blocks_path for place in placed(spec, {name for name, _ in root.named_modules()})]
    if not found or found[0] == spec.blocks_path:
        return ""
    return (
        f". The model is wrapped: such blocks lie at '{found[0]}'. Give no spec and it is found, or one with that blocks_path "
        f"('{spec.name}{WRAPPED}' is {spec.name} inside a module `model`)"
    )
