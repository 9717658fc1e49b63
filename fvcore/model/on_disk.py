"""What a model's folder says before anything is loaded: that it is there, its layers and its heads. Imports no library of models."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from fvcore import embedded
from fvcore.exits import Expected
from fvcore.formats import FormatError, read_json

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads")

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json")
ADAPTER = "adapter_config.json"


class ModelError(Expected):
    """A model or tokenizer cannot be loaded, or has no part where its spec says."""


class Sizes(NamedTuple):
    """As far as config.json says them; None where it does not."""

    n_layers: int | None
    n_heads: int | None


def cache() -> Path:
    """The local cache of the hub."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def folder_of(name: str, base: Path | None = None) -> Path | None:
    """Where a model lies, by a shipped name, a directory or a cached hub id; nowhere for one that is made of formulas.

    base: what a directory is relative to (default: the current one)

    Raises ModelError that says which directory was looked for.
    """
    if name == embedded.WIRED:
        return None
    if name in embedded.EMBEDDED:
        return embedded.path_of(name)
    path = (base or Path.cwd()) / Path(name).expanduser()
    if path.is_dir():
        return path
    cached = cache() / f"models--{name.replace('/', '--')}"
    if cached.is_dir():
        return cached
    hub = (
        f". `hf download {name}` brings a model of the hub there"
        if name.count("/") == 1 and name[0] not in "./~"
        else ""
    )
    raise ModelError(
        f"no model {name!r}: there is no directory {path}, no shipped model of that name ("
        f"{', '.join([*embedded.EMBEDDED, embedded.WIRED])}), and nothing in the local cache {cache()} (nothing is downloaded){hub}"
    )


def sizes(name: str) -> Sizes:
    """Of a model that is there; nothing is known of one that lies nowhere, or whose config says nothing."""
    if (folder := folder_of(name)) is None:
        return Sizes(None, None)
    found = sorted(
        [folder / "config.json", *folder.glob("snapshots/*/config.json")], key=lambda path: not path.is_file()
    )
    try:
        config = read_json(found[0])
    except FormatError:  # a later error says it better
        return Sizes(None, None)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))] if isinstance(config, dict) else []
    return Sizes(_stated(parts, LAYERS), _stated(parts, HEADS))


def _stated(parts: list[dict[str, Any]], names: tuple[str, ...]) -> int | None:
    """The text's part of a config comes before the whole and others."""
    ordered = sorted(parts, key=lambda part: "vocab_size" not in part)
    return next((part[name] for part in ordered for name in names if isinstance(part.get(name), int)), None)


def lacks_weights(name: str) -> bool:
    """Whether a config lies there alone: no file of weights, no index of some, no adapter; in a cached model's snapshots too."""
    if (folder := folder_of(name)) is None:
        return False
    there = [path.name for pattern in ("*", "snapshots/*/*") for path in folder.glob(pattern)]
    return "config.json" in there and not any(name == ADAPTER or name.endswith(WEIGHTS) for name in there)


def require_layer(name: str, layer: int) -> None:
    """Raise ModelError for a layer that the model has not."""
    n_layers = sizes(name).n_layers
    if n_layers is not None and not 0 <= layer < n_layers:
        third = f"--edit-layer {n_layers // 3} is a third of the way up"
        raise ModelError(f"{out_of_range(name, layer, n_layers)}; {third}")


def out_of_range(name: str, layer: int, n_layers: int) -> str:
    return f"edit_layer out of range: {layer} not in [0, {n_layers - 1}] ({name} has {n_layers} layers)"
