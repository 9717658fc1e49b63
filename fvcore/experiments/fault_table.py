"""Faults that an experiment plants into its own code, as a table: what caught each, and whether that is what must."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fvcore import exits, page, terminal


@dataclass(frozen=True)
class FaultRow:
    """fault: has an `id` and what is `expected` to catch it     seen: says what it was `caught_by`"""

    fault: Any
    seen: Any

    @property
    def caught(self) -> bool:
        return bool(self.seen.caught_by == self.fault.expected)


Seen = TypeVar("Seen", bound=FaultRow)


def rounded(value: float | None, least: float) -> str:
    """Two digits, and nothing finer than `least`: what is behind them differs from machine to machine."""
    if value is None:
        return page.NONE
    return f"{value:.2g}" if abs(value) >= least or value == 0 else f"below {least:.0e}".replace("e-0", "e-")


def write(path: Path, package: str, found: Sequence[FaultRow], **values: Any) -> Path:
    """The table as Markdown, by the `faults.md.j2` of an experiment's package."""
    told = {"rows": found, "n_caught": sum(row.caught for row in found)} | values
    return page.write(path, package, "faults.md.j2", told)


def show(
    found: Sequence[Seen],
    number: Callable[[Seen], str],
    write: Callable[[Path, Sequence[Seen]], Path],
    markdown: Path | None,
    as_json: bool = False,
) -> None:
    """A row for each fault, and the page if one is asked for; exit status 1 if one is not caught by what must catch it."""
    import typer

    terminal.show([_told(row, number(row)) for row in found], as_json)
    if markdown is not None:
        exits.note(f"wrote {write(markdown, found)}", err=as_json)
    if not all(row.caught for row in found):
        raise typer.Exit(exits.FAILED)


def _told(row: FaultRow, number: str) -> dict[str, str]:
    verdict = "caught" if row.caught else f"NOT CAUGHT by {row.fault.expected}"
    return {"fault": row.fault.id, "verdict": verdict, "by": str(row.seen.caught_by), "number": number}
