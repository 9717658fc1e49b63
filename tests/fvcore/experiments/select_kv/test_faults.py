"""Every known way to carry a state wrongly is caught by the rule or check that is there for it, and the page says so."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.select_kv import faults

if TYPE_CHECKING:
    from fvcore.experiments.select_kv import faults

IDS = (
    "reused_cache", "unrotated_keys", "unmasked_pads", "counted_pads", "missing_sink", "other_episode", "retokenised",
    "cut_by_position", "stale_mask", "sdpa_scores",
)  # fmt: skip
PAGE = Path(__file__).parents[4] / "docs" / "select-kv-faults.md"


@cache
def seen(fault: faults.Fault) -> faults.Seen:
    return fault.seen()


@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
def test_a_fault_is_caught_by_what_must_catch_it_and_leaves_nothing_behind(name: str) -> None:
    fault = next(one for one in faults.FAULTS if one.id == name)

    assert seen(fault).caught_by == fault.expected, seen(fault)

    # What was planted is gone: the same run passes again.
    assert faults.gates.Judged.of(faults._measure(fault.rig)).passed


def test_every_fault_is_looked_at() -> None:
    assert tuple(fault.id for fault in faults.FAULTS) == IDS


@pytest.mark.slow
def test_the_page_is_what_the_command_writes(tmp_path: Path) -> None:
    rows = [faults.Row(fault, seen(fault)) for fault in faults.FAULTS]

    made = faults.write(tmp_path / "page.md", rows)

    # Digits are those of the machine that wrote them.
    numbers = re.compile(r"\d[\d.e-]*")
    assert numbers.sub("#", made.read_text()) == numbers.sub("#", PAGE.read_text())


def test_a_fault_that_nothing_catches_is_said() -> None:
    idle = faults.Fault("idle", "", "", "wired", "a1_null_effect", lambda: faults._built(lambda prefix: prefix))

    row = faults.Row(idle, idle.seen())

    assert not row.caught
    assert row.seen.caught_by == faults.NOTHING
