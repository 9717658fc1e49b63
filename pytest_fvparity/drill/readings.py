"""From what enters the output projection to mean activations, rightly and in the ways people get wrong."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fvcore.activations import by_slot
from fvcore.slots import SlotMap

Trial = tuple[Tensor, SlotMap]
"""The heads of one prompt (token, n_heads, d_head), and its slots."""


def mean_of(trials: Sequence[Trial]) -> Tensor:
    """(head, slot, d_head), as station 3 takes it: a word's tokens averaged, then the mean over trials."""
    return torch.stack([by_slot([heads[None]], slots)[0].float().cpu() for heads, slots in trials]).mean(dim=0)


def _first_tokens(slots: SlotMap) -> SlotMap:
    return replace(slots, idx_avg={})


def _last_tokens(slots: SlotMap) -> SlotMap:
    last_of = dict(slots.idx_avg.values())
    return replace(
        slots, idx_avg={}, idx_map={last_of.get(token, token): slot for token, slot in slots.idx_map.items()}
    )


def _width_first(heads: Tensor) -> Tensor:
    n_tokens, n_heads, d_head = heads.shape
    return heads.reshape(n_tokens, d_head, n_heads).transpose(1, 2)


WRONG: dict[str, Callable[[Sequence[Trial]], Tensor]] = {
    "the first token of a word in place of its average": lambda trials: mean_of(
        [(heads, _first_tokens(slots)) for heads, slots in trials]
    ),
    "the last token of a word in place of its average": lambda trials: mean_of(
        [(heads, _last_tokens(slots)) for heads, slots in trials]
    ),
    "split into (d_head, n_heads) in place of (n_heads, d_head)": lambda trials: mean_of(
        [(_width_first(heads), slots) for heads, slots in trials]
    ),
    "read one token early": lambda trials: mean_of([(heads.roll(1, dims=0), slots) for heads, slots in trials]),
    "read one token late": lambda trials: mean_of([(heads.roll(-1, dims=0), slots) for heads, slots in trials]),
    "the sum over trials in place of their mean": lambda trials: mean_of(trials) * len(trials),
    "the last trial alone in place of the mean": lambda trials: mean_of(trials[-1:]),
    "the mean over all trials but the last": lambda trials: mean_of(trials[:-1]) if trials[1:] else mean_of(trials),
}


def explanation(trials: Sequence[Trial], means: Tensor, allowed: Tensor) -> str | None:
    """The wrong reading that gives the candidate's means (head, slot, d_head), if one of the known ones does."""

    def gives(reading: Callable[[Sequence[Trial]], Tensor]) -> bool:
        return bool(((reading(trials).double() - means.double().cpu()).abs() <= allowed).all())

    return next((name for name, reading in WRONG.items() if gives(reading)), None)
