"""What a run says while it goes: the step, the layer it came to, and the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fvcore.fast.chunks import Advance, silent


class Progressing(Protocol):
    """Who wants to know how far a run is."""

    def running(self, step: str, total: int | None) -> AbstractContextManager[Advance]: ...
    def already(self, step: str) -> None: ...


class Quiet:
    """Says nothing."""

    @contextmanager
    def running(self, step: str, total: int | None) -> Iterator[Advance]:
        yield silent

    def already(self, step: str) -> None:
        pass


class Shown:
    """A bar on a console while a step runs, and a line when it is done. `label` (a q_id, say) stands before each."""

    def __init__(self, console: Console, label: str = "") -> None:
        self.console, self.label = console, f"{label} " if label else ""

    @contextmanager
    def running(self, step: str, total: int | None) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("time left"), TimeRemainingColumn())
        started = monotonic()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(f"{self.label}{step}", total=total)

            def tell(layer: int, n_rows: int) -> None:
                progress.update(task, advance=n_rows, description=f"{self.label}{step}, layer {layer}")

            yield tell
        self.console.print(f"{self.label}{step}: {monotonic() - started:.1f} s", markup=False)

    def already(self, step: str) -> None:
        self.console.print(f"{self.label}{step}: already done, not run again", markup=False)
