"""A user's own ModelSpec: a YAML file, checked when it is read.

    blocks_path: model.layers
    attn_path_in_block: self_attn
    out_proj_path_in_attn: o_proj
    prepend_bos: true

The three paths are needed; the rest of ModelSpec's fields may stand beside them, and nothing else.
"""

from pathlib import Path

from pydantic import ValidationError

from fvcore.formats import FormatError, read_yaml, sentence
from fvcore.model.spec import ModelError, ModelSpec, SpecFile, known, spec_named

SUFFIXES = (".yaml", ".yml")


def read(path: Path) -> ModelSpec:
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
        return read(Path(name).expanduser())
    try:
        return spec_named(name)
    except ModelError:
        if Path(name).is_file():
            raise ModelError(f"spec {name!r}: a spec file ends in {' or '.join(SUFFIXES)}; known: {known()}") from None
        raise


def is_file_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
