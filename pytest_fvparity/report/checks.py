"""What a suite of checks on a file is reported by: a small file, its page, and one line that says which failed first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fvcore import escapes, names
from fvcore.gates import StageResult, Status, first_line
from pytest_fvparity.options import OPTIONS_KEY, ParityOptions
from pytest_fvparity.report.markdown import within
from pytest_fvparity.runners import Annotation
from pytest_fvparity.suite.declaration import SuiteReports

if TYPE_CHECKING:
    from pytest_fvparity.suite.reporter import SuiteRun

SCHEMA_VERSION = 1


def assemble(
    subject: str, about: str, context: Mapping[str, Any], results: Mapping[str, StageResult]
) -> dict[str, Any]:
    """Every check with its status and what was measured; the headline names the first that failed, with its numbers."""
    from fvcore.provenance import now

    failed = [result for result in results.values() if result.status is not Status.PASS]
    return {
        "schema_version": SCHEMA_VERSION,
        "created_at": now(),
        "subject": subject,
        "run": context.get("folder"),
        "overall_status": "FAIL" if failed else "PASS",
        "headline": _headline(subject, about, len(results), failed),
        "checks": [_row(result) for result in results.values()],
    }


def _headline(subject: str, about: str, n: int, failed: list[StageResult]) -> str:
    if not failed:
        return f"{subject}: {n} of {n} checks{about} hold"
    return f"{subject}: {len(failed)} of {n} checks fail, the first {failed[0].key}: {_said(failed[0])}"


def _said(result: StageResult) -> str:
    first = result.verdict.first_mismatch
    return first.message if first else first_line(result.message, str(result.status))


def _row(result: StageResult) -> dict[str, Any]:
    said = "" if result.status is Status.PASS else _said(result)
    return {
        "key": result.key,
        "status": str(result.status),
        "measurements": dict(result.verdict.measurements),
        "message": said,
    }


class CheckReports(SuiteReports):
    """A report for each file of the session that the suite judged. A suite says its name, and how a file's report is called.

    title: a file in a word     heading: over its lines on the terminal     about: behind the word checks
    """

    suite: ClassVar[str]
    heading: ClassVar[str]
    about: ClassVar[str] = ""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.options = config, config.stash[OPTIONS_KEY]
        self.headlines: list[str] = []
        self.red: list[Annotation] = []

    @staticmethod
    def title(file: Path) -> str:
        raise NotImplementedError

    @classmethod
    def folder_of(cls, options: ParityOptions, file: Path) -> Path:
        """Where the report on a file lies, and what is made for it."""
        return options.report_dir / cls.suite / names.made(cls.title(file))

    def _path(self, run: SuiteRun) -> Path:
        return self.folder_of(self.options, self._file(run)) / f"{self.suite}_report.json"

    def _file(self, run: SuiteRun) -> Path:
        return (self.config.rootpath / run.file).resolve()

    def earlier(self, runs: Iterable[SuiteRun]) -> Iterable[Path]:
        paths = [self._path(run) for run in runs if run.of(self.suite)]
        return [path.with_suffix(kind) for path in paths for kind in (".json", ".html")]

    def finish(self, runs: Iterable[SuiteRun]) -> bool:
        from fvcore.formats import write_json, write_text
        from pytest_fvparity.report.render import environment

        for run in runs:
            if run.of(self.suite) and run.planned:
                subject = self.options.shown(self._file(run))
                report = assemble(subject, self.about, run.context, run.results())
                write_json(self._path(run), report)
                text = environment().get_template("checks.html.j2").render(report)
                write_text(self._path(run).with_suffix(".html"), text)
                self.headlines += [report["headline"], self.options.from_here(self._path(run))]
                if report["overall_status"] != "PASS":
                    self.red.append(
                        Annotation("error", f"{subject}: {self.suite}", report["headline"], self._file(run))
                    )
        return not self.red

    def annotations(self) -> Sequence[Annotation]:
        return self.red

    def step_summary(self, room: int) -> str:
        lines = [f"- {escapes.cell(line)}" for line in self.headlines[::2]]
        return within("\n".join([f"**{self.heading}**", "", *lines]) if lines else "", room, "All of it is in the log.")

    def summary(self, terminal: Any, written: bool) -> None:
        if self.headlines:
            terminal.section(f"fvparity: {self.heading}")
            for line in self.headlines:
                terminal.write_line(escapes.line(line))
