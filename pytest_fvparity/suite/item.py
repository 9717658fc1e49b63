"""A stage is an item, a `pytest.Function`, so it gets its fixtures as anybody's test does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore import escapes
from fvcore.gates import Stage, StageError, StageResult, Status, run_stage
from pytest_fvparity.options import reproduce
from pytest_fvparity.report import junit

if TYPE_CHECKING:
    from pytest_fvparity.suite.collector import SuiteCollector

ROOT_KEY = pytest.StashKey[pytest.Directory]()

# The attribute of a test report that carries a stage's result as JSON text: xdist serialises it with the report.
REPORT_ATTRIBUTE = "fvparity_stage"


def status_of(report: Any) -> Status | None:
    """The status of the stage that a test report decides, if it does."""
    text = getattr(report, REPORT_ATTRIBUTE, None)
    return Status(json.loads(text)["result"]["status"]) if text else None


class Unjudged(pytest.skip.Exception):  # type: ignore[name-defined,misc]
    """The skips that leave a stage without a verdict and are no error."""

    def __init_subclass__(cls) -> None:
        cls.__module__ = "builtins"  # so that pytest shows the bare name


class NoDevice(Unjudged):
    """The device asked for is not there."""


class KeyNotHeld(Unjudged):
    """One of the sides has nothing of this key."""


class PartNotProvided(Unjudged):
    """The candidate has a part of this key, which agrees, or nothing of it behind a key that failed."""


class StageFailed(Exception):
    """A stage's result is not PASS; its text is what the terminal shows."""


def judging(stage: Stage[Any]) -> Callable[..., None]:
    def test(request: pytest.FixtureRequest) -> None:
        item = request.node
        assert isinstance(item, StageItem)
        collector = item.collector
        result = run_stage(collector.suite.name, stage, lambda: collector.subject(request))
        item.record(result)
        if result.status is Status.NOT_HELD:
            raise KeyNotHeld(result.message)
        # Of a session that is red anyway it counts no more than it is.
        if result.status is Status.NOT_PROVIDED and (result.verdict.compared or collector.gate.earliest):
            raise PartNotProvided(f"{result.key}: {result.status}: {result.message}")
        if result.status is not Status.PASS:
            raise StageFailed("\n".join(item.described(result)))

    return test


class StageItem(pytest.Function):
    """One stage of one suite."""

    result: StageResult | None = None
    cls = None  # a stage is no method, also where a class holds its suite

    @property
    def collector(self) -> SuiteCollector:
        collector: Any = self.parent
        return collector  # type: ignore[no-any-return]

    # The project's root folder is a parent of every stage, also of data that lie elsewhere: since pytest 9.1 fixtures
    # of a conftest.py, autouse ones too, are looked up among an item's parents, and the root conftest.py must reach
    # stages whose trials come from the installed package.
    def iter_parents(self) -> Iterator[pytest.Item | pytest.Collector]:
        yield from super().iter_parents()  # type: ignore[misc]
        yield from self._adopted()

    def listchain(self) -> list[Any]:
        session, *rest = super().listchain()
        return [session, *self._adopted(), *rest]

    def _adopted(self) -> Iterator[pytest.Directory]:
        root = self.config.stash.get(ROOT_KEY, None)
        if root is not None and not self.path.is_relative_to(root.path):
            yield root

    def record(self, result: StageResult) -> None:
        self.result = result
        self.collector.gate.judged(self.name, result.status)

    def block(self) -> None:
        """Skip this item if an earlier stage failed."""
        if earliest := self.collector.gate.blocks(self.name):
            self.record(StageResult(self.collector.suite.name, self.name, Status.BLOCKED, blocked_by=earliest))
            pytest.skip(f"blocked by {earliest}")

    def reported(self, report: pytest.TestReport, error: BaseException | None) -> None:
        """The stage's result travels on the report that decides it, and in short in JUnit XML."""
        blocked = self.result is not None and self.result.status is Status.BLOCKED
        if error is not None and not blocked and not isinstance(error, StageFailed):
            self._record_error(error)
            if report.skipped and not isinstance(error, Unjudged):
                # A stage that is skipped is a stage nobody judged: that is no reason for green.
                report.outcome, report.longrepr = "failed", f"{self.name}: ERROR: skipped: {error}"
        if self.result is None or (report.when != "call" and report.passed):
            return
        setattr(report, REPORT_ATTRIBUTE, self._to_json(self.result))
        if report.when != "teardown":
            file = self.collector.file
            command = reproduce(self.config, self.nodeid, file.declared if file else None)
            self.user_properties += junit.properties(self.result, command)

    def _record_error(self, error: BaseException) -> None:
        """A fixture, a mark or a hook kept the stage from being judged, or failed after it passed."""
        if self.result is not None and self.result.status is not Status.PASS:
            return  # what the stage itself said says more
        status, message = Status.NOT_RUN, str(error)
        if not isinstance(error, NoDevice):
            status = error.status if isinstance(error, StageError) else Status.ERROR
            kind = "skipped" if isinstance(error, pytest.skip.Exception) else type(error).__name__
            message = f"{kind}: {error}"
        self.record(StageResult(self.collector.suite.name, self.name, status, message=message))

    def _to_json(self, result: StageResult) -> str:
        collector = self.collector
        suite = {"keys": collector.suite.keys, "planned": collector.planned, "keep_going": collector.gate.keep_going}
        # A user's code decides what a finding holds: what JSON has no word for is shown as text.
        row = {"suite": suite, "context": collector.context, "result": result.to_dict()}
        return json.dumps(row, default=str)

    def described(self, result: StageResult) -> Iterator[str]:
        """A result in a few lines: what, where, both values."""
        yield f"{result.key}: {result.status}" + (f" (blocked by {result.blocked_by})" if result.blocked_by else "")
        if result.message:
            yield escapes.lines(result.message)
        verdict = result.verdict
        if verdict.mismatch_count:
            yield f"{verdict.counted}; the first of what is wrong:"
        for finding in [f for f in verdict.findings if f.blocking][:5] if verdict.mismatch_count else ():
            yield escapes.line(f"  {finding.where}: {finding.message}")
            if finding.expected is not None or finding.actual is not None:
                yield f"    expected {finding.expected!r:.200}"
                yield f"    actual   {finding.actual!r:.200}"
        if self.collector.file:
            yield from self.collector.file.declared.lines(verdict)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, StageFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        suite, file = self.collector.suite, self.collector.file
        titles = {stage.key: stage.title for stage in suite.stages}
        return self.path, 0, f"{file.declared.title(self.path) if file else suite.name} :: {titles[self.name]}"
