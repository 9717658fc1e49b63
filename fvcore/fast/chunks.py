"""Work in chunks that fit the memory there is, and how far it is: out of memory halves the chunk and goes on."""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import torch

from fvcore.model.memory import free_memory, is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

Advance: TypeAlias = "Callable[[int, int], None]"
"""Called while work goes on: the layer it came to, and how many rows were done since the last call."""


def silent(layer: int, n_rows: int) -> None:
    """Nobody wants to know how far work is."""


SHARE = 0.5
"""Of the memory that is free: kernels need some for themselves, and so do other processes."""


def fitting(bytes_each: int, device: torch.device, at_most: int, max_memory: int | None = None) -> int:
    """How many items of a size fit the memory, of as many as are asked for."""
    budget = int(SHARE * free_memory(device)) if max_memory is None else max_memory
    return min(at_most, budget // max(1, bytes_each))


def chunk_size(bytes_each: int, device: torch.device, at_most: int, max_memory: int | None = None) -> int:
    """How many items of a size run together: at least one, and no more than asked for."""
    return max(1, fitting(bytes_each, device, at_most, max_memory))


def even(n_items: int, size: int) -> int:
    """A size that is no larger, and gives as few chunks that are alike: products of a few rows are slow."""
    return -(-n_items // -(-n_items // size))


def in_chunks(items: Sequence[Item], size: int, run: Callable[[Sequence[Item]], Result]) -> Iterator[Result]:
    """`run` on one chunk after the other, in order. Raises what `run` raises, and out of memory for a single item."""
    start = 0
    while start < len(items):
        chunk = items[start : start + size]
        try:
            result = run(chunk)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(chunk) == 1:
                raise
            size = len(chunk) // 2
        else:
            start += len(chunk)
            yield result
            continue
        # Outside the except clause: the traceback holds the tensors that did not fit.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
