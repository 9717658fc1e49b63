"""What is done to a running model: read heads, edit heads, add to the residual stream, hide cached slots. And looking on.

These are the only torch hooks in the library. Each is a context manager: hooks are gone when the block ends, however
it ends, and a hook that never ran during the block is an error, because an intervention that silently does nothing
is the field's most expensive mistake. `watch_modules` alone may see nothing: who looks on asks whether anything ran.
What a hook reads or edits must be what its name says, (row, token, d_model) at a block and heads at a projection: an index
into another axis would change another thing. That is asked of every model once, when it is wrapped, and of every tensor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fvcore.exits import in_one_line
from fvcore.model.spec import ModelError

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel

PROBE = ((1, 2, 3), (3, 2, 1))
"""Ids of the pass that is looked at: axes of three sizes, rows, tokens and d_model."""


_signature = cache(inspect.signature)


class HookNeverFired(RuntimeError):
    """A hook was set and no forward pass came through its module."""


@contextmanager
def _hooks(register: Callable[[int, set[int]], RemovableHandle], layers: Iterable[int], what: str) -> Iterator[None]:
    """Hooks on some layers; each adds its layer to the set that `register` is given when it runs."""
    hooked, fired = set(layers), set[int]()
    with ExitStack() as handles:
        for layer in sorted(hooked):
            handles.enter_context(register(layer, fired))
        yield
    if silent := sorted(hooked - fired):
        raise HookNeverFired(
            f"{what} at layer {', '.join(map(str, silent))}: the hook never fired; was the model run, and is the module "
            "the one it runs through?"
        )


class NoResidualStream(ModelError):
    """What a block or a projection handles is not what vectors are added to and heads are read from."""


def _required(x: Any, width: int, what: str) -> Tensor:
    """A tensor (row, token, width); raises NoResidualStream for anything else."""
    if isinstance(x, Tensor) and x.ndim == 3 and x.shape[-1] == width:
        return x
    raise _no_stream(x, f"(row, token, {width})", what)


def _no_stream(x: Any, expected: str, what: str) -> NoResidualStream:
    found = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
    return NoResidualStream(
        f"{what} is {found}, expected {expected}: this model's residual stream is another thing than one vector for each "
        "token (several streams, or another order of axes), and what is added to it or read from it would be another thing too. "
        "Such families are not supported"
    )


def _left(output: Any, lm: LanguageModel, layer: int) -> Tensor:
    """What leaves a block, alone or first of a tuple: (row, token, d_model)."""
    hidden = output[0] if isinstance(output, tuple) else output
    return _required(hidden, lm.d_model, f"{lm.name}: what leaves block {layer}")


def _projection_hooks(
    lm: LanguageModel, layers: Iterable[int], what: str, take: Callable[[int, Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """`take` is given the layer and what enters its `o_proj`; what it returns, if anything, enters instead."""

    def register(layer: int, fired: set[int]) -> RemovableHandle:
        def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            fired.add(layer)
            width = lm.n_heads * lm.d_heads[layer]
            instead = take(layer, _required(args[0], width, f"{lm.name}: what enters the projection of layer {layer}"))
            return None if instead is None else (instead, *args[1:])

        return lm.o_proj(layer).register_forward_pre_hook(hook)

    return _hooks(register, layers, what)


def split_heads(x: Tensor, lm: LanguageModel) -> Tensor:
    """(..., n_heads * d_head) -> (..., n_heads, d_head), sharing memory; d_head is that of the layer."""
    return x.view(*x.shape[:-1], lm.n_heads, x.shape[-1] // lm.n_heads)


@contextmanager
def read_heads(
    lm: LanguageModel, gradients: bool = False, layers: Iterable[int] | None = None
) -> Iterator[dict[int, Tensor]]:
    """Copies of the heads entering each `o_proj` that there is: layer -> (batch, token, head, d_head).

    layers: those that the pass runs through (default: all). With `gradients` the heads as they are used: a backward pass leaves their gradients on them.
    """
    heads: dict[int, Tensor] = {}

    def take(layer: int, x: Tensor) -> Tensor | None:
        if not gradients:
            heads[layer] = split_heads(x.detach().clone(), lm)
            return None
        # No weight has a gradient, so that nothing leads here before the first of these does.
        heads[layer] = split_heads(x if x.requires_grad else x.detach().requires_grad_(), lm)
        heads[layer].retain_grad()
        return heads[layer].flatten(-2)

    with _projection_hooks(lm, lm.head_layers if layers is None else layers, "reading heads", take):
        yield heads


def edit_heads(lm: LanguageModel, layer: int, edit: Callable[[Tensor], None]) -> AbstractContextManager[None]:
    """Let `edit` change, in place, a copy of the heads (batch, token, head, d_head) entering `o_proj` of `layer`."""

    def take(layer: int, x: Tensor) -> Tensor:
        changed = x.clone()
        edit(split_heads(changed, lm))
        return changed

    return _projection_hooks(lm, [layer], "editing heads", take)


def replace_outputs(
    lm: LanguageModel, layers: Iterable[int], what: str, take: Callable[[int, Tensor], Tensor]
) -> AbstractContextManager[None]:
    """`take` is given a layer and what leaves its block, (row, token, d_model); what it returns leaves instead.

    One hook a block does both, editing and recording, so that what is recorded is what goes on.
    """

    def register(layer: int, fired: set[int]) -> RemovableHandle:
        def hook(module: Any, args: Any, output: Any) -> Any:
            fired.add(layer)
            instead = take(layer, _left(output, lm, layer))
            return (instead, *output[1:]) if isinstance(output, tuple) else instead

        return lm.blocks[layer].register_forward_hook(hook)

    return _hooks(register, layers, what)


def add_to_residual(
    lm: LanguageModel, layer: int, vector: Tensor, token: int | slice = -1
) -> AbstractContextManager[None]:
    """Add `vector` (d_model,) to the output of block `layer` at a token position (or several), in every forward pass.

    During cached generation every step is a forward pass whose last position is the new token.
    """
    lm.require_layer(layer)

    def take(layer: int, hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[:, token] += vector.to(changed)
        return changed

    return replace_outputs(lm, [layer], "injection", take)


def hide_slots(lm: LanguageModel, hidden: Mapping[int, Tensor]) -> AbstractContextManager[None]:
    """Hide cached slots from single layers: layer -> (row, slot), true where the slot is hidden from the row's tokens."""

    def register(layer: int, fired: set[int]) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            fired.add(layer)
            bound = _signature(type(module).forward).bind(module, *args, **kwargs)
            mask = bound.arguments.get("attention_mask")
            residual = _required(bound.args[1], lm.d_model, f"{lm.name}: what enters block {layer}")
            bound.arguments["attention_mask"] = _without(mask, hidden[layer], residual.shape[1])
            return bound.args[1:], bound.kwargs

        return lm.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)

    return _hooks(register, hidden, "hiding slots")


