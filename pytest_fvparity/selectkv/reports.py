"""What the suite is reported by: a small file beside each run, and one line that says which rule failed by how much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.gates import StageResult, Status
from pytest_fvparity.options import OPTIONS_KEY, ParityOptions
from pytest_fvparity.selectkv import SUITE
from pytest_fvparity.selectkv.runs import title_of
from pytest_fvparity.suite.declaration import SuiteReports

if TYPE_CHECKING:
    from pytest_fvparity.suite.reporter import SuiteRun

NAME = "selectkv_report.json"
SCHEMA_VERSION = 1


def folder_of(options: ParityOptions, file: Path) -> Path:
    """Where reports on a config or a run lie; below it, what was run for them."""
    return options.report_dir / SUITE / title_of(file)


def assemble(subject: str, run_folder: str | None, results: Mapping[str, StageResult]) -> dict[str, Any]:
    """Every check with its status and what was measured; the headline names the first that failed, with both numbers."""
    from fvcore.provenance import now

    failed = [result for result in results.values() if result.status is not Status.PASS]
    return {
        "schema_version": SCHEMA_VERSION,
        "created_at": now(),
        "subject": subject,
        "run": run_folder,
        "overall_status": "FAIL" if failed else "PASS",
        "headline": _headline(subject, len(results), failed),
        "checks": [_row(result) for result in results.values()],
    }


def _headline(subject: str, n: int, failed: list[StageResult]) -> str:
    if not failed:
        return f"{subject}: {n} of {n} checks of gates A and B hold"
    return f"{subject}: {len(failed)} of {n} checks fail, the first {failed[0].key}: {_said(failed[0])}"


def _said(result: StageResult) -> str:
    first = result.verdict.first_mismatch
    return first.message if first else (result.message.strip().splitlines() or [str(result.status)])[-1]


def _row(result: StageResult) -> dict[str, Any]:
    said = "" if result.status is Status.PASS else _said(result)
    return {
        "key": result.key,
        "status": str(result.status),
        "measurements": dict(result.verdict.measurements),
        "message": said,
    }


class SelectKVReports(SuiteReports):
    """A report for each config or run of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.options = config, config.stash[OPTIONS_KEY]
        self.headlines: list[str] = []

    def _path(self, run: SuiteRun) -> Path:
        return folder_of(self.options, self._file(run)) / NAME

    def _file(self, run: SuiteRun) -> Path:
        return (self.config.rootpath / run.file).resolve()

    def begin(self, runs: Iterable[SuiteRun]) -> None:
        for run in runs:
            if run.of(SUITE):
                self._path(run).unlink(missing_ok=True)

    def finish(self, runs: Iterable[SuiteRun]) -> bool:
        from fvcore.formats import write_json

        green = True
        for run in runs:
            if run.of(SUITE) and run.planned:
                subject = self.options.shown(self._file(run))
                report = assemble(subject, run.context.get("folder"), run.results())
                write_json(self._path(run), report)
                self.headlines += [report["headline"], self.options.from_here(self._path(run))]
                green = green and report["overall_status"] == "PASS"
        return green

    def summary(self, terminal: Any, written: bool) -> None:
        if self.headlines:
            terminal.section("fvparity: Select-KV")
            for line in self.headlines:
                terminal.write_line(line)
