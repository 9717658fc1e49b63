"""The controller's view of a run: what was planned, what came back, and the verdict over all of it.

It exists on the controller only. Verdicts arrive on test reports, so a worker that dies takes none of them along. The
session is red unless every planned stage has a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.gates import NON_BLOCKING, StageResult, Status
from pytest_fvparity.options import OPTIONS_KEY, reproduce
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.suite.items import REPORT_ATTRIBUTE, SUITE, stage_of
from pytest_fvparity.suite.place import place_of

if TYPE_CHECKING:
    from pytest_fvparity.report.report import Report


FAILURES = "fvparity_failures"
"""The entry of a worker's `workerinput` that holds what is known when it starts: trials file -> earliest failed key."""

MAX_OUTPUT = 4000  # characters of a stage's own output that the log keeps: the last ones


def known_failures(config: pytest.Config) -> dict[str, str]:
    """Trials file -> the earliest key that failed on a worker which this one replaces. Empty in any other process."""
    known: dict[str, str] = getattr(config, "workerinput", {}).get(FAILURES, {})
    return known


class ParityReporter:
    """Plans, gathers, reports. `files` are the trials files of the run, as node ids name them."""

    def __init__(self, config: pytest.Config, files: Sequence[Path]) -> None:
        self.config = config
        self.files = files
        self.planned: dict[str, set[str]] = {}
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.unwritten = ""
        self.begun: set[str] = set()
        self.reports: list[Report] = []

    def plan(self, nodeids: Iterable[str]) -> None:
        for nodeid in nodeids:
            stage = stage_of(nodeid)
            if stage:
                self.planned.setdefault(stage[0], set()).add(stage[1])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """After -k, -m and --lf have had their say, in a run without workers."""
        self.plan(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """When a worker has collected; all workers collect the same."""
        self.plan(ids)
        self.begin()

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Before the first test, and after goldens were recorded."""
        if not self.config.option.collectonly:
            self.begin()

    def begin(self) -> None:
        """Take back what earlier runs reported: a process that is killed from here on leaves no old PASS."""
        from pytest_fvparity.report.render import folders, write_all

        report_dir = self.config.stash[OPTIONS_KEY].report_dir
        fresh = [self.report_of(name) for name in sorted(self.planned.keys() - self.begun)]
        self.begun |= self.planned.keys()
        stale = [report for report in fresh if any(folder.is_dir() for folder in folders(report, report_dir))]
        if stale:
            self.write(write_all, stale)

    def keep(self, trials_file: str) -> None:
        """Write what is known so far: a process that is killed later takes no verdict along."""
        from pytest_fvparity.report.render import write_reports

        if trials_file in self.planned:
            self.write(write_reports, [self.report_of(trials_file)])

    def write(self, write_all: Callable[[Sequence[Report], Path], None], reports: Sequence[Report]) -> None:
        try:
            write_all(reports, self.config.stash[OPTIONS_KEY].report_dir)
        except Exception as error:  # whatever it is: a verdict must not end in a traceback of its report
            self.unwritten = f"reports NOT WRITTEN: {type(error).__name__}: {error}; see --fv-report-dir"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """For every report, also those that come from workers."""
        stage = stage_of(report.nodeid)
        if stage is None:
            return
        text = getattr(report, REPORT_ATTRIBUTE, None)
        if text:
            self.judge(*stage, json.loads(text), report)

    def judge(self, trials_file: str, key: str, row: dict[str, Any], report: pytest.TestReport) -> None:
        row |= {"stdout": report.capstdout[-MAX_OUTPUT:], "stderr": report.capstderr[-MAX_OUTPUT:]}
        rows = self.rows.setdefault(trials_file, {})
        # A stage that is run again, by a plugin for flaky tests, stays what it was when it failed.
        if key not in rows or row["result"]["status"] != Status.PASS:
            rows[key] = row
            self.keep(trials_file)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """When a worker died in a test: a stage crashed, even if it had passed and died while it was cleaned up."""
        stage = stage_of(crashitem)
        if stage and self.status(*stage) in {None, Status.PASS}:
            result = StageResult(SUITE, stage[1], Status.CRASHED, message=str(report.longrepr))
            self.judge(*stage, {"context": {}, "result": result.to_dict()}, report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Before a worker starts: one that replaces another is told what failed, for the dead remember nothing."""
        harmless = {None, *NON_BLOCKING, Status.BLOCKED, Status.NOT_RUN}
        known: dict[str, str] = {}
        for name in self.rows:
            for key in reversed(CHECK_KEYS):
                if self.status(name, key) not in harmless:
                    known[name] = key
        node.workerinput[FAILURES] = known

    def status(self, trials_file: str, key: str) -> Status | None:
        """What a stage reported so far."""
        row = self.rows.get(trials_file, {}).get(key)
        return Status(row["result"]["status"]) if row else None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """At the end, also after Ctrl-C: the reports are written, and what is missing turns the session red."""
        refused = exitstatus == pytest.ExitCode.USAGE_ERROR  # nothing was run: the reports of the last run stay
        if not self.planned or self.config.option.collectonly or refused:
            return
        from pytest_fvparity.report.render import write_all
        from pytest_fvparity.report.report import GREEN

        self.reports = [self.report_of(name) for name in sorted(self.planned)]
        self.write(write_all, self.reports)
        green = not self.unwritten and all(report.overall_status in GREEN for report in self.reports)
        if not green and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def report_of(self, trials_file: str) -> Report:
        from pytest_fvparity.report.report import assemble

        def command(key: str) -> str:
            return reproduce(self.config, trials_file, key)

        keys, rows = sorted(self.planned[trials_file]), self.rows.get(trials_file, {})
        place = place_of(self.config.rootpath / trials_file)
        return assemble(trials_file, keys, rows, command, self.config.stash[OPTIONS_KEY].keep_going, place)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """At the end of the terminal output: one screen."""
        write = terminalreporter.write_line
        several = len(self.reports) > 1
        for report in self.reports:
            good, bad = report.overall_status in {"PASS", "PARTIAL"}, report.overall_status == "FAIL"
            terminalreporter.write_sep("=", f"parity of {report.fixed_trials_id}", bold=True)
            write(report.headline, green=good, red=bad, yellow=not good and not bad, bold=True)
            if report.candidate:
                write(f"candidate: {report.candidate}")
            for name, (golden, here) in report.conditions.items():
                write(f"condition {name}: golden {golden}, here {here}")
            if report.repro_command:
                write(f"reproduce: {report.repro_command}")
            for line in () if good and several else _table(report):
                write(line)
            if not self.unwritten:
                write(f"report: {self.shown_report(report)}")
        for line in [self.unwritten, *self.unselected()]:
            if line:
                write(line, yellow=True, bold=True)

    def shown_report(self, report: Report) -> str:
        """Where the HTML lies, from the folder this run was started in if it is inside."""
        from pytest_fvparity.report.render import folders

        path = folders(report, self.config.stash[OPTIONS_KEY].report_dir)[0] / "src_vs_fv_diff_report.html"
        here = self.config.invocation_params.dir
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    def unselected(self) -> list[str]:
        """One line a trials file of which no stage was selected."""
        planned = {(self.config.rootpath / name).resolve() for name in self.planned}
        unplanned = [] if self.config.option.collectonly else [path for path in self.files if path not in planned]
        return [f"no parity stage of {path.name} is selected: nothing of it was compared" for path in unplanned]


def _dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _table(report: Report) -> list[str]:
    lines = [f"{'':2}{'check key':<18}{'status':<13}{'compared':>10}{'mismatches':>12}{'max abs diff':>14}  note"]
    for check in report.checks:
        number = check.max_abs_diff
        largest = f"{number:.3g}" if isinstance(number, float) else number or "-"
        note = f"blocked by {check.blocked_by}" if check.blocked_by else f"{check.fault} fault" if check.fault else ""
        note = note or "; ".join(dict.fromkeys(w.message.split(":")[0] for w in check.warnings))
        n = CHECK_KEYS.index(check.key) + 1
        row = f"{n} {check.key:<18}{check.status:<13}{check.n_compared:>10}{_dash(check.mismatch_count):>12}{largest:>14}  {note}"
        lines.append(row.rstrip())
    if report.n_compared_trials != report.n_trials:
        lines.append(f"{report.n_compared_trials} of {report.n_trials} trials compared at the per-trial keys")
    return lines
