"""A trials file is a test file: one suite, `parity`, one item a check key.

Node ids read `datasets/fixed_trials/<id>.json::parity::slot_map`. An item is a `pytest.Function`, so it gets model,
trials, golden and candidate from the same fixtures as anybody's test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from fvcore.gates import NON_BLOCKING, Stage, StageError, StageResult, Status, run_stage
from pytest_fvparity.drill.conclusion import lines as drill_lines
from pytest_fvparity.options import OPTIONS_KEY
from pytest_fvparity.parity.checks import STAGES, TITLES, Memory
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.suite.place import title_of

if TYPE_CHECKING:
    from pytest_fvparity.parity.checks import ParityRun

SUITE = "parity"
ROOT_KEY = pytest.StashKey[pytest.Directory]()
TRANSFER_KEY = pytest.StashKey[frozenset[Path]]()
"""Trials files that a relation run froze, in a run of the transfer suite."""

# The attribute of a test report that carries a stage's result as JSON text: xdist serialises it with the report.
REPORT_ATTRIBUTE = "fvparity_stage"


def stage_of(nodeid: str) -> tuple[str, str] | None:
    """(trials file, check key) of a parity item's node id; None for any other test."""
    parts = nodeid.split("::")
    if len(parts) == 3 and parts[1] == SUITE and parts[2] in CHECK_KEYS and parts[0].endswith(".json"):
        return parts[0], parts[2]
    return None


def status_of(report: Any) -> Status | None:
    """The status of the stage that a test report decides, if it does."""
    text = getattr(report, REPORT_ATTRIBUTE, None)
    return Status(json.loads(text)["result"]["status"]) if text else None


class Unjudged(pytest.skip.Exception):  # type: ignore[name-defined,misc]
    """The skips that leave a stage without a verdict and are no error."""

    __module__ = "builtins"  # so that pytest shows the bare name


class NoDevice(Unjudged):
    """The device asked for is not there."""

    __module__ = "builtins"


class KeyNotHeld(Unjudged):
    """The golden has nothing of this key."""

    __module__ = "builtins"


class StageFailed(Exception):
    """A stage's result is not PASS; its text is what the terminal shows."""

    def __init__(self, result: StageResult) -> None:
        super().__init__(describe(result))
        self.result = result


FAULTS = {
    "own": "on golden inputs this key differs too: the fault is its own",
    "inherited": "on golden inputs this key agrees: the fault is inherited from an earlier key",
    "accumulated": "on golden inputs this key agrees: what differs adds up from earlier keys, each within tolerance",
}


def describe(result: StageResult) -> str:
    """A result in a few lines: what, where, both values."""
    lines = [f"{result.key}: {result.status}" + (f" (blocked by {result.blocked_by})" if result.blocked_by else "")]
    if result.message:
        lines.append(result.message)
    verdict = result.verdict
    if verdict.mismatch_count:
        lines.append(f"{verdict.mismatch_count} of {verdict.compared} values differ; the first of them:")
    for finding in [f for f in verdict.findings if f.blocking][:5]:
        lines.append(f"  {finding.where}: {finding.message}")
        if finding.expected is not None or finding.actual is not None:
            lines.append(f"    expected {finding.expected!r:.200}")
            lines.append(f"    actual   {finding.actual!r:.200}")
    if fault := FAULTS.get(verdict.details.get("fault", "")):
        lines.append(fault)
    if drill := verdict.details.get("drill"):
        lines += drill_lines(drill)
    return "\n".join(lines)


class DataFile(pytest.File):
    """A file of data that is a test file."""

    @classmethod
    def at(cls, parent: pytest.Collector, path: Path) -> Self:
        """Outside the rootdir pytest gives every file the empty node id, so that two could not be told apart."""
        if path.is_relative_to(parent.config.rootpath):
            return cls.from_parent(parent, path=path)
        nodeid: Any = path.as_posix()
        try:
            from _pytest.nodeid import NodeId  # since pytest 9.2 a node id is a value of its own
        except ImportError:
            pass
        else:
            nodeid = NodeId(path=nodeid)
        return cls.from_parent(parent, path=path, nodeid=nodeid)


