"""What code that was handed a model leaves behind: watched while it works, put back where that can be done, and named.

Weights are told by a sum over their bits: torch's version counters do not see what is edited through `.data`. Copies are
kept of small models alone, and of a larger one changed weights cannot be put back.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fvcore.model.hooks import hooks_left

COPIED = 2**28
"""The largest model, in bytes, of which copies are kept."""

HARMLESS = {
    "pad_token_id",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "transformers_version",
}
"""Entries of a configuration that change no number: put back without a word."""

ABSENT = object()


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that was left, in words after "the candidate left", and whether it could be put back."""

    what: str
    put_back: bool = True


Settle = Callable[[], Iterable[Leftover]]
"""Puts back what has changed since, and names it."""


@contextmanager
def left_behind(model: nn.Module | None, tokenizer: Any = None, wiring: bool = True) -> Iterator[list[Leftover]]:
    """What the block leaves on torch, the model, its configurations, the files of its code and the tokenizer.

    Without `wiring`, hooks, submodules and forwards may stay: they are how a library takes hold of a model.
    """
    found: list[Leftover] = []
    wires = (_files, _modules) if wiring else ()
    settles = [_switches(model)]
    settles += [watch(model) for watch in (*wires, _training, _weights, _configs) if model is not None]
    settles += [_tokens(tokenizer)] if tokenizer is not None else []
    hooks: list[str] = []
    try:
        with hooks_left(model) if wiring else nullcontext(hooks) as hooks:
            yield found
    finally:
        for settle in settles:
            found += settle()
        if hooks:
            found.insert(0, Leftover(f"{len(hooks)} hook(s) on the model, at {_some(hooks)}"))


def _some(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _switches(model: nn.Module | None) -> Settle:
    """State of torch and of the process that changes what is made later. Gradients are left as they are: no number changes."""
    devices = {"cpu"} | {parameter.device.type for parameter in (model.parameters() if model is not None else ())}
    switches: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "torch's inference mode": (torch.is_inference_mode_enabled, _enter_inference_mode),
        "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's default device": (torch.get_default_device, _set_default_device),
        "torch's float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "torch's deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        "the working directory": (Path.cwd, os.chdir),
    }
    for device in devices - {"meta"}:
        autocast = partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)
        switches[f"torch's autocast on {device}"] = autocast
    before = {name: read() for name, (read, _) in switches.items()}

    def settle() -> Iterator[Leftover]:
        for name, (read, write) in switches.items():
            if (now := read()) != before[name]:
                write(before[name])
                yield Leftover(f"{name} at {now} (it was {before[name]})")

    return settle


_ENTERED: list[Any] = []
"""What was entered to put a mode back; a mode ends with the object that began it."""


def _enter_inference_mode(on: bool) -> None:
    _ENTERED.append(torch.inference_mode(on))
    _ENTERED[-1].__enter__()


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _modules(model: nn.Module) -> Settle:
    """Submodules, and forwards of single modules."""
    named = dict(model.named_modules())
    kept = {name: (dict(module._modules), module.__dict__.get("forward", ABSENT)) for name, module in named.items()}

    def settle() -> Iterator[Leftover]:
        swapped, patched = list[str](), list[str]()
        for name, module in named.items():
            children, forward = kept[name]
            if others := _differing(children, module._modules):
                swapped += [f"{name}.{child}".strip(".") for child in others]
                module._modules.clear()
                module._modules.update(children)
            if module.__dict__.get("forward", ABSENT) is not forward:
                patched.append(name or "the model")
                _put(module.__dict__, "forward", forward)
        if swapped:
            yield Leftover(f"other submodules at {_some(swapped)}")
        if patched:
            yield Leftover(f"a forward of its own at {_some(patched)}")

    return settle


def _training(model: nn.Module) -> Settle:
    kept = {name or "the model": (module, module.training) for name, module in model.named_modules()}

    def settle() -> Iterator[Leftover]:
        if other := [name for name, (module, training) in kept.items() if module.training != training]:
            for module, training in kept.values():
                module.training = training
            yield Leftover(f"another training mode at {_some(other)}")

    return settle


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in dict.fromkeys([*before, *now]) if before.get(name, ABSENT) is not now.get(name, ABSENT)]


def _put(table: Any, name: str, value: Any) -> None:
    if value is ABSENT:
        table.pop(name, None)
    else:
        table[name] = value


