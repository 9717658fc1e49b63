"""How a model knows where a token stands, and keys that are carried to another place.

Rotary positions are in the keys, as rotations that add up: a key is carried from one position to another by the
difference. Learned positions are in what enters the first block, and no key is free of them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fvcore.model.model import LanguageModel

Scheme = Literal["rope", "learned", "other"]
LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rope types whose frequencies change with the length of what is read: no rotation is right for all lengths."""


def scheme(lm: LanguageModel) -> Scheme:
    """By structure: a module with rotary frequencies, or an embedding with a row for each position."""
    if rotary_modules(lm):
        return "rope"
    length, own = max_positions(lm), lm.hf.get_input_embeddings()
    tables = (one for one in lm.hf.modules() if isinstance(one, nn.Embedding) and one is not own)
    # Some tables have a few rows more, for padding.
    return "learned" if any(0 <= table.num_embeddings - length < 8 for table in tables) else "other"


def rotary_modules(lm: LanguageModel) -> list[Any]:
    return [
        one for one in lm.hf.modules() if any(name.endswith("inv_freq") for name, _ in one.named_buffers(recurse=False))
    ]


def inv_freq(lm: LanguageModel) -> Tensor | None:
    """The frequencies (pair,) by which every layer's keys are rotated; None unless there is exactly one set of them."""
    modules = rotary_modules(lm)
    found = getattr(modules[0], "inv_freq", None) if len(modules) == 1 else None
    return found.float() if isinstance(found, Tensor) else None


def rope_type(lm: LanguageModel) -> str | None:
    """`default`, `linear`, ... as the rotary module says it; None without one."""
    modules = rotary_modules(lm)
    if not modules:
        return None
    said = getattr(modules[0], "rope_type", "default")
    return said if isinstance(said, str) else ", ".join(sorted(set(said.values())))


def max_positions(lm: LanguageModel) -> int:
    """How many positions the config allows; 0 where it does not say."""
    return int(getattr(lm.config, "max_position_embeddings", None) or 0)


def rotated(keys: Sequence[Tensor], shift: Tensor, frequencies: Tensor) -> list[Tensor]:
    """Keys of several layers, each (..., slot, d_head), carried on by `shift` (slot,) positions.

    The two halves of the first 2 * pair numbers of a head are rotated against each other; the rest of it has no position.
    """
    alike = len({(key.shape, key.device) for key in keys}) == 1
    return list(_rotated(torch.stack(list(keys)), shift, frequencies)) if alike else [
        _rotated(key, shift, frequencies) for key in keys
    ]  # fmt: skip


def _rotated(keys: Tensor, shift: Tensor, frequencies: Tensor) -> Tensor:
    angle = shift.to(keys.device, torch.float32)[:, None] * frequencies.to(keys.device)  # (slot, pair)
    cos, sin, n = angle.cos(), angle.sin(), angle.shape[-1]
    first, second, rest = keys[..., :n].float(), keys[..., n : 2 * n].float(), keys[..., 2 * n :]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(keys.dtype)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
