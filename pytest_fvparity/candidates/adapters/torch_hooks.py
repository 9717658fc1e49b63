"""The method on plain torch forward hooks: nothing but `torch.nn.Module`.

Three hooks: read what enters each output projection, change what enters one, change what leaves one block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pytest_fvparity.candidates.adapters.stations import Addition, Edit, HeadPatch, Stations


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
            return cast("Tensor", self.lm.hf(ids, use_cache=False).logits[0])

    def editing(self, edit: Edit | None) -> Iterator[RemovableHandle]:
        if isinstance(edit, HeadPatch):
            apply, projection = edit.apply, self.lm.o_proj(edit.layer)
            yield projection.register_forward_pre_hook(lambda _, args: (apply(self.split(args[0])).flatten(2),))
        if isinstance(edit, Addition):
            to_block, block = edit.to_block, self.lm.blocks[edit.layer]
            yield block.register_forward_hook(lambda module, args, output: to_block(output))


make = TorchHooks


@contextmanager
def kept(*handles: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
