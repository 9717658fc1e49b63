"""What a fault is, how it is planted into a rig, and what the harness said of it.

A fault is a row of `faults.yaml` and a plant, which is a function from a rig to what was seen. Most plants are made by
`replacing` (a method of the candidate), `patching` (a function of fvcore) or `choosing` (another setting).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fvcore.formats import read_yaml
from fvcore.gates import StageResult, Status, first_line
from pytest_fvparity.selftest.rig import FAMILIES, Rig

ROWS = Path(__file__).with_name("faults.yaml")


class Outcome(StrEnum):
    """What must come of a fault."""

    FAILS = "fails"  # at its key; every earlier key passes
    ERRORS = "errors"  # at its key, with a message
    PASSES = "passes"  # a legal variation
    TIE = "tie"  # passes, with a warning that says so
    REFUSED = "refused"  # by the profile, before any number is compared
    SAMPLING = "sampling"  # by `fvcore trials verify`, and at the first key when the candidate samples its own trials
    SUITE = "suite"  # by a guard around the checks
    REFERENCE_ONLY = "reference only"  # the reference stumbles, fvcore gives a clear error or does not
    NOT_RUN = "not run here"  # the hardware is missing


@dataclass(frozen=True)
class Observed:
    """What the harness said: an outcome, the earliest key it concerns, and the words."""

    outcome: Outcome
    key: str | None = None
    message: str = ""

    def __str__(self) -> str:
        """Without the words: they hold numbers, which differ from machine to machine."""
        return f"{self.outcome} at {self.key}" if self.key else str(self.outcome)


Plant = Callable[[Rig], Observed]
Plants = Plant | tuple[Plant, ...]
Look = Callable[[Sequence[StageResult]], Observed]


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue. Several plants are variants of one fault."""

    id: str
    hazard: str
    planted: str
    expected: str
    plants: Plants
    signature: str = ""  # what the numbers look like
    told: str = ""  # what must be among the words of it
    families: Sequence[str] = FAMILIES

    def met(self, seen: Observed) -> bool:
        """Whether what was seen is what must come of it, and what must be told is."""
        return str(seen) == self.expected and self.told in seen.message

    def observe(self, rig: Rig) -> Observed:
        """Of several plants, the first counts of which something else is seen than expected."""
        plants = self.plants if isinstance(self.plants, tuple) else (self.plants,)
        return first_other([plant(rig) for plant in plants], self.met)


def faults_of(plants: Mapping[str, Plants], path: Path = ROWS) -> dict[str, Fault]:
    """The rows in their order, each with what plants it. Raises KeyError for a row without plants, or plants without row."""
    rows = read_yaml(path)
    if lone := sorted(rows.keys() ^ plants.keys()):
        raise KeyError(f"{path}: {', '.join(lone)}: a row and its plants belong together")
    return {id: Fault(id, plants=plants[id], **row) for id, row in rows.items()}


def first_other(seen: Sequence[Observed], met: Callable[[Observed], bool]) -> Observed:
    """The first that is not as it must be, else the first of all."""
    return next((one for one in seen if not met(one)), seen[0])


STATUSES = {
    Status.FAIL: Outcome.FAILS,
    Status.ERROR: Outcome.ERRORS,
    Status.REFUSED: Outcome.REFUSED,
    Status.STALE_GOLDEN: Outcome.REFUSED,
}


def observed(results: Sequence[StageResult]) -> Observed:
    """A suite's results as one sentence."""
    first = next((result for result in results if result.status is not Status.PASS), None)
    if first is None:
        ties = [(r.key, f) for r in results for f in r.verdict.findings if f.message.startswith("tie")]
        return Observed(Outcome.TIE, ties[0][0], ties[0][1].message) if ties else Observed(Outcome.PASSES)
    outcome = STATUSES.get(first.status, Outcome.ERRORS)
    mismatch = first.verdict.first_mismatch
    pattern = first.verdict.details.get("signature")
    message = f"{mismatch.where}: {mismatch.message}" if mismatch else first_line(first.message)
    message += f"; {pattern}" if pattern else ""
    return Observed(outcome, None if outcome is Outcome.REFUSED else first.key, message)


def varied(results: Sequence[StageResult]) -> Observed:
    """What is seen of a legal variation: passing counts only if some number really differs."""
    seen = observed(results)
    difference = max(result.verdict.measurements.get("max_abs_diff", 0.0) for result in results)
    if seen.outcome is not Outcome.PASSES:
        return seen
    if not difference:
        return Observed(Outcome.ERRORS, None, "nothing was varied: every number is the same")
    return Observed(Outcome.PASSES, None, f"differs by up to {difference:.1e}")


def error_of(errors: type[Exception], started: Callable[[], object], otherwise: str) -> Observed:
    """What is seen where the reference would stumble: a clear error of ours, before anything is started."""
    try:
        found = started()
    except errors as error:
        return Observed(Outcome.REFERENCE_ONLY, None, str(error))
    return Observed(Outcome.PASSES, None, otherwise.format(found))


def replacing(look: Look = observed, **stations: Any) -> Plant:
    """A candidate with methods of the pipeline replaced."""
    return lambda rig: look(rig.judge(rig.candidate(**stations)))


def patching(owner: Any, name: str, value: Any, look: Look = observed) -> Plant:
    """A candidate as it should be, while a function of fvcore is another."""

    def plant(rig: Rig) -> Observed:
        with patch.object(owner, name, value):
            return look(rig.judge(rig.candidate()))

    return plant


def choosing(**settings: Any) -> Plant:
    """A candidate with other settings than its profile says."""
    return lambda rig: observed(rig.judge(rig.candidate(settings=replace(rig.settings, **settings))))


def on(made: Callable[[Rig], Rig], plant: Plant) -> Plant:
    """The same plant on another rig, whose golden is recorded before anything is planted."""
    return lambda rig: plant(made(rig))
