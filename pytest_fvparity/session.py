"""The controller's view of a run: what was planned, what came back, and the verdict over all of it.

It exists on the controller only. Verdicts arrive on test reports, so a worker that dies takes none of them along. The
session is red unless every planned stage has a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_fvparity.implementation import CHECK_KEYS
from pytest_fvparity.items import OPTIONS_KEY, REPORT_ATTRIBUTE, stage_of

if TYPE_CHECKING:
    from pytest_fvparity.report import Report


class ParityReporter:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.planned: dict[str, set[str]] = {}
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.not_run: dict[str, str] = {}
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
            self.rows.setdefault(stage[0], {})[stage[1]] = json.loads(text)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.not_run[report.nodeid] = reason

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """At the end, also after Ctrl-C: the reports are written, and what is missing turns the session red."""
        if not self.planned or self.config.option.collectonly:
            return
        from pytest_fvparity.render import write_all
        from pytest_fvparity.report import assemble

        options = self.config.stash[OPTIONS_KEY]
        for trials_file, keys in sorted(self.planned.items()):
            skipped = {stage[1] for nodeid in self.not_run if (stage := stage_of(nodeid)) and stage[0] == trials_file}
            judged = keys - (skipped - set(self.rows.get(trials_file, {})))
            if judged:
                rows = self.rows.get(trials_file, {})
                self.reports.append(assemble(trials_file, sorted(judged), rows, options.keep_going))
        if self.reports:
            write_all(self.reports, options.report_dir)
        if any(report.overall_status != "PASS" for report in self.reports) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """At the end of the terminal output: one screen."""
        for report in self.reports:
            good = report.overall_status == "PASS"
            terminalreporter.write_sep("=", f"parity of {report.fixed_trials_id}", bold=True)
            terminalreporter.write_line(report.headline, green=good, red=not good, bold=True)
            if report.repro_command:
                terminalreporter.write_line(f"reproduce: {report.repro_command}")
            for line in _table(report):
                terminalreporter.write_line(line)
            for name, (golden, here) in report.conditions.items():
                terminalreporter.write_line(f"condition {name}: golden {golden}, here {here}")
            where = self.config.stash[OPTIONS_KEY].report_dir / report.dataset / report.fixed_trials_id
            terminalreporter.write_line(f"report: {where / 'src_vs_fv_diff_report.html'}")
        if self.not_run:
            reasons = "; ".join(sorted(set(self.not_run.values())))
            terminalreporter.write_line(
                f"{len(self.not_run)} parity stage(s) NOT RUN: {reasons}", yellow=True, bold=True
            )


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
