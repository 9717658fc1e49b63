"""Where each model family keeps its decoder blocks and attention output projection.

This table is the only model-specific knowledge in the library. Everything else about a model (sizes, biases, what a
block returns, whether the tokenizer adds BOS) is asked of the loaded modules themselves.

A spec is found by `config.model_type`; a type that is not in the table, by structure: the one known place where the model
does have blocks with an output projection. Wrapped models and the text towers of multimodal ones keep the same parts
under a longer path.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any


class ModelError(Exception):
    """A model or tokenizer cannot be loaded, or has no part where its spec says."""


class PartMissing(ModelError):
    """A path of a spec leads nowhere: `part` is what is missing, `label` which path it is of."""

    def __init__(self, message: str, part: str, label: str) -> None:
        super().__init__(message)
        self.part, self.label = part, label


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Dotted paths, as `torch.nn.Module.get_submodule` reads them, and what a user may state beside them.

    Sizes are compared with the model's and never used in their place, `prepend_bos` with what the tokenizer does.
    `dtype`, `device_map` and `quantization` are defaults of loading, below options and above the library's.
    """

    name: str
    blocks_path: str
    attn_path_in_block: str
    out_proj_path_in_attn: str
    prepend_bos: bool | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    head_dim: int | None = None
    hidden_size: int | None = None
    dtype: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    quantization: str | None = None
    found_by: str = "model_type"

    def out_proj_path(self, layer: int) -> str:
        return f"{self.block_path(layer)}.{self.attn_path_in_block}.{self.out_proj_path_in_attn}"

    def block_path(self, layer: int) -> str:
        return f"{self.blocks_path}.{layer}"

    @property
    def paths(self) -> tuple[str, str, str]:
        return self.blocks_path, self.attn_path_in_block, self.out_proj_path_in_attn

    @property
    def defaults(self) -> dict[str, Any]:
        """What it says about loading, if anything."""
        said = {"dtype": self.dtype, "device_map": self.device_map, "quantization": self.quantization}
        return {name: value for name, value in said.items() if value is not None}


MODEL_SPECS = {
    spec.name: spec
    for spec in (
        ModelSpec("gpt2", "transformer.h", "attn", "c_proj"),
        ModelSpec("gpt_neo", "transformer.h", "attn.attention", "out_proj"),
        ModelSpec("gptj", "transformer.h", "attn", "out_proj"),
        ModelSpec("gpt_neox", "gpt_neox.layers", "attention", "dense"),
        *(
            ModelSpec(model_type, "model.layers", "self_attn", "o_proj")
            for model_type in (
                "llama",
                "mistral",
                "mixtral",
                "qwen2",
                "qwen3",
                "gemma",
                "gemma2",
                "gemma3_text",
                "olmo",
                "olmo2",
                "phi3",
                "starcoder2",
                "granite",
                "cohere",
                "stablelm",
            )
        ),
        ModelSpec("phi", "model.layers", "self_attn", "dense"),
        ModelSpec("opt", "model.decoder.layers", "self_attn", "out_proj"),
        ModelSpec("falcon", "transformer.h", "self_attention", "dense"),
        ModelSpec("bloom", "transformer.h", "self_attention", "dense"),
    )
}

ALIASES = {
    "gpt2-small": "gpt2", "gpt2-medium": "gpt2", "gpt2-large": "gpt2", "gpt2-xl": "gpt2", "gpt2_xl": "gpt2",
    "gpt-neo": "gpt_neo", "gptneo": "gpt_neo",
    "gpt-j": "gptj", "gpt-j-6b": "gptj",
    "neox": "gpt_neox", "gpt-neox": "gpt_neox", "gpt-neox-20b": "gpt_neox", "pythia": "gpt_neox",
    "llama2": "llama", "llama-2": "llama", "llama3": "llama", "llama-3": "llama", "llama3.1": "llama",
    "llama-3.1": "llama", "llama3.2": "llama", "llama-3.2": "llama",
    "mistral-nemo": "mistral", "qwen2.5": "qwen2", "qwen-2": "qwen2", "qwen-3": "qwen3",
    "gemma-2": "gemma2", "gemma3": "gemma3_text", "gemma-3": "gemma3_text", "olmo-2": "olmo2",
    "phi1.5": "phi", "phi-1.5": "phi", "phi2": "phi", "phi-2": "phi", "phi-3": "phi3", "phi4": "phi3", "phi4-mini": "phi3",
    "starcoder-2": "starcoder2", "command-r": "cohere",
}  # fmt: skip
"""Other names, in lower case."""

