"""What a person sees of a run over q_ids: one bar with the q_id, its step and layer, and the time left for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fvcore.experiments.progress import Progressing
from fvcore.experiments.relation.unit import Outcome, Unit
from fvcore.fast.chunks import Advance


def rows_of(unit: Unit, n_layers: int, n_heads: int) -> int:
    """How many rows a q_id makes the model compute, at most: it has no more unique queries than trials or pairs."""
    if unit.too_small:
        return 0
    chosen = unit.settings
    n_eval = chosen.n_eval if chosen.with_replacement else min(chosen.n_eval, chosen.n_trials, len(unit.pairs))
    return n_layers * (chosen.n_trials * n_heads + n_eval * (1 + chosen.n_random))


class Bar(AbstractContextManager["Bar"]):
    """A bar over a run on a console that is a terminal; elsewhere a line for each q_id, as on a terminal too."""

    def __init__(self, console: Console, units: Sequence[Unit], n_layers: int, n_heads: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("left"))
        self.console = console
        self.rows = {unit.q_id: rows_of(unit, n_layers, n_heads) for unit in units}
        self.progress = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.progress.add_task("", total=sum(self.rows.values()))
        self.behind, self.since = 0, monotonic()  # rows of the q_ids that have ended; when the last one did

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

    def advance(self, q_id: str, n_rows: int) -> None:
        """Never beyond the q_id that is at work, so that what was counted too high is not held against the next."""
        done = self.progress.tasks[self.task].completed
        self.progress.update(self.task, completed=min(done + n_rows, self.behind + self.rows[q_id]))

    def ended(self, outcome: Outcome) -> None:
        self.behind += self.rows[outcome.q_id]
        self.progress.update(self.task, completed=self.behind)
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
    def running(self, step: str, total: int | None) -> Iterator[Advance]:
        self.bar.say(f"{self.q_id} {step}")

        def tell(layer: int, n_rows: int) -> None:
            self.bar.say(f"{self.q_id} {step}, layer {layer}")
            self.bar.advance(self.q_id, n_rows)

        yield tell

    def already(self, step: str) -> None:
        self.bar.say(f"{self.q_id} {step}, already done")
