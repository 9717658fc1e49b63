"""The controller's view of a transfer run: both suites of every q_id, gathered from test reports, and the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fvcore.gates import StageResult, Status
from pytest_fvparity.options import OPTIONS_KEY
from pytest_fvparity.suite import items as parity
from pytest_fvparity.transfer import SUITE, items
from pytest_fvparity.transfer.runs import QId


class TransferReporter:
    """Plans, gathers, reports. `q_ids` are those of the run that were asked for."""

    def __init__(self, config: pytest.Config, q_ids: Sequence[QId]) -> None:
        self.config, self.q_ids = config, q_ids
        self.results: dict[str, dict[str, dict[str, StageResult]]] = {SUITE: {}, parity.SUITE: {}}
        self.trials = {q_id.trials_file: q_id.name for q_id in q_ids}
        self.headline = ""

    @property
    def path(self) -> Path:
        from pytest_fvparity.transfer.report import NAME

        options = self.config.stash[OPTIONS_KEY]
        assert options.relation_root is not None
        return options.report_dir.joinpath(SUITE, *options.relation_root.parts[-2:], NAME)

    def stage(self, nodeid: str) -> tuple[str, str, str] | None:
        """(suite, q_id, key) of a stage of this run."""
        if own := items.stage_of(nodeid):
            return SUITE, *own
        if (other := parity.stage_of(nodeid)) and (
            q_id := self.trials.get((self.config.rootpath / other[0]).resolve())
        ):
            return parity.SUITE, q_id, other[1]
        return None

    def plan(self, nodeids: Iterable[str]) -> None:
        for suite, q_id, key in filter(None, map(self.stage, nodeids)):
            crashed = StageResult(suite, key, Status.CRASHED, message="no verdict: the process ended before it had one")
            self.results[suite].setdefault(q_id, {}).setdefault(key, crashed)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """After -k, -m and --lf have had their say, in a run without workers."""
        self.plan(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """When a worker has collected; all workers collect the same."""
        self.plan(ids)

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Before the first test: a process that is killed from here on leaves no old PASS."""
        if not self.config.option.collectonly:
            self.path.unlink(missing_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """For every report, also those that come from workers."""
        stage = self.stage(report.nodeid)
        if stage is None:
            return
        suite, q_id, key = stage
        if result := _result_of(report):
            self.results[suite].setdefault(q_id, {})[key] = result
        elif report.failed:
            result = StageResult(suite, key, Status.ERROR, message=str(report.longrepr))
            self.results[suite].setdefault(q_id, {})[key] = result

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """At the end, also after Ctrl-C: the report is written, and what is missing turns the session red."""
        planned = any(self.results.values())
        if not planned or self.config.option.collectonly or exitstatus == pytest.ExitCode.USAGE_ERROR:
            return
        from fvcore.formats import write_text
        from pytest_fvparity.transfer.report import assemble, text_of

        root, options = self.config.rootpath, self.config.stash[OPTIONS_KEY]
        assert options.relation_root is not None
        where = options.relation_root
        shown = where.relative_to(root).as_posix() if where.is_relative_to(root) else where.as_posix()
        report = assemble(shown, self.q_ids, self.results[SUITE], self.results[parity.SUITE])
        write_text(self.path, text_of(report))
        self.headline = report.headline
        nothing_compared = not report.compared_with_reference and not options.qid and not self._partial
        if (report.overall_status == "FAIL" or nothing_compared) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @property
    def _partial(self) -> bool:
        """Whether some stages were left out by choice."""
        option = self.config.option
        return bool(option.keyword) or bool(getattr(option, "lf", False))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """At the end of the terminal output."""
        if self.headline:
            terminalreporter.section("fvparity: relation transfer")
            terminalreporter.write_line(self.headline)
            here, path = self.config.invocation_params.dir, self.path
            terminalreporter.write_line(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _result_of(report: pytest.TestReport) -> StageResult | None:
    for name, text in report.user_properties:
        if name == items.PROPERTY and isinstance(text, str):
            return StageResult.from_dict(json.loads(text))
    if text := getattr(report, parity.REPORT_ATTRIBUTE, None):
        return StageResult.from_dict(json.loads(text)["result"])
    return None
