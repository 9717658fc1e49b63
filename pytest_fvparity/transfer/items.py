"""A q_id's status file is a test file: one suite, `transfer`, an item a stage.

Node ids read `<relation root>/<q_id>/artifacts/qid_status.json::transfer::stepd_scores`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.gates import NON_BLOCKING, Stage, StageError, StageResult, Status, run_stage
from pytest_fvparity.options import OPTIONS_KEY
from pytest_fvparity.suite.items import Adopted, DataFile, StageFailed
from pytest_fvparity.transfer import KEYS, SUITE, TITLES

if TYPE_CHECKING:
    from pytest_fvparity.transfer.subject import Transfer

PROPERTY = "fvparity_transfer"
"""The user property of a test report that carries a stage's result as JSON text."""


def stage_of(nodeid: str) -> tuple[str, str] | None:
    """(q_id, stage key) of a transfer item's node id; None for any other test."""
    parts = nodeid.split("::")
    folders = parts[0].split("/")
    if len(parts) == 3 and parts[1] == SUITE and parts[2] in KEYS and len(folders) > 2:
        return folders[-3], parts[2]
    return None


class StatusFile(DataFile):
    """`skipped` q_ids have nothing to compare: their status alone is judged."""

    skipped = False

    def collect(self) -> Iterator[pytest.Collector]:
        yield TransferCollector.from_parent(self, name=SUITE)


class SkippedFile(StatusFile):
    skipped = True


class TransferCollector(pytest.Collector):
    """The suite of one q_id; its subject is built when the first stage runs, and the earliest failure remembered."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.earliest_failed: str | None = None
        self.built: list[Transfer] = []

    def collect(self) -> Iterator[pytest.Item]:
        from pytest_fvparity.transfer.stages import STAGES

        assert isinstance(self.parent, StatusFile)
        for stage in STAGES[:1] if self.parent.skipped else STAGES:
            item = TransferItem.from_parent(self, name=stage.key, callobj=_test_of(stage))
            item.add_marker(SUITE)
            yield item

    def subject(self, request: pytest.FixtureRequest) -> Transfer:
        from fvcore.experiments.folder import Folder
        from fvcore.formats import FormatError
        from fvcore.model.model import ModelError
        from pytest_fvparity.parity.tolerances import Tolerances
        from pytest_fvparity.transfer.subject import Transfer

        if not self.built:
            try:
                lm, options = request.getfixturevalue("fv_model"), self.config.stash[OPTIONS_KEY]
                tolerances = Tolerances.read(options.tolerances, (), lm.dtype, lm.device.type)
            except (FormatError, ModelError) as error:
                raise StageError(str(error)) from error
            self.built.append(Transfer(Folder(self.path.parents[1]), lm, tolerances))
        return self.built[0]


def _test_of(stage: Stage[Transfer]) -> Any:
    def test(request: pytest.FixtureRequest) -> None:
        item = request.node
        assert isinstance(item, TransferItem)
        item.record(run_stage(SUITE, Stage(stage.key, stage.title, _readable(stage)), lambda: item.subject(request)))
        assert item.result is not None
        if item.result.status is not Status.PASS:
            raise StageFailed(item.result)

    return test


def _readable(stage: Stage[Transfer]) -> Any:
    """The check, with what is wrong with a file in one sentence instead of a traceback."""

    def check(run: Transfer) -> Any:
        from fvcore.formats import FormatError

        try:
            return stage.check(run)
        except FormatError as error:
            raise StageError(str(error)) from error

    return check


class TransferItem(Adopted):
    """One stage of one q_id."""

    result: StageResult | None = None

    @property
    def collector(self) -> TransferCollector:
        assert isinstance(self.parent, TransferCollector)
        return self.parent

    def subject(self, request: pytest.FixtureRequest) -> Transfer:
        return self.collector.subject(request)

    def record(self, result: StageResult) -> None:
        self.result = result
        if result.status not in NON_BLOCKING and self.collector.earliest_failed is None:
            self.collector.earliest_failed = self.name
        self._tell()

    def _tell(self) -> None:
        assert self.result is not None
        self.user_properties.append((PROPERTY, json.dumps(self.result.to_dict(), default=str)))

    def setup(self) -> None:
        """A stage behind a failed one is blocked."""
        earliest = self.collector.earliest_failed
        if earliest is not None and earliest != self.name and not self.config.stash[OPTIONS_KEY].keep_going:
            self.result = StageResult(SUITE, self.name, Status.BLOCKED, blocked_by=earliest)
            self._tell()
            pytest.skip(f"blocked by {earliest}")
        super().setup()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, StageFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Any, int, str]:
        return self.path, 0, f"{self.path.parents[1].name} :: {TITLES[self.name]}"
