"""A tiny random model of any type of causal language model that the installed transformers knows.

Nothing is known of a type but its own config class: every size that it has a field for is made small, by the table
`every_type.yaml`, where also stands what single types want otherwise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fvcore.embedded.random_models import of_config
from fvcore.formats import read_yaml

DATA = read_yaml(Path(__file__).with_suffix(".yaml"))
N_LAYERS = 4


def types() -> list[str]:
    """Every type that reads text alone; of one that sees or hears too, its text tower is a type of its own."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in DATA["not_text_alone"]]


def tiny_model(kind: str, vocab_size: int, seed: int = 0, **changed: Any) -> Any:
    """Four layers, of each kind that the type has in turn; four heads; d_model 32. changed: fields of the config."""
    return of_config(tiny_config(kind, vocab_size, **changed), seed)


def tiny_config(kind: str, vocab_size: int, **changed: Any) -> Any:
    """The type's own config, small. Raises whatever its class says to the sizes."""
    from transformers import AutoConfig

    own = AutoConfig.for_model(kind)
    sizes = DATA["sizes"] | {"vocab_size": vocab_size}
    given = {name: size for name, size in sizes.items() if name in vars(own)}
    given |= dict(_layer_types(own)) | DATA["types"].get(kind, {}) | changed
    return type(own)(**{name: value for name, value in given.items() if value != "as it is"})


def _layer_types(config: Any) -> Iterator[tuple[str, list[str]]]:
    """The kinds of layers that a type mixes, in turn."""
    if isinstance(vars(config).get("layer_types"), list):
        kinds = list(dict.fromkeys(config.layer_types))
        yield "layer_types", [kinds[layer % len(kinds)] for layer in range(N_LAYERS)]
