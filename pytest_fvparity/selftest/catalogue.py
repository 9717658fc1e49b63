"""What a fault is, and what the harness said when it was planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from fvcore.gates import StageResult, Status
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.selftest.bed import FAMILIES, Bed


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


Observe = Callable[[Bed], Observed]


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue. `signature` is what the numbers look like; `observe` plants it and looks."""

    id: str
    hazard: str
    planted: str
    signature: str
    outcome: Outcome
    key: str | None
    families: Sequence[str]
    observe: Observe

    def met(self, seen: Observed) -> bool:
        """Whether what was seen is what must come of it."""
        return (seen.outcome, seen.key) == (self.outcome, self.key)


CATALOGUE: dict[str, Fault] = {}


def fault(
    id: str,
    hazard: str,
    planted: str,
    outcome: Outcome,
    key: str | None = None,
    signature: str = "",
    families: Sequence[str] = FAMILIES,
) -> Callable[[Observe], Observe]:
    """Register a function that plants a fault into a bed and says what was seen."""

    def register(observe: Observe) -> Observe:
        if id in CATALOGUE:
            raise ValueError(f"fault {id} stands twice in the catalogue")
        CATALOGUE[id] = Fault(id, hazard, planted, signature, outcome, key, tuple(families), observe)
        return observe

    return register


Plant = Callable[[Bed], Implementation | AbstractContextManager[Implementation] | list[Implementation]]


def candidate_fault(
    id: str,
    hazard: str,
    planted: str,
    key: str,
    signature: str = "",
    outcome: Outcome = Outcome.FAILS,
    families: Sequence[str] = FAMILIES,
) -> Callable[[Plant], Plant]:
    """The usual kind: a function from a bed to a faulty candidate, a context manager around one, or several candidates.

    Of several, each a variant of the same fault, the first counts of which something else is seen than expected.
    """

    def register(plant: Plant) -> Plant:
        concerned = None if outcome in {Outcome.PASSES, Outcome.REFUSED} else key

        def observe(bed: Bed) -> Observed:
            with _entered(plant(bed)) as candidates:
                seen = [observed(bed.judge(candidate)) for candidate in candidates]
            return next((s for s in seen if (s.outcome, s.key) != (outcome, concerned)), seen[0])

        fault(id, hazard, planted, outcome, concerned, signature, families)(observe)
        return plant

    return register


@contextmanager
def _entered(
    planted: Implementation | AbstractContextManager[Implementation] | list[Implementation],
) -> Iterator[list[Implementation]]:
    if isinstance(planted, AbstractContextManager):
        with planted as candidate:
            yield [candidate]
    else:
        yield planted if isinstance(planted, list) else [planted]


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
    message = f"{mismatch.where}: {mismatch.message}" if mismatch else first.message.strip().splitlines()[-1]
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
