"""What a run says while it goes: on a console the step, the layer it came to and the time left; in a log what happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fvcore.escapes import line, markup
from fvcore.exits import in_one_line
from fvcore.formats import read_text, write_text
from fvcore.provenance import now

if TYPE_CHECKING:
    from fvcore.experiments.status import Outcome
    from fvcore.fast.chunks import Advance


class Progressing(Protocol):
    """Who wants to know how far a run is."""

    def running(self, step: str, total: int | None) -> AbstractContextManager[Advance]: ...
    def already(self, step: str) -> None: ...


class Watched:
    """Tells who is behind, if anybody is, and remembers the step that a run came to, for a failure's report."""

    def __init__(self, behind: Progressing | None = None) -> None:
        self.behind, self.step = behind, "start"

    def running(self, step: str, total: int | None) -> AbstractContextManager[Advance]:
        self.step = step
        return nullcontext(lambda layer, n_rows: None) if self.behind is None else self.behind.running(step, total)

    def already(self, step: str) -> None:
        if self.behind is not None:
            self.behind.already(step)


class Shown:
    """A bar on a console while a step runs, and a line when it is done. `label` (a q_id, say) stands before each.

    unit: what a step goes through, one after the other
    """

    def __init__(self, console: Console, label: str = "", unit: str = "layer") -> None:
        self.console, self.label, self.unit = console, f"{label} " if label else "", unit

    @contextmanager
    def running(self, step: str, total: int | None) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("time left"), TimeRemainingColumn())
        started = monotonic()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(markup(f"{self.label}{step}"), total=total)

            def advance(layer: int, n_rows: int) -> None:
                progress.update(task, advance=n_rows, description=markup(f"{self.label}{step}, {self.unit} {layer}"))

            yield advance
        self.console.print(line(f"{self.label}{step}: {monotonic() - started:.1f} s"), markup=False)

    def already(self, step: str) -> None:
        self.console.print(line(f"{self.label}{step}: already done, not run again"), markup=False)


class Bar:
    """One bar over all units on a console that is a terminal; elsewhere a line for each unit, as on a terminal too.

    It is there while its `progress` is entered.

    rows: how many rows each unit makes the model compute, at most
    """

    def __init__(self, console: Console, rows: Mapping[str, int]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("left"))
        self.console, self.rows = console, rows
        self.progress = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.progress.add_task("", total=sum(rows.values()))
        self.behind, self.since = 0, monotonic()  # rows of the units that have ended; when the last one did

    def of(self, name: str) -> Progressing:
        """What tells this bar of one unit."""
        return _OfUnit(self, name)

    def say(self, text: str) -> None:
        self.progress.update(self.task, description=markup(text))

    def advance(self, name: str, n_rows: int) -> None:
        """Never beyond the unit that is at work, so that what was counted too high is not held against the next."""
        done = self.progress.tasks[self.task].completed
        self.progress.update(self.task, completed=min(done + n_rows, self.behind + self.rows[name]))

    def ended(self, outcome: Outcome) -> None:
        self.behind += self.rows[outcome.name]
        self.progress.update(self.task, completed=self.behind)
        took, self.since = monotonic() - self.since, monotonic()
        reason = "already done, not run again" if not outcome.ran else outcome.reason
        style = "red" if outcome.status == "failed" else None
        text = f"{outcome.name}: {outcome.status}, {reason} ({took:.1f} s)"
        self.console.print(line(text), style=style, markup=False, soft_wrap=True)


class _OfUnit:
    def __init__(self, bar: Bar, name: str) -> None:
        self.bar, self.name = bar, name

    @contextmanager
    def running(self, step: str, total: int | None) -> Iterator[Advance]:
        self.bar.say(f"{self.name} {step}")

        def advance(layer: int, n_rows: int) -> None:
            self.bar.say(f"{self.name} {step}, layer {layer}")
            self.bar.advance(self.name, n_rows)

        yield advance

    def already(self, step: str) -> None:
        self.bar.say(f"{self.name} {step}, already done")


class Log:
    """A line for each thing that happened to a run, later runs behind earlier ones; the file is whole at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = read_text(path) if path.is_file() else ""

    def line(self, text: str) -> None:
        self.text += f"{now()} {in_one_line(text)}\n"
        write_text(self.path, self.text)
