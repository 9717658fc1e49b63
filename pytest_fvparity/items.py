"""A trials file is a test file: one suite, `parity`, one item a check key.

Node ids read `datasets/fixed_trials/<id>.json::parity::slot_map`. An item is a `pytest.Function`, so it gets model,
trials, golden and candidate from the same fixtures as anybody's test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.gates import Stage, StageError, StageResult, Status, run_stage
from pytest_fvparity.checks import TITLES, check
from pytest_fvparity.implementation import CHECK_KEYS
from pytest_fvparity.options import ParityOptions, command, reproduce_options

if TYPE_CHECKING:
    from pytest_fvparity.checks import ParityRun

SUITE = "parity"
OPTIONS_KEY = pytest.StashKey[ParityOptions]()
ROOT_KEY = pytest.StashKey[pytest.Directory]()

# The attribute of a test report that carries a stage's result as JSON text: xdist serialises it with the report.
REPORT_ATTRIBUTE = "fvparity_stage"


def stage_of(nodeid: str) -> tuple[str, str] | None:
    """(trials file, check key) of a parity item's node id; None for any other test."""
    parts = nodeid.split("::")
    if len(parts) == 3 and parts[1] == SUITE and parts[2] in CHECK_KEYS and parts[0].endswith(".json"):
        return parts[0], parts[2]
    return None


class StageFailed(Exception):
    """A stage's result is not PASS; its text is what the terminal shows."""

    def __init__(self, result: StageResult) -> None:
        super().__init__(describe(result))
        self.result = result


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
    if verdict.details.get("fault") == "inherited":
        lines.append("on golden inputs this key agrees: the fault is inherited from an earlier key")
    return "\n".join(lines)


class TrialsFile(pytest.File):
    @classmethod
    def at(cls, parent: pytest.Collector, path: Path) -> TrialsFile:
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

    def collect(self) -> Iterator[pytest.Collector]:
        yield SuiteCollector.from_parent(self, name=SUITE)


class SuiteCollector(pytest.Collector):
    """The parity suite of one trials file; it remembers the subject and the earliest failure."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.earliest_failed: str | None = None
        self.context: dict[str, Any] = {}
        self._run: ParityRun | None = None

    def collect(self) -> Iterator[pytest.Item]:
        for key in CHECK_KEYS:
            item = StageItem.from_parent(self, name=key, callobj=_stage_function(key))
            item.add_marker("parity")
            yield item

    def subject(self, request: pytest.FixtureRequest) -> ParityRun:
        """Both sides, brought up by the fixtures when the first stage that runs asks for them."""
        if self._run is None:
            from fvcore.formats import FormatError
            from fvcore.models import ModelError

            try:
                self._run = request.getfixturevalue("fv_parity_run")
            except (FormatError, ModelError) as error:
                # Bad input says what is wrong in one sentence; a traceback would bury it.
                raise StageError(str(error)) from error
            assert self._run is not None
        return self._run


def _stage_function(key: str) -> Any:
    def stage(request: pytest.FixtureRequest) -> None:
        item = request.node
        assert isinstance(item, StageItem)
        suite = item.suite
        result = run_stage(SUITE, Stage(key, TITLES[key], check(key)), lambda: suite.subject(request))
        item.record(result)
        if result.status is not Status.PASS:
            raise StageFailed(result)

    return stage


class StageItem(pytest.Function):
    """One check key of one trials file."""

    result: StageResult | None = None

    def iter_parents(self) -> Iterator[pytest.Item | pytest.Collector]:
        """The project's root folder is a parent of every stage, also of trials that lie elsewhere.

        pytest 9.1 looks for a conftest's fixtures among an item's parents; the root conftest.py must reach stages
        whose trials come from the installed package.
        """
        yield from super().iter_parents()  # type: ignore[misc]
        root = self.config.stash.get(ROOT_KEY, None)
        if root is not None and not self.path.is_relative_to(root.path):
            yield root

    @property
    def suite(self) -> SuiteCollector:
        assert isinstance(self.parent, SuiteCollector)
        return self.parent

    @property
    def trials_path(self) -> Path:
        return self.path

    def record(self, result: StageResult) -> None:
        self.result = result
        if result.status is not Status.PASS and self.suite.earliest_failed is None:
            self.suite.earliest_failed = self.name

    def record_error(self, error: BaseException) -> None:
        """A fixture or a hook failed before the stage could be judged."""
        status = error.status if isinstance(error, StageError) else Status.ERROR
        self.record(StageResult(SUITE, self.name, status, message=f"{type(error).__name__}: {error}"))

    def block(self) -> None:
        """Skip this item if an earlier key failed."""
        earliest = self.suite.earliest_failed
        if earliest is None or self.config.stash[OPTIONS_KEY].keep_going:
            return
        self.result = StageResult(SUITE, self.name, Status.BLOCKED, blocked_by=earliest)
        pytest.skip(f"blocked by {earliest}")

    def to_json(self) -> str | None:
        if self.result is None:
            return None
        row = {"nodeid": self.nodeid, "reproduce": self.reproduce(), "context": self.suite.context}
        return json.dumps({**row, "result": self.result.to_dict()})

    def reproduce(self) -> str:
        """One line that runs this stage alone, from the folder this run was started in."""
        here, given = self.config.invocation_params.dir, reproduce_options(self.config)
        if self.path.is_relative_to(here):
            nodeid = f"{self.path.relative_to(here).as_posix()}::{SUITE}::{self.name}"
            return command("pytest", nodeid, *given)
        # An argument outside this folder would leave the conftest.py here unread, and with it the candidate.
        return command("pytest", "-m", SUITE, "-k", self.name, f"--fv-trials={self.path}", *given)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, StageFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.stem} :: {TITLES[self.name]}"
