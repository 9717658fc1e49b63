"""What a person sees while a run over q_ids goes on."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fvcore.experiments.progress import Bar
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.status import Outcome
from fvcore.experiments.workers import Local
from fvcore.trials.fixed import WordPair
from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.relation.run import run, units_of
    from fvcore.experiments.relation.unit import Unit
    from fvcore.model.model import LanguageModel
    from tests.fvcore.experiments.relation.worlds import SMALL, small


ROWS_EACH = 4 * 24 + 3 * 6 * 3


def _units(folder: Path) -> list[Unit]:
    return units_of(small(folder), folder / "out", SMALL, None)


def _bar(folder: Path, terminal: bool) -> tuple[Bar, io.StringIO]:
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=terminal, width=100, color_system=None)
    return Bar(console, {unit.name: unit.n_rows(6, 4) for unit in _units(folder)}), seen


def test_rows_are_counted_as_they_can_be() -> None:
    pairs = tuple(WordPair(input=str(i), output="x") for i in range(12))
    unit = Unit("Q1", Path(), pairs, "r.csv", RelationSettings())

    assert unit.n_rows(6, 4) == 25 * 24 + 12 * 6 * 6  # twelve pairs are twelve queries, whatever is asked for
    again = replace(unit, settings=RelationSettings(with_replacement=True))
    assert again.n_rows(6, 4) == 25 * 24 + 50 * 6 * 6
    assert replace(unit, pairs=pairs[:9]).n_rows(6, 4) == 0


def test_a_terminal_shows_q_id_step_layer_and_time_left(llama: LanguageModel, tmp_path: Path) -> None:
    bar, seen = _bar(tmp_path, terminal=True)
    shown = []
    with bar.progress:
        for unit in _units(tmp_path)[:2]:
            progress = bar.of(unit.name)
            with progress.running("stepd", 96) as tell:
                tell(3, 40)
                bar.progress.refresh()
                shown.append(bar.progress.tasks[0].description)
    assert shown == ["Q1 stepd, layer 3", "Q10 stepd, layer 3"]
    text = seen.getvalue()
    assert "Q10 stepd, layer 3" in text
    assert "left" in text
    assert "-:--:--" in text or "0:00:0" in text


def test_the_bar_is_full_at_the_end_and_never_runs_ahead(llama: LanguageModel, tmp_path: Path) -> None:
    bar, _ = _bar(tmp_path, terminal=True)
    at_end = []

    def ended(outcome: Outcome) -> None:
        before = bar.progress.tasks[0].completed
        assert before <= bar.behind + ROWS_EACH
        bar.ended(outcome)
        at_end.append(bar.progress.tasks[0].completed)

    with bar.progress:
        run(small(tmp_path), tmp_path / "out", SMALL, Local(llama, bar.of), ended=ended)

    assert at_end == [ROWS_EACH, 2 * ROWS_EACH, 3 * ROWS_EACH, 3 * ROWS_EACH]  # the fourth is skipped
    assert bar.progress.tasks[0].total == 3 * ROWS_EACH


def test_elsewhere_there_is_a_line_for_each_q_id(tmp_path: Path) -> None:
    bar, seen = _bar(tmp_path, terminal=False)
    with bar.progress:
        bar.ended(Outcome("Q1", "completed", "all stages completed"))
        bar.ended(Outcome("Q2", "completed", "all stages completed", ran=False))
        bar.ended(Outcome("Q3", "skipped", "insufficient rows (3 < 4)"))

    lines = seen.getvalue().splitlines()
    assert [line.rpartition(" (")[0] for line in lines] == [
        "Q1: completed, all stages completed",
        "Q2: completed, already done, not run again",
        "Q3: skipped, insufficient rows (3 < 4)",
    ]


@pytest.mark.parametrize("n", [1, 1000])
def test_rows_that_were_counted_too_high_are_not_held_against_the_next(tmp_path: Path, n: int) -> None:
    bar, _ = _bar(tmp_path, terminal=True)
    bar.advance("Q1", n)

    assert bar.progress.tasks[0].completed == min(n, ROWS_EACH)
