"""The pytest hooks, and nothing else. Imports neither torch nor anything heavy: every pytest run loads this file."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from typing import Any

import pytest

from fvcore.gates import Status, Suite
from pytest_fvparity import beforehand, early, fixtures, hookspecs, options
from pytest_fvparity.audit import suite as audit
from pytest_fvparity.options import OPTIONS_KEY, ParityOptions
from pytest_fvparity.parity import suite as parity
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.parity.place import title_of
from pytest_fvparity.selection import DECLARED, select
from pytest_fvparity.selectkv import suite as selectkv
from pytest_fvparity.suite.collector import DataFile, in_module, in_order
from pytest_fvparity.suite.declaration import FILES_KEY
from pytest_fvparity.suite.item import ROOT_KEY, StageItem, status_of
from pytest_fvparity.suite.reporter import SuiteReporter
from pytest_fvparity.suite.scheduler import SuiteWorkers, chosen_dist
from pytest_fvparity.transfer import suite as transfer

_DIST_KEY = pytest.StashKey[str | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """When pytest starts, before the command line is read."""
    options.register(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """When this plugin is loaded: its own hooks become known, and the fixtures, before those of whoever overrides them."""
    pluginmanager.add_hookspecs(hookspecs)
    for module in (fixtures, parity, transfer, selectkv, audit):
        pluginmanager.register(module)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """When the conftest.py files beside the arguments are read: where one fails there is no session, and no old report."""
    try:
        return (yield)
    except BaseException as error:
        judged = False
        with suppress(Exception):
            judged = early.take_back(early_config)
        if judged and isinstance(error, SystemExit):
            raise pytest.UsageError(f"a conftest.py ended the process, with status {error.code}") from error
        raise


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Around the whole run, before xdist makes `--dist load` of a bare `-n`: what the user chose is remembered."""
    config.stash[_DIST_KEY] = chosen_dist(config)
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Once the command line is read, on the controller and on every worker."""
    for suite in DECLARED:
        config.addinivalue_line("markers", f"{suite.name}: {suite.about}")
    beforehand.require_own_root(config)
    parsed = config.stash[OPTIONS_KEY] = ParityOptions.from_config(config)
    if parsed.regen_golden or parsed.golden_diff:
        from pytest_fvparity.golden.recording import require_allowed

        require_allowed(config, parsed)
    files = config.stash[FILES_KEY] = select(config, parsed)
    on_controller = not hasattr(config, "workerinput")
    if on_controller and (trials := [path for path, file in files.items() if file.declared is parity.PARITY]):
        beforehand.require_possible(config, parsed, trials)
    if on_controller and not parsed.golden_diff:  # a dry run judges nothing, and reports of earlier runs stay
        config.pluginmanager.register(SuiteReporter(config, parsed.keep_going), "fvparity-reporter")
        config.pluginmanager.register(SuiteWorkers(config.stash[_DIST_KEY], bool(files)), "fvparity-workers")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """At the top of the terminal output."""
    if all(file.declared is not parity.PARITY for file in config.stash[FILES_KEY].values()):
        return []
    parsed = config.stash[OPTIONS_KEY]
    return [
        f"fvparity: model {parsed.model}, {parsed.dtype} on {parsed.device_map or parsed.device}, "
        f"reference profile {parsed.reference_profile}"
    ]


def pytest_collect_file(file_path: Any, parent: pytest.Collector) -> DataFile | None:
    """For every file pytest comes by: one that a suite of this run judges is a test file."""
    files = parent.config.stash[FILES_KEY]
    return DataFile.at(parent, file_path) if files and file_path.resolve() in files else None


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> Any:
    """For every name in a test module or class: a suite is collected."""
    return in_module(collector, name, obj) if isinstance(obj, Suite) else None


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a collector collects: the root folder's node is remembered for stages whose data lie outside it."""
    if isinstance(collector, pytest.Directory) and collector.path == collector.config.rootpath:
        collector.config.stash[ROOT_KEY] = collector


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """For every collected test function: one run per trials file, and one per check key where asked for."""
    if "fv_trials" in metafunc.fixturenames:
        paths = fixtures.trials_files(metafunc.config)
        metafunc.parametrize("fv_trials", paths, indirect=True, ids=[title_of(path) for path in paths])
    if "fv_check_key" in metafunc.fixturenames:
        metafunc.parametrize("fv_check_key", CHECK_KEYS, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """When the order of all tests is settled: the stages of each suite take their places in its order."""
    in_order(session)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """After collection, before the first test: goldens are recorded if that was asked for; a dry run ends here."""
    parsed = session.config.stash[OPTIONS_KEY]
    if not (parsed.regen_golden or parsed.golden_diff) or session.config.option.collectonly:
        return None
    from pytest_fvparity.golden.recording import before_tests

    return before_tests(session, parsed)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before an item's fixtures are set up: a stage behind a failed one is blocked."""
    if isinstance(item, StageItem):
        item.block()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """When an item's fixtures are torn down: a suite whose last stage this was lets go what it held."""
    if isinstance(item, StageItem):
        item.collector.ended(item.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """After setup, call and teardown of an item: the stage's result travels on the report that decides it."""
    report = yield
    if isinstance(item, StageItem):
        item.reported(report, call.excinfo.value if call.excinfo else None)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """For every report, to count and colour it: blocked is a count of its own."""
    if report.skipped and status_of(report) is Status.BLOCKED:
        return "blocked", "B", ("BLOCKED", {"yellow": True})
    return None
