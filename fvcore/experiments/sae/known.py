"""How many layers and features there are, where model and autoencoders lie on this machine: read off their configs alone."""

from functools import cached_property
from pathlib import Path
from typing import Any

from fvcore import embedded
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.formats import read_json

ABOUT = ("hyperparams.json", "cfg.json", "config.json")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


class Known:
    """Of a run's model and autoencoders. What is not in a directory is not known, and nothing is wrong by it."""

    def __init__(self, settings: PathwaysConfig) -> None:
        self.model, self.sae = settings.model.name, settings.sae
        self.sizes: dict[int, int | None] = {}

    def wrong(self, layer: int, number: int) -> str:
        """Why there is no such feature; empty where there is one, or where that is not known."""
        if self.n_layers is not None and layer >= self.n_layers:
            return f"the model {self.model} has {self.n_layers} layers"
        if layer not in self.sizes:
            self.sizes[layer] = self._d_sae(layer)
        size = self.sizes[layer]
        return f"its autoencoder has {size} features" if size is not None and number >= size else ""

    @cached_property
    def n_layers(self) -> int | None:
        folder = embedded.path_of(self.model) if self.model in embedded.EMBEDDED else Path(self.model).expanduser()
        if not (folder / "config.json").is_file():
            return None
        config = read_json(folder / "config.json", strict=False)
        return _number(config | config.get("text_config", {}), *LAYERS)

    def _d_sae(self, layer: int) -> int | None:
        folder = Path(self.sae.source).expanduser() / self.sae.pattern.format(layer=layer)
        path = next((folder / name for name in ABOUT if (folder / name).is_file()), None)
        if path is None:
            return None
        about = read_json(path, strict=False)
        return _number(about | about.get("trainer", {}), "d_sae", "dict_size")


def _number(config: dict[str, Any], *names: str) -> int | None:
    return next((int(config[name]) for name in names if config.get(name) is not None), None)
