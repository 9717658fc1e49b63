"""The three things done to a running model: read heads, edit heads, add to the residual stream.

These are the only torch hooks in the library. Each is a context manager: hooks are gone when the block ends, however
it ends, and a hook that never ran during the block is an error, because an intervention that silently does nothing
is the field's most expensive mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fvcore.models import LanguageModel


class HookNeverFired(RuntimeError):
    """A hook was set and no forward pass came through its module."""


@contextmanager
def _hooks(handles: Iterable[RemovableHandle], fired: list[int], what: str) -> Iterator[None]:
    registered: list[RemovableHandle] = []
    try:
        registered.extend(handles)
        yield
    finally:
        for handle in registered:
            handle.remove()
    if not fired:
        raise HookNeverFired(
            f"{what}: the hook never fired; was the model run, and is the module the one it runs through?"
        )


def split_heads(x: Tensor, lm: LanguageModel) -> Tensor:
    """(..., n_heads * d_head) -> (..., n_heads, d_head), sharing memory."""
    return x.view(*x.shape[:-1], lm.n_heads, lm.d_head)


@contextmanager
def read_heads(lm: LanguageModel) -> Iterator[dict[int, Tensor]]:
    """Copies of the heads entering each `o_proj`: layer -> (batch, token, head, d_head)."""
    heads: dict[int, Tensor] = {}
    fired: list[int] = []

    def read(layer: int) -> RemovableHandle:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            fired.append(layer)
            heads[layer] = split_heads(args[0].detach().clone(), lm)

        return lm.o_proj(layer).register_forward_pre_hook(hook)

    with _hooks((read(layer) for layer in range(lm.n_layers)), fired, "reading heads"):
        yield heads


@contextmanager
def edit_heads(lm: LanguageModel, layer: int, edit: Callable[[Tensor], None]) -> Iterator[None]:
    """Let `edit` change, in place, a copy of the heads (batch, token, head, d_head) entering `o_proj` of `layer`."""
    fired: list[int] = []

    def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        fired.append(layer)
        x = args[0].clone()
        edit(split_heads(x, lm))
        return (x, *args[1:])

    with _hooks([lm.o_proj(layer).register_forward_pre_hook(hook)], fired, f"editing heads of layer {layer}"):
        yield


@contextmanager
def add_to_residual(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> Iterator[None]:
    """Add `vector` (d_model,) to the output of block `layer` at one token position, in every forward pass.

    During cached generation every step is a forward pass whose last position is the new token.
    """
    lm.require_layer(layer)
    fired: list[int] = []

    def hook(module: Any, args: Any, output: Any) -> Any:
        fired.append(layer)
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, token] += vector.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with _hooks([lm.blocks[layer].register_forward_hook(hook)], fired, f"injection at layer {layer}"):
        yield
