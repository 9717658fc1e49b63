"""What the transfer suite is reported by: one file over every q_id, with what the parity suite says of its frozen trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore import escapes
from pytest_fvparity.options import OPTIONS_KEY
from pytest_fvparity.report.markdown import within
from pytest_fvparity.runners import Annotation
from pytest_fvparity.suite.declaration import SuiteReports
from pytest_fvparity.transfer import SUITE
from pytest_fvparity.transfer.runs import Q_IDS_KEY

if TYPE_CHECKING:
    from pytest_fvparity.suite.reporter import SuiteRun


class TransferReports(SuiteReports):
    """Of both suites of the q_ids that were asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.options, self.q_ids = config, config.stash[OPTIONS_KEY], config.stash[Q_IDS_KEY]
        self.root = self.q_ids[0].folder.parent
        self.headline, self.red = "", False

    @property
    def path(self) -> Path:
        from pytest_fvparity.transfer.report import NAME

        return self.options.report_dir.joinpath(SUITE, *self.root.parts[-2:], NAME)

    def earlier(self, runs: Iterable[SuiteRun]) -> Iterable[Path]:
        return [self.path]

    def finish(self, runs: Iterable[SuiteRun]) -> bool:
        from fvcore.formats import write_json
        from pytest_fvparity.transfer.report import assemble

        runs = [run for run in runs if run.declared and run.planned]
        files, reference = ({q: run.results() for q, run in self._by_q_id(suite, runs)} for suite in (SUITE, "parity"))
        if not files and not reference:
            return True
        sources = [source for _, run in self._by_q_id(SUITE, runs) for source in run.context.get("tolerances", [])]
        report = assemble(self.options.shown(self.root), self.q_ids, files, reference, list(dict.fromkeys(sources)))
        write_json(self.path, report.model_dump(mode="json"))
        self.headline, self.red = report.headline, report.overall_status == "FAIL"
        compared = report.overall_status == "NOT_RUN" or report.compared_with_reference or self._partial
        return report.overall_status != "FAIL" and bool(compared)

    def _by_q_id(self, suite: str, runs: Iterable[SuiteRun]) -> list[tuple[str, SuiteRun]]:
        """The runs of one suite, with the name of the q_id whose file each judges."""
        names = {path: q_id.name for q_id in self.q_ids for path in (q_id.status_file, q_id.trials_file)}
        paths = [((self.config.rootpath / run.file).resolve(), run) for run in runs if run.of(suite)]
        return [(names[path], run) for path, run in paths if path in names]

    @property
    def _partial(self) -> bool:
        """Whether some stages were left out by choice."""
        option, stage = self.config.option, any(f"::{SUITE}" in str(word) for word in self.config.args)
        return bool(self.options.qid or option.keyword or getattr(option, "lf", False) or stage)

    def annotations(self) -> Sequence[Annotation]:
        return [Annotation("error", f"transfer of {self.options.shown(self.root)}", self.headline)] if self.red else []

    def step_summary(self, room: int) -> str:
        return within(f"**{escapes.cell(self.headline)}**", room, "All of it is in the log.") if self.headline else ""

    def summary(self, terminal: Any, written: bool) -> None:
        if self.headline:
            terminal.section("fvparity: relation transfer")
            terminal.write_line(escapes.line(self.headline))
            if written:
                terminal.write_line(self.options.from_here(self.path))
