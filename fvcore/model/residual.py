"""The residual stream of one forward pass: what leaves each block, edited first and recorded second.

This is the only way to it: `output_hidden_states` shows an edited layer as it was before the edit, or not, depending on
which hook was set first; its entry `l + 1` is the output of block `l`, and its last entry is behind the final norm.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fvcore.model.hooks import HookNeverFired, passing_over, replace_outputs
from fvcore.model.model import LanguageModel

Edit: TypeAlias = Callable[[Tensor], Tensor]
"""What leaves a block, (row, token, d_model) -> what leaves it instead; never in place."""


class _Ended(Exception):
    """The pass is at the last layer that is asked for."""


@dataclass(frozen=True)
class Cached:
    """The residual stream behind block `layer`, (1 or row, token, d_model), from which a pass goes on."""

    layer: int
    hidden: Tensor


def residual_stream(
    lm: LanguageModel,
    input_ids: Tensor,
    edits: Mapping[int, Edit] | None = None,
    *,
    last: int | None = None,
    start: Cached | None = None,
    leaf: int | None = None,
) -> dict[int, Tensor]:
    """Layer -> what leaves its block, (row, token, d_model), for prompts of one length (row, token).

    last: the pass ends behind this block     start: the blocks up to its layer compute nothing, its rows stand for what they give
    leaf: gradients are kept, and begin with what leaves this block; without it there are none
    """
    edits = edits or {}
    end = lm.n_layers - 1 if last is None else last
    first = start.layer if start else 0
    for layer in (first, end, *edits, *([] if leaf is None else [leaf])):
        lm.require_layer(layer)
    found: dict[int, Tensor] = {}

    def take(layer: int, hidden: Tensor) -> Tensor:
        hidden = edits[layer](hidden) if layer in edits else hidden
        if layer == leaf:
            hidden = hidden.detach().requires_grad_()
        found[layer] = hidden
        if layer == end:
            raise _Ended
        return hidden

    with torch.set_grad_enabled(leaf is not None), ExitStack() as held:
        if start:
            held.enter_context(_from(lm, start, len(input_ids)))
        held.enter_context(replace_outputs(lm, range(first, end + 1), "the residual stream", take))
        with suppress(_Ended):
            lm.hf(input_ids=input_ids, use_cache=False)
    if missing := [layer for layer in range(first, end + 1) if layer not in found]:
        raise HookNeverFired(f"the residual stream at layer {missing}: no pass came through these blocks")
    return found


def hidden_states(lm: LanguageModel, input_ids: Tensor) -> tuple[Tensor, ...]:
    """The library's own record of an unedited pass over prompts of one length, each (row, token, d_model).

    Entry 0 enters the first block, entry `l + 1` leaves block `l`; but the last one is behind the final norm, so that the last
    layer is not among them.
    """
    with torch.no_grad():
        states: tuple[Tensor, ...] = lm.hf(
            input_ids=input_ids, use_cache=False, output_hidden_states=True
        ).hidden_states
    return states


def _from(lm: LanguageModel, start: Cached, n_rows: int) -> Any:
    """The blocks up to the cached one pass on what they are given; that one gives what is cached."""

    def instead(layer: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        return start.hidden.expand(n_rows, -1, -1) if layer == start.layer else hidden

    return passing_over(lm, instead, start.layer + 1)
