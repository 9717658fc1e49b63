"""The config of a large model with small sizes, and every ratio that a rewrite can get wrong as it was.

What is made small, and to what, stands in `every_type.yaml`; a field that the table does not name stays as it is.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fvcore.embedded.every_type import DATA
from fvcore.model.anatomy import stated, text_config
from fvcore.model.spec import ModelError

WIDTHS = (8, 16, 32, 64)
"""Of a head: the least of which the rotated part is a whole number of pairs."""
LEAST_HEADS = 8
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
RULES: Mapping[str, Any] = DATA["shrunk"]


def small_config(config: Any, n_layers: int | None = None) -> Any:
    """The same class with small sizes. n_layers: 2 if not given, or 4 where layers are of several kinds.

    Raises ModelError where it is no config of a text decoder alone, or its class does not take the sizes.
    """
    if text_config(config) is not config:
        raise ModelError(
            f"{config.model_type!r} reads more than text; expected a model of text alone, such as its text tower"
        )
    written, kept = config.to_dict(), _layers(config, n_layers)
    changes = dict(_sizes(config)) | _of_type(config) | dict(_heads(config)) | dict(_of_layers(config, kept))
    small = {name: value for name, value in (written | changes).items() if name not in RULES["left_out"]}
    try:
        return type(config).from_dict(small | {"dtype": "float32"})
    except Exception as error:  # every class has checks of its own
        raise ModelError(
            f"{config.model_type!r}: its config class does not take small sizes ({type(error).__name__}: {error}); "
            "say which in fvcore/embedded/every_type.yaml"
        ) from error


def _sizes(config: Any) -> Iterator[tuple[str, int]]:
    """Sizes of which no ratio counts, where they are larger than the table's."""
    for name, size in (DATA["sizes"] | RULES["sizes"]).items():
        own = vars(config).get(name)
        if name not in RULES["as_they_are"] and type(own) is int and own > size:
            yield name, size


def _heads(config: Any) -> Iterator[tuple[str, Any]]:
    """As many heads to a head of keys, d_model to the heads' widths, and what is measured in heads' widths."""
    n_heads, n_kv = stated(config, "num_attention_heads"), next((n for k in KV_HEADS if (n := stated(config, k))), None)
    d_model = stated(config, "hidden_size")
    if not (type(n_heads) is int and type(d_model) is int):
        raise ModelError(
            f"{config.model_type!r}: its config has no number of heads or no d_model; expected an attention decoder"
        )
    width, share = stated(config, "head_dim") or d_model // n_heads, n_heads // (n_kv or n_heads)
    fewer = LEAST_HEADS if n_kv in (None, 1) or share == 1 else max(2, LEAST_HEADS // share) * share
    fewer = min(fewer, n_heads)
    narrow = next((one for one in WIDTHS if _rotated(config, one) % 2 == 0), WIDTHS[-1])
    times = round(narrow * d_model / (n_heads * width)) or 1
    if times == narrow and d_model != n_heads * width:
        times += 1 if d_model > n_heads * width else -1
    found = {"num_attention_heads": fewer, "hidden_size": fewer * times, "head_dim": narrow}
    found |= dict.fromkeys(KV_HEADS, 1 if n_kv == 1 else fewer // share)
    found |= dict.fromkeys(RULES["twice_d_model"], 2 * fewer * times) | dict.fromkeys(RULES["d_model"], fewer * times)
    found |= {name: type(own)(own * narrow / width) for name in RULES["of_width"] if (own := stated(config, name))}
    found |= {name: own * width / narrow for name in RULES["by_width"] if (own := stated(config, name))}
    for name, value in found.items():
        field = type(config).attribute_map.get(name, name)
        if vars(config).get(field) is not None:
            yield field, value
    if rope := _rope(config, _rotated(config, narrow) // 2):
        yield "rope_parameters", rope


def _rotated(config: Any, width: int) -> int:
    """How many of a head's dimensions are turned by their position."""
    rope = stated(config, "rope_parameters") or {}
    shares = [stated(config, name) for name in ("partial_rotary_factor", "rotary_pct")] + [
        rope.get("partial_rotary_factor")
    ]
    return int(width * next((share for share in shares if type(share) in (int, float)), 1))


def _rope(config: Any, n_pairs: int) -> dict[str, Any]:
    """Its parameters; of lists with a factor for every pair of dimensions as many as there are."""

    def fitted(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: fitted(one) for name, one in value.items()}
        return value[:: max(1, len(value) // n_pairs)][:n_pairs] if isinstance(value, list) else value

    return {name: fitted(value) for name, value in (stated(config, "rope_parameters") or {}).items()}


def _of_type(config: Any) -> dict[str, Any]:
    """What the type wants otherwise, but for layers, which are those of the model."""
    own: Mapping[str, Any] = DATA["types"].get(config.model_type, {})
    return {name: value for name, value in own.items() if name not in {"layer_types", *_by_layer(config)}}


def _depth(config: Any) -> int:
    return int(stated(config, "num_hidden_layers") or 0)


def _by_layer(config: Any) -> dict[str, list[Any]]:
    """The fields that say something of every layer."""
    n = _depth(config)
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == n > 1}
    return {name: value for name, value in lists.items() if name not in RULES["layer_numbers"]}


def _numbers(config: Any) -> dict[str, list[int]]:
    """The fields that hold numbers of layers."""
    return {name: value for name in RULES["layer_numbers"] if isinstance(value := vars(config).get(name), list)}


def _layers(config: Any, n_layers: int | None) -> list[int]:
    """The layers of the large model whose kinds the small one's have: each kind in turn, as they first come."""
    lists, numbers = _by_layer(config).values(), _numbers(config).values()
    kinds = [
        repr([[one[layer] for one in lists], [layer in one for one in numbers]]) for layer in range(_depth(config))
    ]
    each = list(dict.fromkeys(kinds))
    n = n_layers or (2 if len(each) < 2 else 4)
    return [kinds.index(each[layer % len(each)]) for layer in range(min(n, len(kinds)))]


def _of_layers(config: Any, kept: list[int]) -> Iterator[tuple[str, Any]]:
    for field in RULES["layers"]:
        if type(vars(config).get(field)) is int:
            yield field, len(kept)
    for name, values in _by_layer(config).items():
        yield name, [values[layer] for layer in kept]
    for name, layers in _numbers(config).items():
        yield name, [at for at, layer in enumerate(kept) if layer in layers]
