"""A process that ends itself before its session does must not end with status 0.

Two ways lead past all that Python does at its end. `os._exit` is replaced as long as the session lasts. `exit` of the C
library runs what was registered with it: here `strlen` of a page that may be read at a normal end and not before, so that
an early one is a segmentation fault, whose stack pytest's faulthandler shows. That needs no Python: there is none any more
at a normal end. What ends a process by other means (a system call of its own, `exec`) is not seen from inside.
"""

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

EARLY = 70
"""The status of a process that asked for 0: EX_SOFTWARE."""

UNREADABLE, READABLE = 0, 1  # PROT_NONE, PROT_READ
SAID = b"fvparity: this process ended itself with status 0 before its session was over; its status is now 70\n"


class Watch:
    """From `begin` to `end` an early end has a status that is not 0; watches may lie inside one another."""

    n_watching = 0

    def __init__(self) -> None:
        self.exit: Callable[[int], Any] = os._exit
        self.process, self.watching = os.getpid(), False

    def begin(self) -> None:
        self.watching, self.exit = True, os._exit
        os._exit = self._exit
        Watch.n_watching += 1
        _set_page(UNREADABLE)

    def end(self) -> None:
        if not self.watching or os.getpid() != self.process:
            return
        self.watching, os._exit = False, self.exit  # type: ignore[assignment]
        Watch.n_watching -= 1
        if not Watch.n_watching:
            _set_page(READABLE)

    def _exit(self, status: int) -> Any:
        if status or os.getpid() != self.process:  # a child that was forked ends as it likes
            return self.exit(status)
        with suppress(OSError):
            os.write(2, SAID)
        return self.exit(EARLY)


def _set_page(protection: int) -> None:
    import ctypes

    if page := _page():
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), protection)


@cache
def _page() -> int | None:
    """The page that is read when the C library ends the process; None where there is no such library."""
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        register, take, read = libc.__cxa_atexit, libc.mmap, ctypes.cast(libc.strlen, ctypes.c_void_p)
    except (OSError, AttributeError, TypeError):
        return None
    take.restype, take.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long],
    )
    page: int = take(None, mmap.PAGESIZE, READABLE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    register.argtypes = [ctypes.c_void_p] * 3
    register(read, page, None)
    os.register_at_fork(after_in_child=lambda: _set_page(READABLE))
    return page
