"""Keys and values that later tokens see and never join: one cached prefix serves any number of queries."""

from collections.abc import Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a prompt, each (batch, kv_heads, slot, d_head); what comes after them is seen and not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def prefix_cache(layers: Iterable[tuple[Tensor, Tensor]], n_rows: int = 1) -> Cache:
    """A cache that stays as it is, for `n_rows` queries at once; the rows share the prefix's memory.

    layers: keys and values of each layer, (1, kv_heads, slot, d_head), or (n_rows, ...) where every row has its own
    """
    return Cache(layers=[PrefixLayer(*(part.expand(n_rows, -1, -1, -1) for part in pair)) for pair in layers])


def cache_given(module: Any, cache: Cache | None) -> dict[str, Any]:
    """A cache by the name that a model, or else the library, has for it: `past_key_values`, and `cache` from 5.24 on."""
    from transformers.generation import GenerationMixin

    for takes in (signature(one).parameters for one in (module.forward, GenerationMixin.prepare_inputs_for_generation)):
        for name in ("cache", "past_key_values"):
            if name in takes:
                return {name: cache}
    return {"past_key_values": cache}
