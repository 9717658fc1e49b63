"""The controller's view of a session: what was planned, what came back, and the verdict over all of it.

It exists on the controller only. Verdicts arrive on test reports, so a worker that dies takes none of them along. The
session is red unless every planned stage has a verdict.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fvcore import escapes
from fvcore.formats import write_bytes
from fvcore.gates import UNHARMED, StageResult, Status, first_line, settled
from pytest_fvparity import runners
from pytest_fvparity.options import OPTIONS_KEY
from pytest_fvparity.report.markdown import within
from pytest_fvparity.runners import Annotation
from pytest_fvparity.suite.collector import FAILURES
from pytest_fvparity.suite.declaration import FILES_KEY, Declaration, SuiteFile, SuiteReports
from pytest_fvparity.suite.early_end import Watch
from pytest_fvparity.suite.item import REPORT_ATTRIBUTE, StageItem

MAX_OUTPUT = 4000  # characters of a stage's own output that the log keeps: the last ones


@dataclass
class SuiteRun:
    """One suite of one file: what was planned of it, and the rows that came back, by key."""

    nodeid: str  # of the suite
    keys: tuple[str, ...]
    keep_going: bool = False
    declared: Declaration | None = None
    planned: set[str] = field(default_factory=set)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """As node ids name it."""
        return self.nodeid.partition("::")[0]

    @property
    def name(self) -> str:
        return self.nodeid.rpartition("::")[2]

    def of(self, name: str) -> bool:
        """Whether this is the declared suite of that name."""
        return self.declared is not None and self.declared.name == name

    @property
    def context(self) -> dict[str, Any]:
        return {name: value for row in self.rows.values() for name, value in row["context"].items()}

    def status(self, key: str) -> Status | None:
        """What a stage reported so far."""
        return Status(self.rows[key]["result"]["status"]) if key in self.rows else None

    def results(self) -> dict[str, StageResult]:
        """Of every planned stage, in order."""
        told = {key: StageResult.from_dict(row["result"]) for key, row in self.rows.items()}
        return settled(self.name, [key for key in self.keys if key in self.planned], told, self.keep_going)


class SuiteReporter:
    """Plans, gathers, and has each suite reported by what it declared."""

    def __init__(self, config: pytest.Config, keep_going: bool = False) -> None:
        self.config, self.keep_going = config, keep_going
        self.files: dict[Path, SuiteFile] = config.stash[FILES_KEY]
        self.runs: dict[str, SuiteRun] = {}
        declared = dict.fromkeys(file.declared for file in self.files.values())
        self.reports: list[SuiteReports] = [one.reports(config) for one in declared] + [PlainReports(config)]
        self.unwritten = self.untold = ""
        self.annotations: list[Annotation] = []
        self._begun: set[str] = set()
        self._taken: dict[Path, bytes] = {}
        self.watch = Watch()
        self._deaths: dict[str, pytest.TestReport] = {}

    # ------------------------------------------------------------ plan

    def find(self, nodeid: str) -> tuple[SuiteRun, str] | None:
        """The run and the key of a stage that this process knows: of a declared file, or of a suite that has reported."""
        suite, _, key = nodeid.rpartition("::")
        file, _, name = suite.partition("::")
        if suite not in self.runs and name and self.files:
            known = self.files.get((self.config.rootpath / file).resolve())
            if known is None or known.suite.name != name:
                return None
            keep_going = self.keep_going or known.suite.keep_going
            self.runs[suite] = SuiteRun(suite, known.suite.keys, keep_going, known.declared)
        run = self.runs.get(suite)
        return (run, key) if run and key in run.keys else None

    def _declared(self, path: Path) -> SuiteRun:
        """All stages of a declared file, whichever are selected."""
        root, file = self.config.rootpath, self.files[path]
        nodeid = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        keys = file.suite.keys
        return SuiteRun(f"{nodeid}::{file.suite.name}", keys, declared=file.declared, planned=set(keys))

    def pytest_sessionstart(self) -> None:
        """Before anything is collected."""
        if self.judges:
            self.take_back()
            self._watch_out(bool(self.files))

    @property
    def judges(self) -> bool:
        """Whether tests are run in this session, and not only shown."""
        option = self.config.option
        return not (option.collectonly or option.showfixtures or option.show_fixtures_per_test)

    def _watch_out(self, stages: bool) -> None:
        """Where stages are judged the process must not end itself before the session does."""
        if stages and not self.watch.watching:
            self.watch.begin()
            self.config.add_cleanup(self.watch.end)

    def take_back(self) -> None:
        """Take away what earlier sessions reported of the files of this one: it says something else, or nothing."""
        runs = [self._declared(path) for path in self.files]
        for reports in self.reports if runs else ():
            for path in self._writing(reports.earlier, runs) or ():
                if path.is_file():
                    self._taken[path] = path.read_bytes()
                    path.unlink()

    def _give_back(self) -> None:
        """The session was refused: it could not have judged anything."""
        for path, content in self._taken.items():
            write_bytes(path, content)

    def plan(self, nodeids: Iterable[str]) -> None:
        for run, key in filter(None, map(self.find, nodeids)):
            run.planned.add(key)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """After -k, -m and --lf have had their say, in a run without workers."""
        for item in session.items:
            if isinstance(item, StageItem) and self.find(item.nodeid) is None:
                suite, gate = item.nodeid.rpartition("::")[0], item.collector.gate
                self.runs[suite] = SuiteRun(suite, gate.keys, gate.keep_going)
        self.plan(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """When a worker has collected; all workers collect the same."""
        self.plan(ids)
        self.begin()

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Before the first test, and after goldens were recorded."""
        if self.judges:
            self.begin()

    def begin(self) -> None:
        """A process that is killed from here on leaves reports that say so."""
        self._watch_out(bool(self.runs))
        fresh = [self.runs[name] for name in sorted(self.runs.keys() - self._begun)]
        self._begun |= self.runs.keys()
        for reports in self.reports if fresh else ():
            self._writing(reports.begin, fresh)

    def _writing(self, write: Callable[[Any], Any], what: Any) -> Any:
        """What `write` returns; None where it failed."""
        try:
            return write(what)
        except Exception as error:  # whatever it is: a verdict must not end in a traceback of its report
            self.unwritten = f"reports NOT WRITTEN: {type(error).__name__}: {error}; see --fv-report-dir"

    # ------------------------------------------------------------ gather

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """For every report, also those that come from workers."""
        if text := getattr(report, REPORT_ATTRIBUTE, None):
            row = json.loads(text)
            self._learn(report.nodeid.rpartition("::")[0], row.pop("suite"))
            self._judge(report, row)
        if report.when == "teardown":
            self._keep(report.nodeid)  # not before: a process that dies while it is cleaned up leaves no verdict of it

    def _learn(self, suite: str, said: Mapping[str, Any]) -> None:
        """A suite in a test module, on a worker, is known by what its first report says of it."""
        if suite not in self.runs:
            run = SuiteRun(suite, tuple(said["keys"]), said["keep_going"], planned=set(said["planned"]))
            self.runs[suite] = run
            for key in run.planned:
                if death := self._deaths.get(f"{suite}::{key}"):
                    self._died(run, key, death)

    def _judge(self, report: pytest.TestReport, row: dict[str, Any]) -> None:
        if (found := self.find(report.nodeid)) is None:
            return
        run, key = found
        # A stage that is run again, by a plugin for flaky tests, stays what it was when it failed.
        if run.status(key) in {None, Status.PASS}:
            run.rows[key] = row | {"stdout": report.capstdout[-MAX_OUTPUT:], "stderr": report.capstderr[-MAX_OUTPUT:]}

    def _keep(self, nodeid: str) -> None:
        if (found := self.find(nodeid)) and found[1] in found[0].planned:
            for reports in self.reports:
                self._writing(reports.keep, found[0])

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """When a worker died in a test: a stage crashed, even if it had passed and died while it was cleaned up."""
        self._deaths[crashitem] = report
        if found := self.find(crashitem):
            self._died(*found, report)

    def _died(self, run: SuiteRun, key: str, report: pytest.TestReport) -> None:
        result = StageResult(run.name, key, Status.CRASHED, message=str(report.longrepr))
        self._judge(report, {"context": {}, "result": result.to_dict()})
        self._keep(f"{run.nodeid}::{key}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Before a worker starts: one that replaces another is told what failed, for the dead remember nothing."""
        told = {f"{run.nodeid}::{key}": run.status(key) for run in self.runs.values() for key in run.rows}
        failed = {nodeid: str(status) for nodeid, status in told.items() if status not in UNHARMED}
        node.workerinput[FAILURES] = dict.fromkeys(self._deaths, str(Status.CRASHED)) | failed

    # ------------------------------------------------------------ report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """At the end, also after Ctrl-C: the reports are written, and what is missing turns the session red."""
        refused = exitstatus == pytest.ExitCode.USAGE_ERROR
        if refused:
            self._give_back()
        if refused or not self.runs or not self.judges:
            return
        runs = [self.runs[name] for name in sorted(self.runs)]
        green = [self._writing(reports.finish, runs) for reports in self.reports]
        self._say_once()
        if not (all(green) and not self.unwritten) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        red_first = sorted(zip(self.reports, green, strict=True), key=lambda pair: bool(pair[1]))
        self._tell_runner([reports for reports, _ in red_first])

    def _tell_runner(self, reports: Sequence[SuiteReports]) -> None:
        """Where no runner listens, nothing. What goes wrong there changes no verdict."""
        try:
            for one in reports:
                runners.summarise(one.step_summary)
            self.annotations = [found for one in reports for found in one.annotations()]
            runners.write_code_quality(self.annotations, self.config.stash[OPTIONS_KEY].report_dir)
        except Exception as error:
            self.untold = f"the CI runner was not told: {type(error).__name__}: {error}"

    def _say_once(self) -> None:
        """A failure that the end of the terminal output tells whole is named where pytest shows failures, and no more.

        Not before: what else reads a test report, JUnit files among it, has it whole.
        """
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or self.config.option.no_summary or self.unwritten:
            return
        for report in terminal.stats.get("failed", []):
            run, key = self.find(report.nodeid) or (None, "")
            if run is None or key not in run.rows or not isinstance(report.longrepr, str):
                continue
            result = StageResult.from_dict(run.rows[key]["result"])
            if any(reports.tells(run, result) for reports in self.reports):
                report.longrepr = f"{key}: {result.status}, told at the end"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """At the end of the terminal output: one screen."""
        for reports in self.reports:
            reports.summary(terminalreporter, not self.unwritten)
        for line in filter(None, (self.unwritten, self.untold)):
            terminalreporter.write_line(escapes.line(line), yellow=True, bold=True)

    def pytest_unconfigure(self) -> None:
        """At the very end, behind what the terminal says: a line for each annotation, which a runner reads there."""
        for command in runners.told(self.annotations) if runners.on_github() else ():
            print(command, flush=True)


class PlainReports(SuiteReports):
    """Suites in test modules: a table of each at the end of the terminal output, and no file."""

    def __init__(self, config: pytest.Config) -> None:
        self.root = config.rootpath
        self.results: dict[str, dict[str, StageResult]] = {}

    def finish(self, runs: Iterable[SuiteRun]) -> bool:
        self.results = {run.nodeid: run.results() for run in runs if run.declared is None and run.planned}
        harmless = {Status.PASS, Status.NOT_HELD, Status.NOT_RUN}
        every = [result for results in self.results.values() for result in results.values()]
        return all(r.status in harmless or (r.status is Status.NOT_PROVIDED and r.verdict.compared) for r in every)

    def annotations(self) -> list[Annotation]:
        every = [(nodeid, one) for nodeid, results in self.results.items() for one in results.values()]
        return [self._annotation(nodeid, one) for nodeid, one in every if one.status not in UNHARMED]

    def _annotation(self, nodeid: str, result: StageResult) -> Annotation:
        file, title = self.root / nodeid.partition("::")[0], f"{nodeid}: {result.status} at {result.key}"
        return Annotation("error", title, _said(result), file)

    def step_summary(self, room: int) -> str:
        rows = [
            f"| {escapes.cell(nodeid)} | {escapes.cell(one.key)} | {one.status} | {escapes.cell(_said(one))} |"
            for nodeid, results in self.results.items()
            for one in sorted(results.values(), key=lambda one: one.status in UNHARMED)
        ]
        head = ["| suite | stage | status | |", "|---|---|---|---|"]
        return within("\n".join([*head, *rows]), room, "All of it is in the log.") if rows else ""

    def summary(self, terminal: Any, written: bool) -> None:
        for nodeid, results in self.results.items():
            terminal.write_sep("=", f"suite {nodeid}", bold=True)
            width = max(map(len, results))
            for key, result in results.items():
                good = result.status is Status.PASS
                line = f"  {key:<{width}}  {result.status:<13}{_said(result)}".rstrip()
                terminal.write_line(escapes.line(line), green=good, red=not good)


def _said(result: StageResult) -> str:
    """Of a stage in a few words, what is wrong with it."""
    if result.blocked_by:
        return f"blocked by {result.blocked_by}"
    first = result.verdict.first_mismatch
    return f"{first.where}: {first.message}" if first else first_line(result.message)
