"""Ordered stages that stop at the earliest failure. Knows nothing of models, files or pytest.

A `Stage` is a key, a title and a check that turns a subject into a `Verdict`. A `Suite` is an ordered
tuple of stages over one subject, built when the first stage runs. Everything a stage says is a value:
a `Finding` is one located disagreement, a `Verdict` all of them with their count, a `StageResult` what
became of the stage.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from itertools import dropwhile
from types import TracebackType
from typing import Any, Generic, TypeVar

Subject = TypeVar("Subject")


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

UNHARMED = NON_BLOCKING | {Status.BLOCKED, Status.NOT_RUN}
"""Of a stage that did not fail itself: for want of a device every stage is not run, and each says so."""


class StageError(Exception):
    """A stage could not be judged; `status` says why. The message names the way out."""

    status = Status.ERROR


class Refused(StageError):
    """The two sides must not be compared: they are not the same experiment."""

    status = Status.REFUSED


class NotProvided(StageError):
    """The implementation under test does not offer this stage."""

    status = Status.NOT_PROVIDED


class PartlyProvided(NotProvided):
    """It offers a part of this stage, and that part agrees: `verdict` is of it."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


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
    coordinate: Mapping[str, int | str] = field(default_factory=dict)
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
        """Whether nothing disagrees; findings that do not block are none."""
        return self.mismatch_count == 0 and not any(f.blocking for f in self.findings)

    @property
    def counted(self) -> str:
        """How many values differ, and how many findings are of something else than a value."""
        of_others = [f for f in self.findings if f.blocking and f.expected is None and f.actual is None]
        values, others = self.mismatch_count - len(of_others), len(of_others)
        told = f"{values} of {self.compared} values differ" if values else f"{self.compared} values agree"
        return f"{told}; {others} finding(s) beside them" if others else told

    @property
    def first_mismatch(self) -> Finding | None:
        """The first finding that blocks."""
        return next((f for f in self.findings if f.blocking), None)


@dataclass(frozen=True, slots=True)
class Stage(Generic[Subject]):
    """A key, a title, and the check that turns a subject into a verdict."""

    key: str
    title: str
    check: Callable[[Subject], Verdict]


