"""Requests to another process and its answers, a JSON object a line on its input and output, numbered.

An answer belongs to a request by its number, never by its turn. Whatever else comes, a line that is none or has another
number, no line in time, the end of the process, ends the conversation for good: the process is killed, and every later
request fails with the same sentence.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fvcore.gates import StageError

LONGEST = 2**24
"""Characters of a line that are read: an answer is short, a traceback not long."""
SHOWN = 200
PATIENCE_S = 30.0
"""How long a process may take to end that was asked to."""

NUMBER = "number"


class CandidateError(StageError):
    """A candidate cannot be brought up, or fails in another process."""


class Conversation:
    """With a process that was started by `command` in `folder`. `name` is how errors call it."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, timeout_s: float) -> None:
        self.name, self.timeout_s = name, min(timeout_s, threading.TIMEOUT_MAX)
        self.n_asked, self.over = 0, ""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process: Any = subprocess.Popen(command, **pipes, text=True, errors="replace", cwd=folder)
        self._lines: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Lines as they come, and an empty one behind the last."""
        with suppress(OSError, ValueError):  # closed under its hands
            while line := self.process.stdout.readline(LONGEST):
                self._lines.put(line)
        self._lines.put("")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; raises CandidateError where none comes."""
        self.n_asked += 1
        if self.over:
            raise CandidateError(self.over)
        with suppress(BrokenPipeError):  # what is read next says how the process ended
            self.process.stdin.write(json.dumps({NUMBER: self.n_asked, **request}) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line, which must be the answer to the last request; 0 is what a process says when it is ready."""
        try:
            line = self._lines.get(timeout=self.timeout_s)
        except Empty:
            raise self._ended(f"gave no answer in {self.timeout_s:g} s (--fv-candidate-timeout)") from None
        if not line:
            raise self._ended(f"ended its process (exit status {self._status()}); see its output above")
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict) and value.pop(NUMBER, None) == self.n_asked:
                return value
        raise self._ended(
            f"wrote a line to the output that carries the answers, which is not answer {self.n_asked}: {line[:SHOWN]!r}"
        )

    def _status(self) -> int | str:
        try:
            return int(self.process.wait(PATIENCE_S))
        except subprocess.TimeoutExpired:
            return "none: it closed its output and went on"

    def _ended(self, why: str) -> CandidateError:
        self.over = f"candidate {self.name} {why}"
        self.process.kill()
        return CandidateError(self.over)

    def close(self) -> None:
        """Let the process end by itself, or kill it."""
        with suppress(OSError):  # it may have ended long ago
            self.process.stdin.close()
        try:
            self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