def _without(mask: Tensor | None, hidden: Tensor, n_tokens: int) -> Tensor:
    """A block's mask (row, 1, token, slot) with the first slots hidden that are hidden from a row (row, slot)."""
    n_slots = hidden.shape[1]
    if mask is None:  # the kernel's own causal order
        mask = torch.ones(1, 1, n_tokens, n_slots + n_tokens, dtype=torch.bool, device=hidden.device).tril(n_slots)
    columns = nn.functional.pad(hidden, (0, mask.shape[-1] - n_slots))[:, None, None].to(mask.device)
    return mask & ~columns if mask.dtype == torch.bool else mask.masked_fill(columns, torch.finfo(mask.dtype).min)


@contextmanager
def one_token_per_row(lm: LanguageModel, tokens: Tensor) -> Iterator[None]:
    """The output head reads one token (row,) of each row and no others: logits are (row, 1, vocab)."""
    fired = False

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal fired
        fired = True
        hidden = _required(args[0], args[0].shape[-1], f"{lm.name}: what enters the output head")
        rows = torch.arange(len(tokens), device=hidden.device)
        return (hidden[rows, tokens.to(hidden.device)][:, None], *args[1:])

    with lm.hf.get_output_embeddings().register_forward_pre_hook(hook):
        yield
    if not fired:
        raise HookNeverFired("reading one token per row: the output head never ran; was the whole model run?")


