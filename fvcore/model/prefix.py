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


class PromptLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a prompt and, in the same memory behind them, of what runs as its last tokens: nothing is joined.

    The first update is the prompt. From `begin` on each stands where the prompt's last tokens stood, and takes the place of
    the one before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.start: int | None = None
        self.n_tokens = 0
        self.ends: list[Tensor] = []  # the prompt's own, from `start` on

    @property
    def _parts(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def begin(self, start: int) -> None:
        """What is updated from now on stands at `start`, behind the prompt's own tokens before it."""
        for part, end in zip(self._parts, self.ends, strict=False):
            part[..., self.start : self.n_tokens, :] = end
        self.start, self.ends = start, [part[..., start : self.n_tokens, :].clone() for part in self._parts]

    def get_seq_length(self) -> int:
        return self.n_tokens if self.start is None else self.start

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.start is None:
            self.keys, self.values, self.n_tokens = key_states, value_states, key_states.shape[-2]
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            return key_states, value_states
        self.keys, self.values = (_with_room(part, self.start, key_states.shape[-2]) for part in self._parts)
        return _behind(self.keys, self.start, key_states), _behind(self.values, self.start, value_states)


def _with_room(part: Tensor, start: int, n_more: int) -> Tensor:
    """With memory for `n_more` slots from `start` on; those before are kept."""
    if part.shape[-2] >= start + n_more:
        return part
    larger = part.new_empty(*part.shape[:-2], start + n_more, part.shape[-1])
    larger[..., :start, :] = part[..., :start, :]
    return larger


def _behind(part: Tensor, start: int, states: Tensor) -> Tensor:
    if states.requires_grad:  # a gradient is of what was there: that is not written over
        return torch.cat([part[..., :start, :], states], dim=-2)
    end = start + states.shape[-2]
    part[..., start:end, :] = states
    return part[..., :end, :]


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