HF_IDS = {
    "openai-community/gpt2": "gpt2", "openai-community/gpt2-xl": "gpt2", "EleutherAI/gpt-neo-1.3B": "gpt_neo",
    "EleutherAI/gpt-j-6b": "gptj", "EleutherAI/gpt-neox-20b": "gpt_neox", "EleutherAI/pythia-6.9b": "gpt_neox",
    "meta-llama/Llama-2-7b-hf": "llama", "meta-llama/Meta-Llama-3-8B": "llama", "meta-llama/Llama-3.1-8B": "llama",
    "meta-llama/Llama-3.2-1B": "llama", "mistralai/Mistral-7B-v0.1": "mistral",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral", "Qwen/Qwen2.5-7B": "qwen2", "Qwen/Qwen3-8B": "qwen3",
    "google/gemma-7b": "gemma", "google/gemma-2-2b": "gemma2", "google/gemma-3-1b-pt": "gemma3_text",
    "allenai/OLMo-7B-hf": "olmo", "allenai/OLMo-2-1124-7B": "olmo2", "microsoft/phi-2": "phi",
    "microsoft/Phi-3-mini-4k-instruct": "phi3", "microsoft/Phi-4-mini-instruct": "phi3",
    "bigcode/starcoder2-7b": "starcoder2", "ibm-granite/granite-3.1-8b-base": "granite",
    "CohereForAI/c4ai-command-r-v01": "cohere", "stabilityai/stablelm-2-1_6b": "stablelm", "facebook/opt-6.7b": "opt",
    "tiiuae/falcon-7b": "falcon", "bigscience/bloom-7b1": "bloom",
}  # fmt: skip
"""Ids on the hub that stand for a family."""

WRAPPED = "_wrapped"
"""A spec's name with this ending is the same spec for a model that lies in a module `model`."""

WRAPPERS = ("model", "module", "base_model.model")
TOWERS = ("model.language_model", "language_model.model", "language_model", "model.text_model")


def known() -> str:
    return ", ".join(sorted(MODEL_SPECS))


def spec_named(name: str) -> ModelSpec:
    """The spec a person names: by key, by alias in lower case, by an id of the hub. `<name>_wrapped` is its wrapped form."""
    key = name if name in MODEL_SPECS else ALIASES.get(name.lower(), HF_IDS.get(name, name.lower()))
    if key in MODEL_SPECS:
        return replace(MODEL_SPECS[key], found_by="name")
    if key.endswith(WRAPPED):
        bare = spec_named(name[: -len(WRAPPED)])
        return replace(bare, name=f"{bare.name}{WRAPPED}", blocks_path=f"{WRAPPERS[0]}.{bare.blocks_path}")
    raise ModelError(f"Unsupported model spec: {name!r}; supported: {known()}; or a YAML file with the paths")


def places(blocks_path: str) -> Iterator[str]:
    """Where a family's blocks may lie: as the table says, in a wrapper, in the text tower of a multimodal model."""
    yield blocks_path
    yield from (f"{wrapper}.{blocks_path}" for wrapper in WRAPPERS)
    below = blocks_path.partition(".")[2]
    yield from (f"{tower}.{below}" for tower in TOWERS)


def placed(spec: ModelSpec, modules: Collection[str]) -> list[ModelSpec]:
    """The spec at every place where `modules`, the dotted names in a model, have such a block with such a projection."""
    specs = (replace(spec, blocks_path=path) for path in dict.fromkeys(places(spec.blocks_path)))
    return [spec for spec in specs if spec.out_proj_path(0) in modules]


def spec_found(model_types: Collection[str], modules: Collection[str]) -> ModelSpec:
    """The spec of a model: by the first of its model types that is known, else by structure.

    model_types: of the model's config and of the config of its text tower.
    modules: the dotted names of all its modules.
    Raises ModelError when its type is unknown and not exactly one known place fits.
    """
    for model_type in model_types:
        if model_type in MODEL_SPECS:
            spec = MODEL_SPECS[model_type]
            # At no known place: whoever resolves the paths says what is missing where.
            return next(iter(placed(spec, modules)), spec)
    name = next(iter(model_types), "unknown")
    like = {spec.paths: spec for spec in MODEL_SPECS.values()}.values()
    found = {place.paths: place for spec in like for place in placed(spec, modules)}
    if len(found) == 1:
        return replace(next(iter(found.values())), name=f"{name} (by structure)", found_by="structure")
    fits = "; ".join(" / ".join(paths) for paths in found) or "none"
    raise ModelError(
        f"no ModelSpec for model_type {name!r}; known: {known()}. By structure exactly one known place must fit, and of those "
        f"these do: {fits}. Write the three paths into a YAML file and name it as the model's spec (in code: spec=), or "
        "add one line to fvcore/model/spec.py."
    )
