"""What the parity suite is reported by: files of every trials file's run, and a table at the end of the terminal output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from fvcore import escapes
from pytest_fvparity import runners
from pytest_fvparity.options import OPTIONS_KEY, reproduce
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.parity.partial import LACKS
from pytest_fvparity.parity.place import particular, place_of
from pytest_fvparity.suite.declaration import FILES_KEY, SuiteReports

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_fvparity.report.report import Report
    from pytest_fvparity.runners import Annotation
    from pytest_fvparity.suite.reporter import SuiteRun

NAME = "parity"


class ParityReports(SuiteReports):
    """Of the runs of this suite; a report for each trials file."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.options = config, config.stash[OPTIONS_KEY]
        self.planned: set[str] = set()
        self.reports: list[Report] = []

    def _reports(self, runs: Iterable[SuiteRun]) -> list[Report]:
        from pytest_fvparity.report.report import assemble

        reports = []
        for run in (run for run in runs if run.of(NAME) and run.planned):
            commands = {key: reproduce(self.config, f"{run.nodeid}::{key}", run.declared) for key in run.planned}
            path = self.config.rootpath / run.file
            place = place_of(path)
            under = particular(path, self.options.reference_profile, self.config.getoption("fv_model"))
            reports.append(assemble(run.results(), run.rows, run.context, commands, run.keep_going, place, under))
        return reports

    def earlier(self, runs: Iterable[SuiteRun]) -> Iterable[Path]:
        from pytest_fvparity.report.render import files_of

        return files_of(self._reports(runs), self.options.report_dir)

    def begin(self, runs: Iterable[SuiteRun]) -> None:
        from pytest_fvparity.report.render import folders, write_records

        report_dir = self.options.report_dir
        stale = [one for one in self._reports(runs) if any(folder.is_dir() for folder in folders(one, report_dir))]
        write_records(stale, report_dir)

    def keep(self, run: SuiteRun) -> None:
        from pytest_fvparity.report.render import write_records

        write_records(self._reports([run]), self.options.report_dir)

    def finish(self, runs: Iterable[SuiteRun]) -> bool:
        from pytest_fvparity.report.render import write_all

        runs = list(runs)
        self.planned = {run.file for run in runs if run.of(NAME) and run.planned}
        self.reports = self._reports(runs)
        if self.reports:
            write_all(self.reports, self.options.report_dir)
        return all(report.overall_status != "FAIL" for report in self.reports)

    def summary(self, terminal: Any, written: bool) -> None:
        for report in self.reports:
            self._summary(report, terminal, written)
        planned = {(self.config.rootpath / name).resolve() for name in self.planned}
        own = [path for path, file in self.config.stash[FILES_KEY].items() if file.declared.name == NAME]
        for path in (path for path in own if path not in planned and not self.config.option.collectonly):
            line = f"no parity stage of {path.name} is selected: nothing of it was compared"
            terminal.write_line(escapes.line(line), yellow=True, bold=True)

    def annotations(self) -> Sequence[Annotation]:
        from pytest_fvparity.report.annotations import annotations

        return annotations(self.reports, self.options.rootdir)

    def step_summary(self, room: int) -> str:
        from pytest_fvparity.report.step_summary import identity, step_summary

        text = step_summary(self.reports, room)
        for report in self.reports:
            runners.mark_told(identity(report))
        return text

    def _summary(self, report: Report, terminal: Any, written: bool) -> None:
        from pytest_fvparity.report.render import folders
        from pytest_fvparity.report.report import not_provided

        def write(text: str, **look: bool) -> None:
            terminal.write_line(escapes.line(text), **look)

        good, bad = report.overall_status in {"PASS", "PARTIAL"}, report.overall_status == "FAIL"
        terminal.write_sep("=", f"parity of {report.fixed_trials_id}", bold=True)
        write(report.headline, green=good, red=bad, yellow=not good and not bad, bold=True)
        if report.candidate:
            write(f"candidate: {report.candidate}")
        for name, (golden, here) in report.conditions.items():
            write(f"condition {name}: {golden} -> {here}")
        if report.repro_command:
            write(f"reproduce: {report.repro_command}")
        for line in () if good and len(self.reports) > 1 else _table(report):
            write(line)
        if not good and (lacking := not_provided(report.checks)):
            write(f"{LACKS}{'; '.join(lacking)}")
        if written:
            page = folders(report, self.options.report_dir)[0] / "src_vs_fv_diff_report.html"
            write(f"report: {self.options.from_here(page)}")


def _table(report: Report) -> list[str]:
    lines = [f"{'':2}{'check key':<18}{'status':<13}{'compared':>10}{'mismatches':>12}{'max abs diff':>14}  note"]
    for check in report.checks:
        number = check.max_abs_diff
        largest = f"{number:.3g}" if isinstance(number, float) else number or "-"
        note = f"blocked by {check.blocked_by}" if check.blocked_by else f"{check.fault} fault" if check.fault else ""
        note = note or "; ".join(dict.fromkeys(w.message.split(":")[0] for w in check.warnings))
        n = CHECK_KEYS.index(check.key) + 1
        mismatches = "-" if check.mismatch_count is None else check.mismatch_count
        row = f"{n} {check.key:<18}{check.status:<13}{check.n_compared:>10}{mismatches:>12}{largest:>14}  {note}"
        lines.append(row.rstrip())
    if report.n_compared_trials != report.n_trials:
        lines.append(f"{report.n_compared_trials} of {report.n_trials} trials compared at the per-trial keys")
    return lines
