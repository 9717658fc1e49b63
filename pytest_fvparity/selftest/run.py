"""Every fault on every family it concerns, and the table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pytest_fvparity.selftest import faults
from pytest_fvparity.selftest.bed import bed
from pytest_fvparity.selftest.catalogue import CATALOGUE, Fault, Observed, Outcome


@dataclass(frozen=True)
class Row:
    """One fault and what was seen of it, family by family."""

    fault: Fault
    seen: dict[str, Observed]

    @property
    def verdict(self) -> str:
        """caught, wrong key, missed, or not run here: the worst of all families."""
        return max((self._verdict(seen) for seen in self.seen.values()), key=VERDICTS.index)

    def _verdict(self, seen: Observed) -> str:
        if seen.outcome is Outcome.NOT_RUN:
            return "not run here"
        if self.fault.met(seen):
            return "caught"
        return "missed" if seen.outcome is Outcome.PASSES else "wrong key"


VERDICTS = ("caught", "not run here", "wrong key", "missed")


def catalogue() -> dict[str, Fault]:
    """All faults by id, in order; their modules are imported on the way."""
    for module in pkgutil.iter_modules(faults.__path__, f"{faults.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(CATALOGUE.items()))


def rows(ids: Sequence[str] = (), began: Callable[[Fault], None] | None = None) -> Iterator[Row]:
    """Run the faults of the catalogue, or some of them by id."""
    known = catalogue()
    for id in ids or known:
        if id not in known:
            raise KeyError(f"no fault {id} in the catalogue; known: {', '.join(known)}")
        if began:
            began(known[id])
        yield Row(known[id], {family: known[id].observe(bed(family)) for family in known[id].families})