@dataclass(frozen=True, slots=True)
class Suite(Generic[Subject]):
    """Stages in order, and what builds their subject. In a test module its parameters are fixtures; here it has none."""

    name: str
    stages: tuple[Stage[Subject], ...]
    subject: Callable[..., Subject]
    keep_going: bool = False

    def __post_init__(self) -> None:
        if len(set(self.keys)) != len(self.keys):
            raise ValueError(f"suite {self.name!r} has two stages of one key: {list(self.keys)}")

    @property
    def keys(self) -> tuple[str, ...]:
        """Its stages' keys in order."""
        return tuple(stage.key for stage in self.stages)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What became of a stage, with its verdict and how long it took."""

    suite: str
    key: str
    status: Status
    verdict: Verdict = field(default_factory=Verdict)  # of what is provided, where that is a part
    duration_s: float = 0.0
    blocked_by: str | None = None
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; `from_dict` reads it again."""
        return asdict(self) | {"status": str(self.status)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> StageResult:
        """What `to_dict` gave."""
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
        return result(error.status, message=str(error), verdict=getattr(error, "verdict", Verdict()))
    except Exception as error:
        # The stage's own code failed; its traceback is the only trace of where.
        trace = traceback.format_exception(type(error), error, _below(error, stage.check))
        return result(Status.ERROR, message=f"{said(error)}\n{''.join(trace).rstrip()}")
    return result(Status.PASS if verdict.passed else Status.FAIL, verdict=verdict)


def _below(error: BaseException, check: Callable[..., Any]) -> TracebackType | None:
    """An error's frames without those of who judges, its first ones: a reader looks for what is judged."""

    def package(name: str) -> str:
        return name.partition(".")[0]

    judge, trace = getattr(check, "func", check).__module__, error.__traceback__
    while trace and (name := trace.tb_frame.f_globals.get("__name__", "")):
        if name != __name__ and (package(name) != package(judge) or package(judge) == package(__name__)):
            break
        trace = trace.tb_next
    return trace or error.__traceback__


def said(error: BaseException) -> str:
    """An error in its first line: what libraries add below, notes and advice, says less. Of a group its first error too, and
    of one that was raised from others the innermost, where that says more."""
    told, cause = _own_line(error), error
    while cause.__cause__ is not None and cause.__cause__ is not error:
        cause = cause.__cause__
    return _with_cause(told, _own_line(cause))


def _own_line(error: BaseException) -> str:
    try:
        kind, line = type(error).__name__, first_line(str(error))
    except Exception:
        return f"{type(error).__name__} (which cannot be shown)"
    inner = f"; the first of them {said(error.exceptions[0])}" if isinstance(error, BaseExceptionGroup) else ""
    return f"{kind}: {line}{inner}" if line else f"{kind}{inner}"


def _with_cause(told: str, cause: str) -> str:
    """An error's line with that of its cause, unless it says already what that says."""
    return told if (cause.partition(": ")[2] or cause) in told else f"{told}; caused by {cause}"


def first_line(text: str, otherwise: str = "") -> str:
    """What a message says before it says more."""
    return next(iter(text.strip().splitlines()), otherwise)


BEGINS = "Traceback "
CAUSED = "The above exception was the direct cause of the following exception:"


def error_line(output: str) -> str:
    """Of what a process printed the line that names its error: below the last traceback the first that is not indented; and
    the same of the innermost of its causes."""
    *above, last = output.strip().split(CAUSED)
    cause = last
    while above and cause.count(BEGINS) == 1:  # in front of another traceback stands what it was not caused by
        cause = above.pop()
    return _with_cause(_last_error(last), _last_error(cause))


def _last_error(output: str) -> str:
    lines = output.strip().splitlines() or ["no message"]
    begins = [at for at, line in enumerate(lines) if line.startswith(BEGINS)]
    below = lines[begins[-1] + 1 :] if begins else []
    return next((line for line in below if line.strip() and not line[0].isspace()), lines[-1])


class Gate:
    """What stands before every stage of a suite: closed behind the earliest one, in the suite's order, that failed."""

    def __init__(self, keys: Sequence[str], keep_going: bool = False) -> None:
        self.keys, self.keep_going = tuple(keys), keep_going
        self.earliest: str | None = None

    def judged(self, key: str, status: Status) -> None:
        """Take note of what became of a stage."""
        first = self.earliest is None or self.keys.index(key) < self.keys.index(self.earliest)
        if first and status not in UNHARMED:
            self.earliest = key

    def blocks(self, key: str) -> str | None:
        """The earlier stage for which this one must not run, if there is one."""
        if self.earliest is None or self.keep_going or self.keys.index(key) <= self.keys.index(self.earliest):
            return None
        return self.earliest


def run_suite(suite: Suite[Subject]) -> Iterator[StageResult]:
    """Every stage in order; after the earliest failure the later ones are BLOCKED unless `keep_going`."""
    gate, subject = Gate(suite.keys, suite.keep_going), cache(suite.subject)
    for stage in suite.stages:
        if earliest := gate.blocks(stage.key):
            yield StageResult(suite.name, stage.key, Status.BLOCKED, blocked_by=earliest)
            continue
        result = run_stage(suite.name, stage, subject)
        gate.judged(stage.key, result.status)
        yield result


def blocked_behind(statuses: Mapping[str, str]) -> dict[str, str]:
    """Key -> the earliest key without a green verdict, for the keys behind it whose PASS or CRASHED is therefore not believed.

    `statuses` is in the suite's order. Stages that ran in several processes did not know of one another. Stricter than a
    gate: what passed behind a stage that was blocked, or not run for want of a device, ran where that one did not.
    """
    behind = list(dropwhile(lambda key: statuses[key] in NON_BLOCKING, statuses))
    return {key: behind[0] for key in behind[1:] if statuses[key] in {Status.PASS, Status.CRASHED}}


def settled(
    suite: str, planned: Sequence[str], told: Mapping[str, StageResult], keep_going: bool = False
) -> dict[str, StageResult]:
    """What became of every planned stage, in order: one that told nothing crashed, what is not believed is BLOCKED."""
    silent = "planned, and never reported a verdict: the run ended first"
    results = {key: told.get(key) or StageResult(suite, key, Status.CRASHED, message=silent) for key in planned}
    blocked = {} if keep_going else blocked_behind({key: result.status for key, result in results.items()})
    return results | {key: StageResult(suite, key, Status.BLOCKED, blocked_by=by) for key, by in blocked.items()}


def merge(*verdicts: Verdict) -> Verdict:
    """Several verdicts as one. Measurements and details of the later ones win."""
    return Verdict(
        findings=tuple(f for v in verdicts for f in v.findings),
        compared=sum(v.compared for v in verdicts),
        mismatch_count=sum(v.mismatch_count for v in verdicts),
        measurements={k: x for v in verdicts for k, x in v.measurements.items()},
        details={k: x for v in verdicts for k, x in v.details.items()},
    )