class TrialsFile(DataFile):
    """Fixed trials, or those that a run froze."""

    def collect(self) -> Iterator[pytest.Collector]:
        yield SuiteCollector.from_parent(self, name=SUITE)


class SuiteCollector(pytest.Collector):
    """The parity suite of one trials file; it remembers what earlier stages found, and the earliest failure."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.earliest_failed: str | None = None
        self.context: dict[str, Any] = {}
        self.memory = Memory()

    def collect(self) -> Iterator[pytest.Item]:
        for stage in STAGES:
            item = StageItem.from_parent(self, name=stage.key, callobj=_test_of(stage))
            item.add_marker("parity")
            if self.path in self.config.stash.get(TRANSFER_KEY, ()):
                item.add_marker("transfer")
            yield item


def subject(request: pytest.FixtureRequest) -> ParityRun:
    """Both sides, from the fixtures: a session loads them once, a user who overrides one is heard in every stage."""
    from fvcore.formats import FormatError
    from fvcore.model.model import ModelError

    try:
        run: ParityRun = request.getfixturevalue("fv_parity_run")
    except (FormatError, ModelError) as error:
        # Bad input says what is wrong in one sentence; a traceback would bury it.
        raise StageError(str(error)) from error
    return run


def _test_of(stage: Stage[ParityRun]) -> Any:
    def test(request: pytest.FixtureRequest) -> None:
        item = request.node
        assert isinstance(item, StageItem)
        result = run_stage(SUITE, stage, lambda: subject(request))
        item.record(result)
        if result.status is Status.NOT_HELD:
            raise KeyNotHeld(result.message)
        if result.status is not Status.PASS:
            raise StageFailed(result)

    return test


class Adopted(pytest.Function):
    """An item that the project's root folder is a parent of, wherever its file lies."""

    # The project's root folder is a parent of every stage, also of trials that lie elsewhere: since pytest 9.1 fixtures
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


class StageItem(Adopted):
    """One check key of one trials file."""

    result: StageResult | None = None

    @property
    def suite(self) -> SuiteCollector:
        assert isinstance(self.parent, SuiteCollector)
        return self.parent

    @property
    def trials_path(self) -> Path:
        return self.path

    def record(self, result: StageResult) -> None:
        self.result = result
        if result.status not in NON_BLOCKING and self.suite.earliest_failed is None:
            self.suite.earliest_failed = self.name

    def record_error(self, error: BaseException) -> None:
        """A fixture, a mark or a hook kept the stage from being judged, or failed after it passed."""
        if self.result is not None and self.result.status is not Status.PASS:
            return  # what the stage itself said says more
        if isinstance(error, NoDevice):
            self.result = StageResult(SUITE, self.name, Status.NOT_RUN, message=str(error))
            return
        status = error.status if isinstance(error, StageError) else Status.ERROR
        kind = "skipped" if isinstance(error, pytest.skip.Exception) else type(error).__name__
        self.record(StageResult(SUITE, self.name, status, message=f"{kind}: {error}"))

    def block(self) -> None:
        """Skip this item if an earlier key failed."""
        earliest = self.suite.earliest_failed
        if earliest in {None, self.name} or self.config.stash[OPTIONS_KEY].keep_going:
            return
        self.result = StageResult(SUITE, self.name, Status.BLOCKED, blocked_by=earliest)
        pytest.skip(f"blocked by {earliest}")

    def to_json(self) -> str | None:
        if self.result is None:
            return None
        # A user's candidate decides what a finding holds: what JSON has no word for is shown as text.
        return json.dumps({"context": self.suite.context, "result": self.result.to_dict()}, default=str)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, StageFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{title_of(self.path)} :: {TITLES[self.name]}"
