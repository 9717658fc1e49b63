"""Where each model family keeps its decoder blocks and attention output projection.

This table is the only model-specific knowledge in the library. Everything else about a model (sizes, biases, what a
block returns, whether the tokenizer adds BOS) is asked of the loaded modules themselves.
"""

from __future__ import annotations

from dataclasses import dataclass


class ModelError(Exception):
    """A model or tokenizer cannot be loaded, or has no part where its spec says."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Dotted paths, as `torch.nn.Module.get_submodule` reads them."""

    name: str
    blocks_path: str
    attn_path_in_block: str
    out_proj_path_in_attn: str

    def out_proj_path(self, layer: int) -> str:
        return f"{self.block_path(layer)}.{self.attn_path_in_block}.{self.out_proj_path_in_attn}"

    def block_path(self, layer: int) -> str:
        return f"{self.blocks_path}.{layer}"


MODEL_SPECS = {
    spec.name: spec
    for spec in (
        ModelSpec("gpt2", "transformer.h", "attn", "c_proj"),
        ModelSpec("gptj", "transformer.h", "attn", "out_proj"),
        ModelSpec("gpt_neox", "gpt_neox.layers", "attention", "dense"),
        *(
            ModelSpec(model_type, "model.layers", "self_attn", "o_proj")
            for model_type in ("llama", "mistral", "qwen2", "qwen3")
        ),
    )
}


def spec_for(model_type: str) -> ModelSpec:
    """The spec of a `config.model_type`; raises ModelError naming the families there are."""
    try:
        return MODEL_SPECS[model_type]
    except KeyError:
        known = ", ".join(sorted(MODEL_SPECS))
        raise ModelError(
            f"no ModelSpec for model_type {model_type!r}; known: {known}. Add one line to fvcore/model_spec.py."
        ) from None