def _files(model: nn.Module) -> Settle:
    """Functions and classes' forwards in the files that the model's code stands in."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__ if _is_its_own(cls)}
    files = {sys.modules[cls.__module__] for cls in classes if cls.__module__ in sys.modules}
    kept_files = {file: {name: value for name, value in vars(file).items() if callable(value)} for file in files}
    kept_classes = {cls: cls.__dict__.get("forward", ABSENT) for cls in classes}

    def settle() -> Iterator[Leftover]:
        changed = []
        for cls, forward in kept_classes.items():
            if cls.__dict__.get("forward", ABSENT) is not forward:
                changed.append(f"{cls.__name__}.forward")
                delattr(cls, "forward") if forward is ABSENT else setattr(cls, "forward", forward)
        for file, functions in kept_files.items():
            for name, value in functions.items():
                if getattr(file, name, None) is not value:
                    changed.append(f"{file.__name__.rpartition('.')[2]}.{name}")
                    setattr(file, name, value)
        if changed:
            yield Leftover(f"other code in the model's library, at {_some(changed)}")

    return settle


def _is_its_own(cls: type) -> bool:
    """Whether this is code of the model, and not of torch or of Python."""
    return issubclass(cls, nn.Module) and not cls.__module__.startswith("torch.")


def _weights(model: nn.Module) -> Settle:
    """Parameters and buffers, but for those that the library itself changes on the way."""
    tables = {
        (name, kind): getattr(module, kind)
        for name, module in model.named_modules()
        for kind in ("_parameters", "_buffers")
        if kind == "_parameters" or not _scales_by_length(module)
    }
    held = [
        (f"{name}.{entry}".strip("."), table, entry, tensor)
        for (name, _), table in tables.items()
        for entry, tensor in table.items()
        if tensor is not None
    ]
    data = [tensor.data for _, _, _, tensor in held]  # shares its memory, and stays when `.data` is given another
    marks = [_mark(tensor) for tensor in data]
    has_copies = sum(tensor.nbytes for tensor in data if not tensor.is_meta) <= COPIED
    copies = [tensor.clone() for tensor in data] if has_copies else None

    def settle() -> Iterator[Leftover]:
        changed, lost = list[str](), False
        for number, (name, table, entry, tensor) in enumerate(held):
            now = table.get(entry)
            if now is None or _mark(now) != marks[number]:
                changed.append(name)
            table[entry] = tensor
            if tensor.data_ptr() != data[number].data_ptr() or tensor.dtype != data[number].dtype:
                tensor.data = data[number]
            if _mark(data[number]) != marks[number]:
                lost |= copies is None
                if copies is not None:
                    data[number].copy_(copies[number])
        if changed:
            yield Leftover(f"changed weights at {_some(changed)}", not lost)

    return settle


def _scales_by_length(module: nn.Module) -> bool:
    """Whether a module's buffers follow the length of the prompts, as transformers' `dynamic_rope_update` has it."""
    kinds = str(getattr(module, "rope_type", ""))
    return "dynamic" in kinds or "longrope" in kinds


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors of the same bits have in common, and others all but surely have not."""
    form = tensor.dtype, tuple(tensor.shape)
    if tensor.is_meta or not tensor.numel() or tensor.layout is not torch.strided:
        return form
    bits = tensor.detach().contiguous().flatten().view(torch.uint8)
    whole = (
        bits[: len(bits) // 8 * 8].clone().view(torch.int64)
    )  # eight bytes a number are summed as fast as they are read
    n_rows = len(tensor) if tensor.ndim > 1 and len(whole) % len(tensor) == 0 else 1
    sums = whole.view(n_rows, -1).sum(dim=1)
    places = torch.arange(1, n_rows + 1, device=sums.device)
    return (*form, int((sums * places).sum()), int(sums.sum()), int(bits[8 * len(whole) :].sum()))


def _configs(model: nn.Module) -> Settle:
    """The model's configuration and that of its generation."""
    kept = {name: getattr(model, name, None) for name in ("config", "generation_config")}
    before = {name: _entries(config) for name, config in kept.items()}

    def settle() -> Iterator[Leftover]:
        for name, config in kept.items():
            if getattr(model, name, None) is not config:
                changed = _differing_entries(before[name], _entries(getattr(model, name)))
                setattr(model, name, config)
            else:
                changed = []
            now = _entries(config)
            own = _differing_entries(before[name], now)
            for entry in own:
                setattr(config, entry, before[name].get(entry))
            put_back = not _differing_entries(before[name], _entries(config))
            if told := [entry for entry in dict.fromkeys([*changed, *own]) if entry not in HARMLESS]:
                yield Leftover(f"another {_some(f'{name}.{entry}' for entry in told)}", put_back)

    return settle


def _entries(config: Any) -> dict[str, Any]:
    if config is None or not hasattr(config, "to_dict"):
        return {}
    entries: dict[str, Any] = deepcopy(config.to_dict())
    attention = getattr(config, "_attn_implementation", None)
    return entries if attention is None else entries | {"_attn_implementation": attention}


def _differing_entries(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*before, *now])
    return [name for name in names if repr(before.get(name, ABSENT)) != repr(now.get(name, ABSENT))]


def _tokens(tokenizer: Any) -> Settle:
    """The vocabulary, and whether text becomes the same ids."""
    backend: Any = getattr(tokenizer, "_tokenizer", None)
    saved, before = backend.to_str() if backend is not None else None, _reading(tokenizer)
    others = {name: _copied(value) for name, value in vars(tokenizer).items() if name != "_tokenizer"}

    def settle() -> Iterator[Leftover]:
        if (now := _reading(tokenizer)) == before:
            return
        if saved is not None:
            tokenizer._tokenizer = type(backend).from_str(saved)
            vars(tokenizer).update(others)
        more = len(now[0]) - len(before[0])
        what = f"{more} more token(s) in the tokenizer" if more else "a tokenizer that gives other ids"
        yield Leftover(what, _reading(tokenizer) == before)

    return settle


def _copied(value: Any) -> Any:
    try:
        return deepcopy(value)
    except Exception:  # some libraries' objects cannot be copied; they are put back as they are
        return value


def _reading(tokenizer: Any) -> tuple[dict[str, int], list[int]]:
    return dict(tokenizer.get_added_vocab()), list(tokenizer("Q: a bc\nA: 1").input_ids)