See = Callable[[str, str, Tensor | None, Mapping[str, Any]], None]


@contextmanager
def watch_modules(root: nn.Module, see: See) -> Iterator[None]:
    """Tell `see` what enters and what leaves every module of `root`, in the order in which it happens.

    `see(name, side, tensor, named)`: `side` is "input" or "output", `tensor` the first one on that side (not a copy; None
    if there is none), `named` the keyword arguments of an input. Set last, it sees what hooks set before have changed.
    """

    def watch(name: str, module: nn.Module) -> None:
        def entering(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            see(name, "input", _first_tensor([*args, *named.values()]), named)

        def leaving(module: Any, args: Any, output: Any) -> None:
            see(name, "output", _first_tensor(output if isinstance(output, tuple) else [output]), {})

        handles.enter_context(module.register_forward_pre_hook(entering, with_kwargs=True))
        handles.enter_context(module.register_forward_hook(leaving))

    with ExitStack() as handles:
        for name, module in root.named_modules():
            watch(name, module)
        yield


def _first_tensor(values: Iterable[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)


@contextmanager
def read_blocks(lm: LanguageModel, n_tokens: int) -> Iterator[tuple[list[Tensor], list[bool]]]:
    """Copies of what enters each block at the last tokens, and behind the last layer of what leaves it: (batch, n_tokens, d_model).

    Beside it, whether each block returns a tuple.
    """
    entered, tuples = list[Tensor](), list[bool]()

    def entering(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        entered.append(_required(hidden, lm.d_model, f"{lm.name}: what enters block {layer}")[:, -n_tokens:].clone())

    def leaving(layer: int, output: Any) -> None:
        left = _left(output, lm, layer)
        tuples.append(isinstance(output, tuple))
        if layer == lm.n_layers - 1:
            entered.append(left[:, -n_tokens:].clone())

    def register(layer: int, fired: set[int]) -> RemovableHandle:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            fired.add(layer)
            entering(layer, args, kwargs)

        block = lm.blocks[layer]
        handles.callback(block.register_forward_hook(lambda module, args, output: leaving(layer, output)).remove)
        return block.register_forward_pre_hook(before, with_kwargs=True)

    with ExitStack() as handles, _hooks(register, range(lm.n_layers), "reading blocks"):
        yield entered, tuples


class _Ended(Exception):
    """All that was to be read is read."""


@dataclass
class Attention:
    """What goes through a layer's attention at the last tokens of a pass."""

    heads: Tensor  # (batch, token, n_heads * d_head), what enters the projection
    projected: Tensor  # (batch, token, d_model), what leaves it
    left: Tensor  # the same, what leaves the attention: more than that where it adds the residual itself
    n_more: int | None  # how many things it returns beside it, or None where it returns no tuple

    @property
    def added(self) -> Tensor:
        """What the attention adds behind its projection: nothing, as a rule."""
        return self.left - self.projected

    def at(self, tokens: slice) -> Attention:
        return Attention(self.heads[:, tokens], self.projected[:, tokens], self.left[:, tokens], self.n_more)


@contextmanager
def read_attention(lm: LanguageModel, n_tokens: int, until: int | None = None) -> Iterator[dict[int, Attention]]:
    """Layer -> copies of what goes through its attention at the last tokens.

    until: the pass ends behind the attention of this layer, and the block goes on
    """
    found, projections = dict[int, Attention](), dict[int, tuple[Tensor, Tensor]]()

    def register(layer: int, fired: set[int]) -> RemovableHandle:
        def projecting(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
            projections[layer] = args[0][:, -n_tokens:].clone(), output[:, -n_tokens:].clone()

        def attending(module: Any, args: tuple[Any, ...], output: Any) -> None:
            fired.add(layer)
            hidden, n_more = (output[0], len(output) - 1) if isinstance(output, tuple) else (output, None)
            left = _required(hidden, lm.d_model, f"{lm.name}: what leaves the attention of layer {layer}")
            found[layer] = Attention(*projections[layer], left[:, -n_tokens:].clone(), n_more)
            if layer == until:
                raise _Ended

        handles.callback(lm.o_proj(layer).register_forward_hook(projecting).remove)
        return lm.attention(layer).register_forward_hook(attending)

    with suppress(_Ended), ExitStack() as handles, _hooks(register, lm.head_layers, "reading attention"):
        yield found


def require_streams(lm: LanguageModel) -> None:
    """Look at a pass over two rows of three tokens; raises ModelError where it does not run, or a block or a projection
    handles something else than (row, token, width)."""
    ids = torch.tensor(PROBE, device=lm.device)
    try:
        with torch.inference_mode(), read_blocks(lm, ids.shape[1]) as (entered, _), read_heads(lm) as heads:
            lm.hf(input_ids=ids, use_cache=False)
    except ModelError:
        raise
    except Exception as error:  # whatever a model's code says
        said = f"{type(error).__name__}: {in_one_line(error):.300}"
        raise ModelError(
            f"{lm.name}: a pass over {ids.shape[1]} tokens, by which a model is looked at, failed ({said})"
        ) from error
    names = [*(f"what enters block {layer}" for layer in range(lm.n_layers)), f"what leaves block {lm.n_layers - 1}"]
    seen = dict(zip(names, entered, strict=True))
    for what, x in (seen | {f"what enters the projection of layer {layer}": x for layer, x in heads.items()}).items():
        if x.shape[:2] != ids.shape:
            raise _no_stream(x, f"{tuple(ids.shape)} and a width", f"{lm.name}: {what}")


@contextmanager
def passing_over(
    lm: LanguageModel, instead: Callable[[int, Tensor, dict[str, Any]], Tensor], n_blocks: int | None = None
) -> Iterator[None]:
    """No block computes anything: `instead(layer, residual, the block's other arguments by name)` gives its output.

    n_blocks: the first ones only (default: all)
    """

    def stand_in(layer: int, block: nn.Module) -> Callable[..., Any]:
        names = _signature(type(block).forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            bound = names.bind(block, *args, **kwargs)
            _, (_, hidden), *rest = bound.arguments.items()
            hidden = _required(hidden, lm.d_model, f"{lm.name}: what enters block {layer}")
            given = {name: value for name, value in rest if name not in {"kwargs"}} | bound.arguments.get("kwargs", {})
            output = instead(layer, hidden, given)
            return (output,) if tuples[layer] else output

        return forward

    tuples = blocks_return_tuples(lm)
    with ExitStack() as stack:
        for layer, block in enumerate(lm.blocks[:n_blocks]):
            stack.enter_context(_standing_in(block, stand_in(layer, block)))
        yield


@contextmanager
def _standing_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")  # some loaders give modules a forward of their own
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def blocks_return_tuples(lm: LanguageModel) -> list[bool]:
    """Whether each block returns a tuple; asked of a model once."""

    def find() -> str:
        with torch.no_grad(), read_blocks(lm, 1) as (_, tuples):
            lm.hf(input_ids=lm.ids([1]), use_cache=False)
        return "".join(str(int(one)) for one in tuples)

    return [one == "1" for one in lm.once("blocks that return a tuple", find)]


Give: TypeAlias = "Callable[[Attention | None], Tensor]"
"""What an attention leaves for rows of others' (batch, row, d_model), made of what went through it at the tokens asked for."""


def attention_given(
    lm: LanguageModel, layer: int, n_given: int, give: Give, n_more: int | None, at: slice | None = None
) -> AbstractContextManager[None]:
    """The last of a block's rows are given what their attention leaves; it runs on the rows before these alone.

    n_given: how many rows     n_more: how many things it returns beside it where it does not run, as `Attention` has it
    at: the tokens where `give` wants to know what went through
    """
    module = lm.attention(layer)
    names, inner = _signature(type(module).forward), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        _, (_, hidden), *_ = names.bind(module, *args, **kwargs).arguments.items()
        n_rows = hidden.shape[1]
        n_own = n_rows - n_given
        if not n_own:
            return give(None) if n_more is None else (give(None), *[None] * n_more)
        # As they came: a forward of a loader's own may take them in no other way.
        first = [
            _first(value, n_own, n_rows, name)
            for name, value in zip_longest([*names.parameters][1:][: len(args)], args)
        ]
        with _projection(lm, layer, at) as through:
            output = inner(*first, **_first(kwargs, n_own, n_rows))
        left, *more = output if isinstance(output, tuple) else (output,)
        seen = None if at is None else Attention(through["heads"], through["projected"], left[:, at], None)
        left = torch.cat([left, give(seen)], dim=1)
        return (left, *more) if isinstance(output, tuple) else left

    return _standing_in(module, forward)


@contextmanager
def _projection(lm: LanguageModel, layer: int, at: slice | None) -> Iterator[dict[str, Tensor]]:
    """The heads that enter a layer's output projection at some tokens, and what leaves it there."""
    found = dict[str, Tensor]()
    if at is None:
        yield found
        return

    def see(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        found.update(heads=args[0][:, at], projected=output[:, at])

    with lm.o_proj(layer).register_forward_hook(see):
        yield found


def _first(value: Any, n: int, n_rows: int, name: str = "") -> Any:
    """The first n of the rows of whatever a module is given for `n_rows`."""
    if isinstance(value, dict):
        return {key: _first(part, n, n_rows, key) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_first(part, n, n_rows) for part in value)
    if name == "attention_mask" and isinstance(value, Tensor):
        return value[..., :n, : value.shape[-1] - n_rows + n]
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == n_rows:
        # Of one prompt a view with the strides of a whole tensor, or its products run one by one; of several a copy, for
        # some projections take a view of it.
        return value[0, :n][None] if len(value) == 1 else value[:, :n].contiguous()
    return value


@contextmanager
def hooks_left(root: nn.Module | None) -> Iterator[list[str]]:
    """The modules on which the block leaves hooks that were not there before; the hooks are taken off again.

    The library's own are none of these: it sets those that capture hidden states once, and a model without them would
    answer `output_hidden_states=True` with nothing. Where the block takes them off, they are put back, or set anew.
    """
    modules = dict(root.named_modules()) if root is not None else {}
    tables = [(name, getattr(module, kind)) for name, module in modules.items() for kind in HOOK_TABLES]
    tables += [("every module", getattr(nn.modules.module, f"_global{kind}")) for kind in HOOK_TABLES]
    before = [dict(table) for _, table in tables]
    left: list[str] = []
    try:
        yield left
    finally:
        for (name, table), known in zip(tables, before, strict=True):
            for handle in [handle for handle in table if handle not in known and not _of_library(table[handle])]:
                del table[handle]
                left.append(name)
            table.update({handle: hook for handle, hook in known.items() if _of_library(hook)})
        for module in modules.values():
            if vars(module).get(CAPTURES) and not any(map(_has_captures, module.modules())):
                setattr(module, CAPTURES, False)  # so that the library sets them once more


def as_it_stands(root: nn.Module) -> str:
    """Another text where modules were exchanged, or others' hooks or a forward of their own set on them, since it was asked."""
    found = list[Any]()
    for module in root.modules():
        tables = module._forward_pre_hooks, module._forward_hooks
        found += [number for table in tables for number, hook in table.items() if not _of_library(hook, "fvcore")]
        found.append((id(module), id(vars(module).get("forward"))))
    return str(hash(str(found)))


HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


CAPTURES = "_output_capturing_hooks_installed"
"""Where transformers keeps whether it has set its hooks."""


def _has_captures(module: nn.Module) -> bool:
    return any(map(_of_library, module._forward_hooks.values()))


def _of_library(hook: Any, *others: str) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] in {"transformers", *others}
