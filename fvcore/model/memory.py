"""Memory: what is free on a device, by how much a piece of work made it grow, and how to know that it was too little."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from fvcore.provenance import peak_rss


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


KEPT = 512 * 2**20
"""Bytes of freed memory that a process keeps at most."""


@cache
def keep_freed_memory() -> None:
    """Have the C library keep up to `KEPT` bytes of freed memory, once a process; it does so for glibc, and nothing elsewhere.

    What is given back to the system is taken anew page by page, and every page is cleared first: for arrays of some
    megabytes, made and freed with each operation, that takes longer than the operation. Who set glibc's own variables is left alone.
    """
    if not {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most it takes
            mallopt(M_TRIM_THRESHOLD, KEPT)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As malloc.h has them."""

ALLOCATOR = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
"""What allocators of CPUs and GPUs say where there is no type of error for it; Linux and Windows differ."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in ALLOCATOR)


@dataclass
class Peak:
    """By how many bytes memory grew at most; known when the block has ended."""

    n_bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure what the block takes at most beyond what was there before: the weights, usually.

    Of all GPUs together where there are any in use, of the process elsewhere. There, memory that an earlier piece of work
    freed and the process kept does not count: the figure is what the machine had to give.
    """
    peak = Peak()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    before = {gpu: torch.cuda.memory_allocated(gpu) for gpu in gpus}
    if not before:
        # The kernel keeps the largest size since a process began; where it can be told to forget, it is.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        held = psutil.Process().memory_info().rss
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    try:
        yield peak
    finally:
        if before:
            peak.n_bytes = sum(torch.cuda.max_memory_allocated(gpu) - taken for gpu, taken in before.items())
        else:
            peak.n_bytes = max(0, peak_rss() - held)
