"""Where each model family keeps its decoder blocks and attention output projection.

This table is the only model-specific knowledge in the library. Everything else about a model (sizes, biases, what a
block returns, whether the tokenizer adds BOS) is asked of the loaded modules themselves.

A spec is found by `config.model_type`; a type that is not in the table, by structure: the one known place where the model
does have blocks with an output projection. Wrapped models and the text towers of multimodal ones keep the same parts
under a longer path.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError

from fvcore.formats import FormatError, read_yaml, sentence
from fvcore.model.on_disk import ModelError as ModelError
from fvcore.profile import Strict


class PartMissing(ModelError):
    """A path of a spec leads nowhere: `part` is what is missing, `label` which path it is of."""

    def __init__(self, message: str, part: str, label: str) -> None:
        super().__init__(message)
        self.part, self.label = part, label


def _names(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", path):
        raise ValueError("expected names joined by dots")
    return path


Dotted = Annotated[str, AfterValidator(_names)]
Count = Annotated[int, Field(ge=1)]


class SpecFile(Strict):
    """A user's own spec, a YAML file: dotted paths, as `torch.nn.Module.get_submodule` reads them, and what may stand beside.

    Sizes are compared with the model's and never used in their place, `prepend_bos` with what the tokenizer does.
    `dtype`, `device_map` and `quantization` are defaults of loading, below options and above the library's.
    """

    name: str = ""
    blocks_path: Dotted
    attn_path_in_block: Dotted
    out_proj_path_in_attn: Dotted
    prepend_bos: bool | None = None
    n_layers: Count | None = None
    n_heads: Count | None = None
    head_dim: Count | None = None
    hidden_size: Count | None = None
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    device_map: str | dict[str, int | str] | None = None
    quantization: Literal["none", "8bit", "4bit"] | None = None


class ModelSpec(SpecFile):
    """What is known of a family or a model, and by what it was found."""

    found_by: str = "model_type"

    def changed(self, **values: Any) -> Self:
        return self.model_copy(update=values)

    def out_proj_path(self, layer: int) -> str:
        return f"{self.block_path(layer)}.{self.attn_path_in_block}.{self.out_proj_path_in_attn}"

    def is_projection(self, name: str) -> bool:
        """Whether a module of this dotted name is the output projection of a layer: not every layer need have one."""
        layer = name.removeprefix(f"{self.blocks_path}.").partition(".")[0]
        return layer.isdecimal() and name == self.out_proj_path(int(layer))

    def block_path(self, layer: int) -> str:
        return f"{self.blocks_path}.{layer}"

    @property
    def paths(self) -> tuple[str, str, str]:
        return self.blocks_path, self.attn_path_in_block, self.out_proj_path_in_attn

    @property
    def defaults(self) -> dict[str, Any]:
        """What it says about loading, if anything."""
        return self.model_dump(include={"dtype", "device_map", "quantization"}, exclude_none=True)


LIKE_LLAMA = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "phi3",
    "starcoder2", "granite", "cohere", "stablelm", "gpt_oss", "smollm3", "olmo3", "exaone4", "glm4", "cohere2", "nemotron",
    "phimoe", "hunyuan_v1_dense", "ernie4_5", "bitnet", "llama4_text", "falcon_h1",
)  # fmt: skip

PATHS = {
    "gpt2": ("transformer.h", "attn", "c_proj"),
    "gpt_neo": ("transformer.h", "attn.attention", "out_proj"),
    "gpt_bigcode": ("transformer.h", "attn", "c_proj"),
    "gptj": ("transformer.h", "attn", "out_proj"),
    "codegen": ("transformer.h", "attn", "out_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention", "dense"),
    **dict.fromkeys(LIKE_LLAMA, ("model.layers", "self_attn", "o_proj")),
    "phi": ("model.layers", "self_attn", "dense"),
    "persimmon": ("model.layers", "self_attn", "dense"),
    "opt": ("model.decoder.layers", "self_attn", "out_proj"),
    "falcon": ("transformer.h", "self_attention", "dense"),
    "bloom": ("transformer.h", "self_attention", "dense"),
}
MODEL_SPECS = {
    name: ModelSpec(name=name, blocks_path=blocks, attn_path_in_block=attention, out_proj_path_in_attn=projection)
    for name, (blocks, attention, projection) in PATHS.items()
}

OTHER_PLACES = [
    ModelSpec(name="", blocks_path=blocks, attn_path_in_block=attention, out_proj_path_in_attn=projection)
    for blocks, attention, projection in (
        ("model.layers", "self_attn", "out_proj"),
        ("model.layers", "mixer", "o_proj"),
        ("model.layers", "temporal_block", "o_proj"),
        ("biogpt.layers", "self_attn", "out_proj"),
        ("transformer.blocks", "attn", "out_proj"),
        ("transformer.h", "multi_head_attention", "dense"),
    )
]
"""Where types keep these parts that are known by structure alone."""

_NAMES = read_yaml(Path(__file__).with_name("names.yaml"))
ALIASES, HF_IDS = (
    {name: family for family, names in _NAMES[kind].items() for name in names} for kind in ("aliases", "hf_ids")
)
"""Other names, in lower case; and ids on the hub that stand for a family."""

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
        return MODEL_SPECS[key].changed(found_by="name")
    if key.endswith(WRAPPED):
        bare = spec_named(name[: -len(WRAPPED)])
        return bare.changed(name=f"{bare.name}{WRAPPED}", blocks_path=f"{WRAPPERS[0]}.{bare.blocks_path}")
    raise ModelError(f"Unsupported model spec: {name!r}; supported: {known()}; or a YAML file with the paths")


def placed(spec: ModelSpec, modules: Collection[str]) -> list[ModelSpec]:
    """The spec at every place where `modules`, the dotted names in a model, have such a block with such a projection."""
    path, below = spec.blocks_path, spec.blocks_path.partition(".")[2]
    # As the table says, in a wrapper, in the text tower of a multimodal model.
    paths = [path, *(f"{wrapper}.{path}" for wrapper in WRAPPERS), *(f"{tower}.{below}" for tower in TOWERS)]
    specs = (spec.changed(blocks_path=path) for path in dict.fromkeys(paths))
    alike = [name for name in modules if name.endswith(f".{spec.attn_path_in_block}.{spec.out_proj_path_in_attn}")]
    return [spec for spec in specs if any(spec.is_projection(name) for name in alike)]


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
    # Some mixers are called like other families' attention: where a family's own place fits, nobody looks further.
    found = _places(like, modules) or _places(OTHER_PLACES, modules)
    if len(found) == 1:
        return next(iter(found.values())).changed(name=f"{name} (by structure)", found_by="structure")
    fits = "; ".join(" / ".join(paths) for paths in found) or "none"
    raise ModelError(
        f"no ModelSpec for model_type {name!r}; known: {known()}. By structure exactly one known place must fit, and of those "
        f"these do: {fits}. Write the three paths into a YAML file and name it as the model's spec (in code: spec=), or "
        "add one line to fvcore/model/spec.py."
    )


def _places(specs: Iterable[ModelSpec], modules: Collection[str]) -> dict[tuple[str, str, str], ModelSpec]:
    return {place.paths: place for spec in specs for place in placed(spec, modules)}


SUFFIXES = (".yaml", ".yml")


def read_spec(path: Path) -> ModelSpec:
    """The spec of a file; raises FormatError naming the file and every field that is wrong."""
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a mapping of a ModelSpec's fields, found {type(value).__name__}")
    try:
        fields = SpecFile.model_validate(value).model_dump()
    except ValidationError as error:
        wrong = sentence(error, most=len(error.errors()))
        raise FormatError(f"{path}: no ModelSpec: {wrong}. Fields: {', '.join(SpecFile.model_fields)}") from None
    return ModelSpec(**fields | {"name": fields["name"] or path.stem, "found_by": f"file {path.name}"})


def spec_of(name: str | ModelSpec) -> ModelSpec:
    """What a person names: a registered spec, an alias, or a file; one that is given is itself."""
    if isinstance(name, ModelSpec):
        return name
    if is_file_name(name):
        return read_spec(Path(name).expanduser())
    try:
        return spec_named(name)
    except ModelError:
        if Path(name).is_file():
            raise ModelError(f"spec {name!r}: a spec file ends in {' or '.join(SUFFIXES)}; known: {known()}") from None
        raise


def is_file_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
