"""The table of planted faults, in words: for the terminal and for `docs/faults.md`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_fvparity.selftest.catalogue import Outcome
    from pytest_fvparity.selftest.run import Row

VERDICTS = ("caught", "wrong key", "missed", "not run here")
N_FAULTS = 75  # F01 to F75


def expected(row: Row) -> str:
    return _words(row.fault.outcome, row.fault.key)


def seen(row: Row) -> str:
    """What was seen, in one phrase if all families agree. No numbers: they differ from machine to machine."""
    families: dict[str, list[str]] = {}
    for family, found in row.seen.items():
        families.setdefault(_words(found.outcome, found.key), []).append(family)
    if len(families) <= 1:
        return "".join(families) or "–"
    return "; ".join(f"{words} ({', '.join(names)})" for words, names in families.items())


def _words(outcome: Outcome, key: str | None) -> str:
    return f"{outcome} at {key}" if key else str(outcome)


def counts(rows: Sequence[Row]) -> dict[str, int]:
    return {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}


def counted(rows: Sequence[Row]) -> str:
    """The last line: `96 caught, 0 wrong key, 1 missed, 2 not run here`."""
    return ", ".join(f"{n} {verdict}" for verdict, n in counts(rows).items())


def red(rows: Sequence[Row]) -> bool:
    return any(row.verdict in {"wrong key", "missed"} for row in rows)


def absent(ids: Collection[str]) -> list[str]:
    """Numbers of which the catalogue has no fault; `F33-nf4` is a variant of F33."""
    numbers = {id.partition("-")[0] for id in ids}
    return [number for number in (f"F{n:02}" for n in range(1, N_FAULTS + 1)) if number not in numbers]


def faults_markdown(rows: Sequence[Row], catalogue: Collection[str]) -> str:
    """The page: the same bytes wherever the same is seen."""
    from pytest_fvparity.report.render import environment

    lines = [
        {
            "fault": row.fault,
            "families": len(row.seen),
            "expected": expected(row),
            "seen": seen(row),
            "verdict": row.verdict,
        }
        for row in rows
    ]
    page = environment().get_template("faults.md.j2")
    return page.render(
        rows=lines,
        counted=counted(rows),
        absent=absent(catalogue),
        selected=None if len(rows) == len(catalogue) else len(catalogue),
    )
