"""What the parity suite is reported by: files of every trials file's run, and a table at the end of the terminal output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from fvcore import escapes, names
from pytest_fvparity import runners
from pytest_fvparity.options import OPTIONS_KEY, reproduce
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.parity.place import place_of, under_of
from pytest_fvparity.suite.declaration import FILES_KEY, SuiteReports

if TYPE_CHECKING:
    from pathlib import Path

    from fvcore.gates import StageResult
    from pytest_fvparity.report.report import Report
    from pytest_fvparity.runners import Annotation
    from pytest_fvparity.suite.reporter import SuiteRun

NAME = "parity"
MOST = 10  # groups of reports that the terminal shows, and names in each


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
            model = self.config.getoption("fv_model")
            under = under_of(self.options.report_dir, path, self.options.reference_profile, model)
            report = assemble(run.results(), run.rows, run.context, commands, run.keep_going, place, under)
            kept = next((path for path in self._bundles(report, [report.failed_key]) if path.is_file()), None)
            known = {"bundle": self.options.shown(kept) if kept else None}
            known |= {"model_directory": names.word_of_directory(model or "")}
            reports.append(report.model_copy(update=known))
        return reports

    def _bundles(self, report: Report, keys: Iterable[str | None]) -> list[Path]:
        """Where failures of these keys lie in files, if they are there."""
        if not self.options.bundle:
            return []
        from pytest_fvparity.bundle.bundle import place
        from pytest_fvparity.report.render import folders

        return [place(folder, key) for folder in folders(report, self.options.bundle) for key in keys if key]

    def earlier(self, runs: Iterable[SuiteRun]) -> Iterable[Path]:
        from pytest_fvparity.report.render import files_of

        reports = self._reports(runs)
        kept = [path for report in reports for path in self._bundles(report, CHECK_KEYS)]
        return [*files_of(reports, self.options.report_dir), *kept]

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
        for report in self.reports:  # workers that did not know of one another may have kept more than the earliest
            for path in self._bundles(report, [key for key in CHECK_KEYS if key != report.failed_key]):
                path.unlink(missing_ok=True)
        if self.reports:
            write_all(self.reports, self.options.report_dir)
        return all(report.overall_status != "FAIL" for report in self.reports)

    def tells(self, run: SuiteRun, result: StageResult) -> bool:
        """Of numbers that differ, and of an error in one line; a traceback is shown above."""
        return run.of(NAME) and "\n" not in result.message.strip()

    def summary(self, terminal: Any, written: bool) -> None:
        if self.reports:
            self._groups(terminal, written)
        planned = {(self.config.rootpath / name).resolve() for name in self.planned}
        own = [path for path, file in self.config.stash[FILES_KEY].items() if file.declared.name == NAME]
        for path in (path for path in own if path not in planned and not self.config.option.collectonly):
            line = f"no parity stage of {path.name} is selected: nothing of it was compared"
            terminal.write_line(escapes.line(line), yellow=True, bold=True)

    def _groups(self, terminal: Any, written: bool) -> None:
        from pytest_fvparity.report.screen import alike

        groups = alike(self.reports)
        for at, group in enumerate(groups[:MOST]):
            self._summary(group, terminal, written, brief=at > 0 and len(groups) > 2)
        if len(groups) > MOST:
            rest = sum(map(len, groups[MOST:]))
            page = self.options.from_here(self.options.report_dir / "summary.html")
            terminal.write_line(escapes.line(f"and {rest} more: {page}"))

    def annotations(self) -> Sequence[Annotation]:
        from pytest_fvparity.report.annotations import annotations

        return annotations(self.reports, self.options.rootdir)

    def step_summary(self, room: int) -> str:
        from pytest_fvparity.report.step_summary import identity, step_summary

        text = step_summary(self.reports, room)
        for report in self.reports:
            runners.mark_told(identity(report))
        return text

    def _summary(self, group: Sequence[Report], terminal: Any, written: bool, brief: bool) -> None:
        """Of reports that say the same the first, and the names of the others."""
        from pytest_fvparity.report.render import folders
        from pytest_fvparity.report.screen import lines

        report, *others = group
        if report.bundle:  # in the report it is relative to the project, here to where one types
            kept = self.options.from_here(self.config.rootpath / report.bundle)
            report = report.model_copy(update={"bundle": kept})
        page = folders(report, self.options.report_dir)[0] / "src_vs_fv_diff_report.html"
        said = list(lines(report, self.options.from_here(page) if written else None))
        good, bad = report.overall_status in {"PASS", "PARTIAL"}, report.overall_status == "FAIL"
        more = f" and {len(others)} more" if others else ""
        terminal.write_sep("=", f"parity of {report.fixed_trials_id}{more}", bold=True)
        terminal.write_line(escapes.line(said[0]), green=good, red=bad, yellow=not good and not bad, bold=True)
        for line in said[-1:] if brief else said[1:]:
            terminal.write_line(escapes.line(line))
        if others:
            named = ", ".join(one.fixed_trials_id for one in others[:MOST])
            terminal.write_line(escapes.line(f"the same of {named}{' ...' if len(others) > MOST else ''}"))
