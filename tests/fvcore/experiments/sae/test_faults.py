"""Every known way to look for pathways wrongly is caught by the check that is there for it, and the page says so."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest

from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    from fvcore.experiments.fault_table import FaultRow
    from fvcore.experiments.sae import faults


IDS = (
    "off_by_one", "post_norm", "edits_after_recording", "units", "no_grad_encoder", "error_dropped", "last_token_only",
    "bos_included",
)  # fmt: skip
QUICK = IDS[:6]
PAGE = Path(__file__).parents[4] / "docs" / "pathways-faults.md"


@cache
def seen(name: str) -> faults.Seen:
    return next(one for one in faults.FAULTS if one.id == name).seen()


@pytest.mark.parametrize("name", slow_but(QUICK, IDS))
def test_a_fault_is_caught_by_the_check_that_must_catch_it(name: str) -> None:
    assert seen(name).caught_by == next(one for one in faults.FAULTS if one.id == name).expected, seen(name)


def test_every_fault_is_looked_at() -> None:
    assert tuple(fault.id for fault in faults.FAULTS) == IDS


@pytest.mark.slow
def test_nothing_is_caught_where_nothing_is_planted() -> None:
    idle = faults.Fault("idle", "", "", "site", nullcontext)
    assert idle.seen() == faults.Seen(faults.NOTHING)
    assert not FaultRow(idle, idle.seen()).caught


@pytest.mark.slow
def test_the_page_is_what_the_command_writes(tmp_path: Path) -> None:
    made = faults.write(tmp_path / "page.md", [FaultRow(fault, seen(fault.id)) for fault in faults.FAULTS])

    # Digits are those of the machine that wrote them.
    numbers = re.compile(r"(below )?\d[\d.e-]*")
    assert numbers.sub("#", made.read_text()) == numbers.sub("#", PAGE.read_text())
