"""The controller's view of a run: what was planned, what came back, and the verdict over all of it.

It exists on the controller only. Verdicts arrive on test reports, so a worker that dies takes none of them along. The
session is red unless every planned stage has a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.gates import Status
from pytest_fvparity.implementation import CHECK_KEYS
from pytest_fvparity.items import REPORT_ATTRIBUTE, stage_of
from pytest_fvparity.options import OPTIONS_KEY, reproduce

if TYPE_CHECKING:
    from pytest_fvparity.report import Report


class ParityReporter:
    """Plans, gathers, reports. `files` are the trials files of the run, as node ids name them."""

    def __init__(self, config: pytest.Config, files: Sequence[Path]) -> None:
        self.config = config
        self.files = files
        self.planned: dict[str, set[str]] = {}
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.not_run: dict[str, dict[str, str]] = {}
        self.unwritten = ""
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

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """For every report, also those that come from workers."""
        stage = stage_of(report.nodeid)
        if stage is None:
            return
        text = getattr(report, REPORT_ATTRIBUTE, None)
        if text:
            row, rows = json.loads(text), self.rows.setdefault(stage[0], {})
            # A stage that is run again, by a plugin for flaky tests, stays what it was when it failed.
            if stage[1] not in rows or row["result"]["status"] != Status.PASS:
                rows[stage[1]] = row
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.not_run.setdefault(stage[0], {})[stage[1]] = reason

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """At the end, also after Ctrl-C: the reports are written, and what is missing turns the session red."""
        refused = exitstatus == pytest.ExitCode.USAGE_ERROR  # nothing was run: the reports of the last run stay
        if not self.planned or self.config.option.collectonly or refused:
            return
        from pytest_fvparity.render import write_all

        self.reports = [
            self.report_of(trials_file, keys - self.unjudged(trials_file))
            for trials_file, keys in sorted(self.planned.items())
            if keys - self.unjudged(trials_file)
        ]
        try:
            if self.reports:
                write_all(self.reports, self.config.stash[OPTIONS_KEY].report_dir)
        except OSError as error:
            self.unwritten = f"reports NOT WRITTEN: {error}; see --fv-report-dir"
        green = not self.unwritten and all(report.overall_status == "PASS" for report in self.reports)
        if not green and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def unjudged(self, trials_file: str) -> set[str]:
        """Stages skipped for want of a device: they have no verdict, and are said to have none."""
        return self.not_run.get(trials_file, {}).keys() - self.rows.get(trials_file, {}).keys()

    def report_of(self, trials_file: str, keys: set[str]) -> Report:
        from pytest_fvparity.report import assemble

        def command(key: str) -> str:
            return reproduce(self.config, trials_file, key)

        keep_going = self.config.stash[OPTIONS_KEY].keep_going
        return assemble(trials_file, sorted(keys), self.rows.get(trials_file, {}), command, keep_going)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """At the end of the terminal output: one screen."""
        write = terminalreporter.write_line
        several = len(self.reports) > 1
        for report in self.reports:
            good = report.overall_status == "PASS"
            terminalreporter.write_sep("=", f"parity of {report.fixed_trials_id}", bold=True)
            write(report.headline, green=good, red=not good, bold=True)
            for name, (golden, here) in report.conditions.items():
                write(f"condition {name}: golden {golden}, here {here}")
            if report.repro_command:
                write(f"reproduce: {report.repro_command}")
            for line in () if good and several else _table(report):
                write(line)
            if not self.unwritten:
                write(f"report: {self.shown_report(report)}")
        for line in [self.unwritten, *self.without_verdict()]:
            if line:
                write(line, yellow=True, bold=True)

    def shown_report(self, report: Report) -> str:
        """Where the HTML lies, from the folder this run was started in if it is inside."""
        from pytest_fvparity.render import folders

        path = folders(report, self.config.stash[OPTIONS_KEY].report_dir)[0] / "src_vs_fv_diff_report.html"
        here = self.config.invocation_params.dir
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    def without_verdict(self) -> list[str]:
        """One line a trials file whose stages were not run."""
        lines = [
            f"{len(stages)} parity stage(s) of {trials_file} NOT RUN: {'; '.join(sorted(set(stages.values())))}"
            for trials_file, stages in sorted(self.not_run.items())
        ]
        planned = {(self.config.rootpath / name).resolve() for name in self.planned}
        if self.config.option.collectonly:
            return lines
        return lines + [
            f"no parity stage of {path.name} is selected: nothing of it was compared"
            for path in self.files
            if path not in planned
        ]


def _table(report: Report) -> list[str]:
    lines = [f"{'':2}{'check key':<18}{'status':<10}{'compared':>10}{'mismatches':>12}{'max abs diff':>14}  note"]
    for check in report.checks:
        number = check.max_abs_diff
        largest = f"{number:.3g}" if isinstance(number, float) else number or "-"
        note = f"blocked by {check.blocked_by}" if check.blocked_by else f"{check.fault} fault" if check.fault else ""
        note = note or "; ".join(dict.fromkeys(w.message.split(":")[0] for w in check.warnings))
        n = CHECK_KEYS.index(check.key) + 1
        row = f"{n} {check.key:<18}{check.status:<10}{check.n_compared:>10}{check.mismatch_count:>12}{largest:>14}  {note}"
        lines.append(row.rstrip())
    if report.n_compared_trials != report.n_trials:
        lines.append(f"{report.n_compared_trials} of {report.n_trials} trials compared at the per-trial keys")
    return lines
