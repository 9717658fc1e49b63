"""From what enters the output projection to mean activations, rightly and in the ways people get wrong."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fvcore.activations import by_slot
from fvcore.slots import SlotMap

Trial = tuple[Tensor, SlotMap]
"""The heads of one prompt (token, n_heads, d_head), and its slots."""

Reading = Callable[[Sequence[Trial]], Tensor]


def mean_of(trials: Sequence[Trial]) -> Tensor:
    """(head, slot, d_head), as station 3 takes it: a word's tokens averaged, then the mean over trials."""
    return torch.stack([by_slot([heads[None]], slots)[0].float().cpu() for heads, slots in trials]).mean(dim=0)


def _last_tokens(heads: Tensor, slots: SlotMap) -> Trial:
    last_of = dict(slots.idx_avg.values())
    return heads, replace(slots, idx_avg={}, idx_map={last_of.get(at, at): slot for at, slot in slots.idx_map.items()})


def _width_first(heads: Tensor, slots: SlotMap) -> Trial:
    n_tokens, n_heads, d_head = heads.shape
    return heads.reshape(n_tokens, d_head, n_heads).transpose(1, 2), slots


def _each(wrongly: Callable[[Tensor, SlotMap], Trial]) -> Reading:
    return lambda trials: mean_of([wrongly(*trial) for trial in trials])


WRONG: dict[str, Reading] = {
    "the first token of a word in place of its average": _each(
        lambda heads, slots: (heads, replace(slots, idx_avg={}))
    ),
    "the last token of a word in place of its average": _each(_last_tokens),
    "split into (d_head, n_heads) in place of (n_heads, d_head)": _each(_width_first),
    "read one token early": _each(lambda heads, slots: (heads.roll(1, dims=0), slots)),
    "read one token late": _each(lambda heads, slots: (heads.roll(-1, dims=0), slots)),
    "the sum over trials in place of their mean": lambda trials: mean_of(trials) * len(trials),
    "the last trial alone in place of the mean": lambda trials: mean_of(trials[-1:]),
    "the mean over all trials but the last": lambda trials: mean_of(trials[:-1] or trials),
}


def explanation(trials: Sequence[Trial], means: Tensor, allowed: Tensor) -> str | None:
    """The wrong reading that gives the candidate's means (head, slot, d_head), if one of the known ones does."""
    want = means.double().cpu()
    fits = (name for name, reading in WRONG.items() if ((reading(trials).double() - want).abs() <= allowed).all())
    return next(fits, None)
