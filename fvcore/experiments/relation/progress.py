"""What a person sees of a run over q_ids: one bar with the q_id, its step and layer, and the time left for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fvcore.experiments.relation.unit import Outcome, Unit
from fvcore.experiments.runtime.measure import Tell
from fvcore.experiments.runtime.progress import Progressing


class Bar(AbstractContextManager["Bar"]):
    """A bar over a run on a console that is a terminal; elsewhere a line for each q_id, as on a terminal too."""

    def __init__(self, console: Console, units: Sequence[Unit], rows_each: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("left"))
        self.console, self.units, self.rows_each = console, list(units), rows_each
        self.progress = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        todo = [unit for unit in units if not unit.too_small]
        self.task = self.progress.add_task("", total=rows_each * len(todo))
        self.n_ended, self.since = 0, monotonic()

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def of(self, unit: Unit) -> Progressing:
        """What tells this bar of one q_id."""
        return _OfUnit(self, unit.q_id)

    def say(self, text: str) -> None:
        self.progress.update(self.task, description=text)

    def advance(self, n_rows: int) -> None:
        """Never beyond the q_id that is at work, so that what was counted too high is not held against the next."""
        done = self.progress.tasks[self.task].completed
        limit = self.rows_each * (self.n_ended + 1)
        self.progress.update(self.task, completed=min(done + n_rows, limit))

    def ended(self, outcome: Outcome) -> None:
        if outcome.status != "skipped":
            self.n_ended += 1
        self.progress.update(self.task, completed=self.rows_each * self.n_ended)
        took = monotonic() - self.since
        self.since = monotonic()
        reason = "already done, not run again" if not outcome.ran else outcome.reason
        style = "red" if outcome.status == "failed" else None
        text = f"{outcome.q_id}: {outcome.status}, {reason} ({took:.1f} s)"
        self.console.print(text, style=style, markup=False, soft_wrap=True)


class _OfUnit:
    def __init__(self, bar: Bar, q_id: str) -> None:
        self.bar, self.q_id = bar, q_id

    @contextmanager
    def running(self, step: str, total: int | None) -> Iterator[Tell]:
        self.bar.say(f"{self.q_id} {step}")

        def tell(layer: int, n_rows: int) -> None:
            self.bar.say(f"{self.q_id} {step}, layer {layer}")
            self.bar.advance(n_rows)

        yield tell

    def already(self, step: str) -> None:
        self.bar.say(f"{self.q_id} {step}, already done")
