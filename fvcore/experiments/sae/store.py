"""A run's autoencoders: read when they are needed, and held within two budgets of bytes, one of the device, one of memory."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from fvcore.experiments.sae.autoencoder import SAE
from fvcore.experiments.sae.config import Autoencoders
from fvcore.experiments.sae.loaders import folder_of, load
from fvcore.formats import FormatError

GB = 1e9


class Shelf:
    """What was used last, up to a number of bytes; the key of a settings' field names it in errors."""

    def __init__(self, budget_gb: float, key: str) -> None:
        self.most, self.key = budget_gb * GB, key
        self.kept: OrderedDict[Any, SAE] = OrderedDict()

    @property
    def n_bytes(self) -> int:
        return sum(sae.n_bytes for sae in self.kept.values())

    def get(self, name: Any, make: Callable[[], SAE]) -> SAE:
        """What is held by that name, or is made and held from now on, for which the longest unused goes."""
        if name not in self.kept:
            made = make()
            if made.n_bytes > self.most:
                raise FormatError(
                    f"{self.key} is {self.most / GB:g}, and one autoencoder takes {made.n_bytes / GB:.3g} GB: raise it, or take "
                    "sae.dtype bfloat16"
                )
            while self.kept and self.n_bytes + made.n_bytes > self.most:
                self.kept.popitem(last=False)
            self.kept[name] = made
        self.kept.move_to_end(name)
        return self.kept[name]


class Store:
    """Autoencoders of a model's layers, on the device where they are computed with."""

    def __init__(self, settings: Autoencoders, d_model: int, device: torch.device | str = "cpu") -> None:
        self.settings, self.d_model, self.device = settings, d_model, torch.device(device)
        self.on_device = Shelf(settings.gpu_budget_gb, "sae.gpu_budget_gb")
        self.in_memory = Shelf(settings.cpu_budget_gb, "sae.cpu_budget_gb")

    def sae(self, layer: int) -> SAE:
        """The whole autoencoder. Raises FormatError for what is not there, or does not fit."""
        if self.device.type == "cpu":
            return self.in_memory.get(layer, lambda: self._read(layer))
        pinned = partial(self.in_memory.get, layer, lambda: self._read(layer).pinned())
        return self.on_device.get(layer, lambda: pinned().to(self.device))

    def rows(self, layer: int, ids: Sequence[int]) -> SAE:
        """These features alone, in this order, of which alone the files are read. Raises ValueError for a TopK autoencoder."""
        held = self.in_memory if self.device.type == "cpu" else self.on_device
        if layer in held.kept:
            return self.sae(layer).rows(torch.as_tensor(ids, device=self.device))
        return held.get((layer, *ids), lambda: self._read(layer, ids).to(self.device))

    def _read(self, layer: int, ids: Sequence[int] | None = None) -> SAE:
        chosen = self.settings
        read = load(folder_of(chosen, layer), layer, self.d_model, format=chosen.format, gating=chosen.gating, ids=ids)
        return read.to(dtype=getattr(torch, chosen.dtype))
