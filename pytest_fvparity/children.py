"""Processes that this one starts: they end when it ends, however it does, and go on with nobody's work.

Run as a script it is what stands before a child's own program: it asks the kernel for the signal, and becomes that program.
"""

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def following(words: Sequence[str]) -> list[str]:
    """The command of a child that is killed when this process is gone. Only Linux has a signal for that; elsewhere, and of a
    program that is not there, the command is what it was."""
    if sys.platform != "linux" or shutil.which(words[0]) is None:
        return list(words)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *words]


def follow(parent: int) -> None:
    """Be killed when `parent` ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this was asked
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    follow(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
