"""A user's own ModelSpec: a YAML file, checked when it is read.

    blocks_path: model.layers
    attn_path_in_block: self_attn
    out_proj_path_in_attn: o_proj
    prepend_bos: true

The three paths are needed; the rest of ModelSpec's fields may stand beside them, and nothing else.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from fvcore.formats import FormatError, read_yaml, sentence
from fvcore.model.spec import ModelError, ModelSpec, known, spec_named
from fvcore.profile import Strict

SUFFIXES = (".yaml", ".yml")


def _names(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", path):
        raise ValueError("expected names joined by dots")
    return path


Dotted = Annotated[str, AfterValidator(_names)]
Count = Annotated[int, Field(ge=1)]


class SpecFile(Strict):
    """What a spec file may say."""

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


def read(path: Path) -> ModelSpec:
    """The spec of a file; raises FormatError naming the file and every field that is wrong."""
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a mapping of a ModelSpec's fields, found {type(value).__name__}")
    try:
        fields: dict[str, Any] = SpecFile.model_validate(value).model_dump()
    except ValidationError as error:
        wrong = sentence(error, most=len(error.errors()))
        raise FormatError(f"{path}: no ModelSpec: {wrong}. Fields: {', '.join(SpecFile.model_fields)}") from None
    return ModelSpec(**{**fields, "name": fields["name"] or path.stem, "found_by": f"file {path.name}"})


def spec_of(name: str | ModelSpec) -> ModelSpec:
    """What a person names: a registered spec, an alias, or a file; one that is given is itself."""
    if isinstance(name, ModelSpec):
        return name
    if is_file_name(name):
        return read(Path(name).expanduser())
    try:
        return spec_named(name)
    except ModelError:
        if Path(name).is_file():
            raise ModelError(f"spec {name!r}: a spec file ends in {' or '.join(SUFFIXES)}; known: {known()}") from None
        raise


def is_file_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
