"""The method on plain torch forward hooks: nothing but `torch.nn.Module`.

Three hooks: read what enters each output projection, change what enters one, change what leaves one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pytest_fvparity.candidates.adapters.stations import Addition, Edit, HeadPatch, Stations

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings
    from fvcore.trials import FixedTrials


def make(lm: LanguageModel, trials: FixedTrials, settings: Settings) -> TorchHooks:
    return TorchHooks(lm, trials, settings)


class TorchHooks(Stations):
    """Hooks are set for one forward pass and taken off after it, however it ends."""

    def heads(self, ids: Tensor) -> Tensor:
        seen: list[Tensor] = []  # layers run in order

        def read(module: Any, args: tuple[Tensor, ...]) -> None:
            seen.append(self.split(args[0])[0].clone())

        with kept(*(self.lm.o_proj(layer).register_forward_pre_hook(read) for layer in range(self.lm.n_layers))):
            self.lm.hf(ids, use_cache=False)
        return torch.stack(seen)

    def logits(self, ids: Tensor, edit: Edit | None = None) -> Tensor:
        with kept(*self.editing(edit)):
            logits: Tensor = self.lm.hf(ids, use_cache=False).logits[0]
        return logits

    def editing(self, edit: Edit | None) -> Iterator[RemovableHandle]:
        if isinstance(edit, HeadPatch):
            patch = edit

            def before(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
                return (patch.apply(self.split(args[0])).flatten(2),)

            yield self.lm.o_proj(edit.layer).register_forward_pre_hook(before)
        if isinstance(edit, Addition):
            addition = edit

            def after(module: Any, args: Any, output: Any) -> Any:
                # A block's output is a tensor or a tuple that begins with one, by version of transformers.
                if isinstance(output, tuple):
                    return (addition.apply(output[0]), *output[1:])
                return addition.apply(output)

            yield self.lm.blocks[edit.layer].register_forward_hook(after)


@contextmanager
def kept(*handles: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
