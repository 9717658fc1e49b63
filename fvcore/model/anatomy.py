"""Where a loaded model's parts are: its spec found, every path of it walked, every size compared.

Modules are found by their dotted paths, bound once, and never told apart by reading layer numbers out of names.
"""

import re
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


def stated(config: Any, name: str) -> Any:
    """What a config says under a name; None where it says nothing, or no one thing of all layers."""
    try:
        return getattr(config, name, None)
    except Exception:  # some configs raise errors of their own where layers differ
        return None


def head_widths(hf: nn.Module, spec: ModelSpec) -> tuple[int, ...]:
    """d_head of every layer: a head's share of what its output projection takes; 0 of a layer that has no such projection."""
    config, blocks = text_config(hf.config), _resolve(hf, spec.blocks_path, BLOCKS, spec)
    modules = {name for name, _ in blocks.named_modules()}
    n_heads, head_dim = int(config.num_attention_heads), stated(config, "head_dim")
    # Where a class does not say what it takes, what the config says, or a head's share of the residual stream.
    otherwise = n_heads * int(head_dim) if head_dim else int(config.hidden_size)

    def width(layer: str) -> int:
        path = f"{layer}.{spec.attn_path_in_block}.{spec.out_proj_path_in_attn}"
        return 0 if path not in modules else (in_width(blocks.get_submodule(path)) or otherwise) // n_heads

    return tuple(width(layer) for layer, _ in blocks.named_children())


def _explained(config: Any) -> set[int]:
    """Widths of a head that a config speaks of, under whichever name: keys and values, layers, may differ."""
    layers = stated(config, "per_layer_config") or ()
    of = [config, *(layers[layer] for layer in range(len(layers)))]
    names = {name for name in [*dir(type(config)), *vars(config)] if "head_dim" in name}
    return {value for one in of for name in names if type(value := stated(one, name)) is int}


def require_parts(hf: nn.Module, spec: ModelSpec) -> None:
    """Raise ModelError unless every part is where the spec says, and of the size that spec and config say."""
    n_layers = len(resolve_blocks(hf, spec))
    paths = [path for layer in range(n_layers) if _has(hf, path := spec.out_proj_path(layer))]
    if not paths:  # says what is missing where
        resolve_out_proj(hf, spec, 0)
    if spec.n_layers not in (None, n_layers):
        raise ModelError(
            f"Model block count mismatch with spec: spec='{spec.name}' expected={spec.n_layers} got={n_layers} "
            f"path={spec.blocks_path}"
        )
    config = text_config(hf.config)
    hidden, n_heads = (stated(config, name) for name in ("hidden_size", "num_attention_heads"))
    if not hidden or not n_heads:
        raise ModelError(f"Model config missing hidden_size or n_heads (spec '{spec.name}', {type(config).__name__})")
    if type(n_heads) is not int or type(hidden) is not int:
        raise ModelError(
            f"n_heads {n_heads} and hidden_size {hidden} of its config: expected one number for all layers"
        )
    if not _explained(config) and hidden % n_heads:
        raise ModelError(f"hidden_size must be divisible by n_heads: {hidden} and {n_heads} (spec '{spec.name}')")
    widths = sorted({width for width in head_widths(hf, spec) if width})
    for name, found in {"hidden_size": [hidden], "n_heads": [n_heads], "head_dim": widths}.items():
        if (expected := getattr(spec, name)) is not None and [expected] != found:
            got = ", ".join(map(str, found))
            raise ModelError(f"{name} mismatch with spec '{spec.name}': expected={expected} got={got}")
    known = (_explained(config) or {hidden // n_heads}) | ({spec.head_dim} if spec.head_dim else set())
    for path in paths:
        width = in_width(hf.get_submodule(path))
        if width is not None and (width % n_heads or width // n_heads not in known):
            heads = " or ".join(f"{n_heads} heads of {one} are {n_heads * one}" for one in sorted(known))
            raise ModelError(
                f"head_dim mismatch with spec '{spec.name}': {path} takes {width} numbers, and {heads}; is it the "
                "attention's output projection? If so, say head_dim in a spec file"
            )


def resolve_blocks(hf: nn.Module, spec: ModelSpec) -> nn.ModuleList:
    """The list of blocks. Raises PartMissing, as the two that follow, and ModelError where it is no list."""
    blocks = _resolve(hf, spec.blocks_path, BLOCKS, spec)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(f"Spec '{spec.name}': '{spec.blocks_path}' is a {type(blocks).__name__}, no list of blocks")
    return blocks


def resolve_attn(hf: nn.Module, spec: ModelSpec, layer: int) -> nn.Module:
    """The attention of a block."""
    return _resolve(hf, f"{spec.block_path(layer)}.{spec.attn_path_in_block}", "attn_path", spec)


def resolve_out_proj(hf: nn.Module, spec: ModelSpec, layer: int) -> nn.Module:
    """The output projection of a block's attention."""
    return _resolve(hf, spec.out_proj_path(layer), "out_proj path", spec)


def _has(root: nn.Module, path: str) -> bool:
    """Whether a dotted path leads to a module."""
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def max_tokens(hf: nn.Module) -> int | None:
    """How many tokens a model reads at most: what its config says, and what rows its table of positions has.

    None where neither says anything: positions that are computed, or none.
    """
    config = text_config(hf.config)
    places = [
        stated(config, name) for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_seq_length")
    ]
    tables = [
        module.num_embeddings - int(getattr(module, "offset", 0))  # OPT's kin keep the first rows for padding
        for name, module in hf.named_modules()
        if isinstance(module, nn.Embedding) and POSITIONS.search(name)
    ]
    return min((int(one) for one in [*places, *tables] if one), default=None)


POSITIONS = re.compile(r"(^|[._])(wpe|embed_positions|position_embeddings?|pos_embed\w*|positions_embed)$")
"""How a table with a row for each position is named."""


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
