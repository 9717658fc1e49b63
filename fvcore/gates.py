"""Ordered stages that stop at the earliest failure. Knows nothing of models, files or pytest.

A `Stage` is a key, a title and a check that turns a subject into a `Verdict`. A `Suite` is an ordered
tuple of stages over one subject, built when the first stage runs. Everything a stage says is a value:
a `Finding` is one located disagreement, a `Verdict` all of them with their count, a `StageResult` what
became of the stage.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

Subject = TypeVar("Subject")
Coordinate = Mapping[str, int | str]


class Status(StrEnum):
    """What became of a stage. Only PASS is green."""

    PASS = "PASS"
    FAIL = "FAIL"
    ERROR = "ERROR"
    BLOCKED = "BLOCKED"
    CRASHED = "CRASHED"
    NOT_PROVIDED = "NOT_PROVIDED"
    NOT_HELD = "NOT_HELD"  # by the golden
    NO_GOLDEN = "NO_GOLDEN"
    REFUSED = "REFUSED"
    STALE_GOLDEN = "STALE_GOLDEN"
    NOT_RUN = "NOT_RUN"  # for want of a device


NON_BLOCKING = frozenset({Status.PASS, Status.NOT_PROVIDED, Status.NOT_HELD})
"""What later stages may run behind: a stage that one of the sides lacks is not green, and says nothing about the next."""


class StageError(Exception):
    """A stage could not be judged; `status` says why. The message names the way out."""

    status = Status.ERROR


class Refused(StageError):
    """The two sides must not be compared: they are not the same experiment."""

    status = Status.REFUSED


class NotProvided(StageError):
    """The implementation under test does not offer this stage."""

    status = Status.NOT_PROVIDED


class NotHeld(NotProvided):
    """The golden has nothing of this stage."""

    status = Status.NOT_HELD


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement, located well enough to go and look at it."""

    where: str
    message: str
    expected: Any = None
    actual: Any = None
    coordinate: Coordinate = field(default_factory=dict)
    abs_diff: float | None = None
    rel_diff: float | None = None
    blocking: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a stage says: every disagreement counted in `mismatch_count`, the first ones in `findings`."""

    findings: tuple[Finding, ...] = ()
    compared: int = 0
    mismatch_count: int = 0
    measurements: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.mismatch_count == 0 and not any(f.blocking for f in self.findings)

    @property
    def first_mismatch(self) -> Finding | None:
        return next((f for f in self.findings if f.blocking), None)


@dataclass(frozen=True, slots=True)
class Stage(Generic[Subject]):
    key: str
    title: str
    check: Callable[[Subject], Verdict]


@dataclass(frozen=True, slots=True)
class Suite(Generic[Subject]):
    name: str
    stages: tuple[Stage[Subject], ...]
    subject: Callable[[], Subject]
    keep_going: bool = False

    def __post_init__(self) -> None:
        keys = [stage.key for stage in self.stages]
        if len(set(keys)) != len(keys):
            raise ValueError(f"suite {self.name!r} has two stages of one key: {keys}")


@dataclass(frozen=True, slots=True)
class StageResult:
    suite: str
    key: str
    status: Status
    verdict: Verdict = field(default_factory=Verdict)
    duration_s: float = 0.0
    blocked_by: str | None = None
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"status": str(self.status)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> StageResult:
        verdict = dict(row["verdict"])
        verdict["findings"] = tuple(Finding(**f) for f in verdict["findings"])
        return cls(**{**row, "status": Status(row["status"]), "verdict": Verdict(**verdict)})


def run_stage(suite: str, stage: Stage[Subject], subject: Callable[[], Subject]) -> StageResult:
    """Judge one stage. Whatever its check or its subject raises becomes a result, never an exception."""
    start = time.perf_counter()

    def result(status: Status, **rest: Any) -> StageResult:
        return StageResult(suite, stage.key, status, duration_s=time.perf_counter() - start, **rest)

    try:
        verdict = stage.check(subject())
    except StageError as error:
        return result(error.status, message=str(error))
    except Exception as error:
        # The stage's own code failed; its traceback is the only trace of where.
        return result(Status.ERROR, message="".join(traceback.format_exception(error)).rstrip())
    return result(Status.PASS if verdict.passed else Status.FAIL, verdict=verdict)


def run_suite(suite: Suite[Subject]) -> Iterator[StageResult]:
    """Every stage in order; after the earliest failure the later ones are BLOCKED unless `keep_going`."""
    cached: list[Subject] = []

    def subject() -> Subject:
        if not cached:
            cached.append(suite.subject())
        return cached[0]

    earliest: str | None = None
    for stage in suite.stages:
        if earliest is not None and not suite.keep_going:
            yield StageResult(suite.name, stage.key, Status.BLOCKED, blocked_by=earliest)
            continue
        result = run_stage(suite.name, stage, subject)
        if result.status not in NON_BLOCKING and earliest is None:
            earliest = stage.key
        yield result


def requires(holds: Callable[[Subject], bool], where: str, message: str) -> Callable[[Subject], Verdict]:
    """A check of one condition."""

    def check(subject: Subject) -> Verdict:
        if holds(subject):
            return Verdict(compared=1)
        return Verdict((Finding(where, message),), compared=1, mismatch_count=1)

    return check


def all_of(*checks: Callable[[Subject], Verdict]) -> Callable[[Subject], Verdict]:
    """One check out of several: all are run, their findings and counts are added."""

    def check(subject: Subject) -> Verdict:
        return merge(*(single(subject) for single in checks))

    return check


def merge(*verdicts: Verdict) -> Verdict:
    """Several verdicts as one. Measurements and details of the later ones win."""
    return Verdict(
        findings=tuple(f for v in verdicts for f in v.findings),
        compared=sum(v.compared for v in verdicts),
        mismatch_count=sum(v.mismatch_count for v in verdicts),
        measurements={k: x for v in verdicts for k, x in v.measurements.items()},
        details={k: x for v in verdicts for k, x in v.details.items()},
    )
