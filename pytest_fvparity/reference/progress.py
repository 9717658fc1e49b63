"""How far a run of the reference is, and the time that is left: a line that changes on a terminal, a line a tenth elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from fvcore import escapes


def shown(config: pytest.Config, what: str) -> Callable[[float], None]:
    """What is told which share of the work is done, and shows it where pytest writes, whatever else is captured."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    began, tenths = monotonic(), [0]

    def show(share: float) -> None:
        text = escapes.line(words(what, share, monotonic() - began))
        if terminal.isatty:
            terminal.rewrite(text, erase=True)
        elif int(10 * share) > tenths[0]:
            tenths[0] = int(10 * share)
            terminal.write_line(text)

    def advance(share: float) -> None:
        if terminal is None or config.get_verbosity() < 0:
            return
        if capture is None:
            show(share)
            return
        with capture.global_and_fixture_disabled():
            show(share)

    return advance


def words(what: str, share: float, taken_s: float) -> str:
    left = "" if share <= 0 else f", about {duration(taken_s * (1 - share) / share)} left"
    return f"fvparity: {what}: {100 * share:.0f} % after {duration(taken_s)}{left}"


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
