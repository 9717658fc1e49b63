"""The pytest hooks, and nothing else. Imports neither torch nor anything heavy: every pytest run loads this file."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.formats import FormatError
from fvcore.gates import Status
from pytest_fvparity import fixtures, hookspecs, options, shipped
from pytest_fvparity.fixtures import (
    fv_candidate,
    fv_check_key,
    fv_golden,
    fv_model,
    fv_parity_run,
    fv_profile,
    fv_trials,
)
from pytest_fvparity.options import OPTIONS_KEY, ParityOptions
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report import junit
from pytest_fvparity.suite.items import (
    REPORT_ATTRIBUTE,
    ROOT_KEY,
    TRANSFER_KEY,
    DataFile,
    StageFailed,
    StageItem,
    SuiteCollector,
    TrialsFile,
    Unjudged,
    status_of,
)
from pytest_fvparity.suite.place import place_of, title_of
from pytest_fvparity.suite.scheduler import Workers, chosen_dist
from pytest_fvparity.suite.session import ParityReporter, known_failures
from pytest_fvparity.transfer.runs import QId, q_ids_of

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings
    from fvcore.trials import FixedTrials
    from pytest_fvparity.parity.implementation import Implementation

__all__ = ["fv_candidate", "fv_check_key", "fv_golden", "fv_model", "fv_parity_run", "fv_profile", "fv_trials"]

_TRIALS_KEY = pytest.StashKey[tuple[Path, ...]]()
_Q_IDS_KEY = pytest.StashKey[dict[Path, QId]]()
_DIST_KEY = pytest.StashKey[str | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """When pytest starts, before the command line is read."""
    options.register(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """When plugins are loaded: our own hooks become known."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Around the whole run, before xdist makes `--dist load` of a bare `-n`: what the user chose is remembered."""
    config.stash[_DIST_KEY] = chosen_dist(config)
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Once the command line is read, on the controller and on every worker."""
    config.addinivalue_line("markers", "parity: a stage of the parity suite, or a test that belongs to it")
    config.addinivalue_line("markers", "transfer: a stage that holds a relation run against stations and reference")
    parsed = ParityOptions.from_config(config)
    config.stash[OPTIONS_KEY] = parsed
    on_controller = not hasattr(config, "workerinput")
    if parsed.regen_golden or parsed.golden_diff:
        _require_regen_allowed(config, parsed)
    q_ids = _transfer_q_ids(config, parsed)
    config.stash[_Q_IDS_KEY] = {q_id.status_file: q_id for q_id in q_ids}
    frozen = _compared_with_reference(q_ids, parsed)
    config.stash[TRANSFER_KEY] = frozenset(frozen)
    files = (*_trials_files(config, parsed, with_default=not q_ids), *frozen)
    config.stash[_TRIALS_KEY] = files
    config.args += [
        str(path)
        for q_id in q_ids
        for path in (q_id.trials_file, q_id.status_file)
        if path in {*frozen, q_id.status_file}
    ]
    if on_controller and not parsed.golden_diff:  # a dry run judges nothing, and reports of earlier runs stay
        config.pluginmanager.register(ParityReporter(config, files), "fvparity-reporter")
        suites = bool(files or q_ids)
        config.pluginmanager.register(Workers(config.stash[_DIST_KEY], suites), "fvparity-workers")
        if q_ids:
            from pytest_fvparity.transfer.session import TransferReporter

            config.pluginmanager.register(TransferReporter(config, q_ids), "fvparity-transfer")


def _require_regen_allowed(config: pytest.Config, parsed: ParityOptions) -> None:
    if (
        getattr(config.option, "numprocesses", None)
        or getattr(config.option, "tx", None)
        or hasattr(config, "workerinput")
    ):
        flag = "--fv-golden-diff records" if parsed.golden_diff else "--fv-regen-golden writes"
        raise pytest.UsageError(f"{flag} goldens and cannot run on several workers: leave out -n")
    if parsed.golden_diff:
        return
    if os.environ.get("CI", "").lower() not in {"", "0", "false"} and not parsed.regen_allow_ci:
        raise pytest.UsageError(
            "--fv-regen-golden is refused in CI, where nobody reads what changes; --fv-regen-allow-ci"
        )


def _wants_parity(config: pytest.Config) -> bool:
    """Whether this run is about parity: trials are given, a golden is recorded, or `-m` picks `parity` by name.

    Trials in the ini file only say which: a plain `pytest` there must not load a model.
    """
    given = [config.getoption(name) for name in ("fv_trials", "fv_regen_golden", "fv_golden_diff")]
    return any(given) or _marks(config, "parity") or bool(_json_arguments(config))


def _marks(config: pytest.Config, mark: str) -> bool:
    """`-m` selects an item that bears the mark, and none that bears nothing: `not slow` is no wish for parity."""
    expression = config.getoption("markexpr", "")
    if not expression:
        return False
    from _pytest.mark.expression import Expression  # pytest offers no public way to evaluate -m

    try:
        compiled = Expression.compile(expression)
    except SyntaxError:
        return False  # pytest itself will say what is wrong with it

    def named(name: str, /, **_: object) -> bool:
        return name == mark

    def unmarked(name: str, /, **_: object) -> bool:
        return False

    return compiled.evaluate(named) and not compiled.evaluate(unmarked)


def _json_arguments(config: pytest.Config) -> list[Path]:
    """Trials files among the arguments: node ids of stages, or JSON files in a run with `-m parity`."""
    base, found = config.invocation_params.dir, []
    for argument in config.args:
        name, _, rest = str(argument).partition("::")
        if name.endswith(".json") and (rest.startswith("parity") or _marks(config, "parity")):
            found.append((base / name).resolve())
    return found


def _trials_files(config: pytest.Config, parsed: ParityOptions, with_default: bool) -> list[Path]:
    """The trials files of this run. Those the arguments do not name yet are added to them."""
    named = _json_arguments(config)
    wanted = list(parsed.trials) if config.getoption("fv_trials") else []
    if not named and not wanted and with_default and _wants_parity(config):
        wanted = list(parsed.trials) or [parsed.default_trials()]
    config.args += [str(path) for path in wanted if str(path) not in config.args]
    files = list(dict.fromkeys([*named, *wanted]))
    for path in files:
        same = [other for other in files if other.stem == path.stem and other != path]
        if others := [str(other) for other in same if place_of(other) == place_of(path)]:
            raise pytest.UsageError(
                f"two trials files of one name, whose goldens and reports would be mixed up: {path}, {others[0]}; "
                "run them one at a time, or rename one"
            )
    return files


def _transfer_q_ids(config: pytest.Config, parsed: ParityOptions) -> list[QId]:
    """The q_ids of this run, if `-m` picks `transfer` by name: a relation root in the ini file only says which."""
    if not _marks(config, "transfer"):
        return []
    if parsed.relation_root is None:
        raise pytest.UsageError(
            "-m transfer needs --fv-relation-root, the folder of a finished relation run; `fvcore relation run` makes one"
        )
    try:
        return q_ids_of(parsed.relation_root, parsed.qid)
    except FormatError as error:
        raise pytest.UsageError(f"--fv-relation-root: {error}") from None


def _compared_with_reference(q_ids: Sequence[QId], parsed: ParityOptions) -> list[Path]:
    """Frozen trials of which there is a golden, or of which one is recorded in this run."""
    if not q_ids:
        return []
    from pytest_fvparity.golden.golden import NoGolden, locate, relative_path, search_roots

    roots = search_roots(parsed.golden, parsed.rootdir, shipped.root())

    def has_golden(file: Path) -> bool:
        dataset, id = place_of(file)
        try:
            locate(roots, relative_path(dataset or "", id, parsed.reference_profile))
        except NoGolden:
            return False
        return True

    recorded_now = parsed.live or parsed.regen_golden or parsed.golden_diff
    files = [q_id.trials_file for q_id in q_ids if q_id.state == "completed" and q_id.trials_file.is_file()]
    return [file for file in files if recorded_now or has_golden(file)]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """At the top of the terminal output."""
    if not config.stash[_TRIALS_KEY]:
        return []
    parsed = config.stash[OPTIONS_KEY]
    return [
        f"fvparity: model {parsed.model}, {parsed.dtype} on {parsed.device_map or parsed.device}, "
        f"reference profile {parsed.reference_profile}"
    ]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> DataFile | None:
    """For every file pytest comes by: a trials file of this run is a test file, and so is a q_id's status."""
    files, q_ids = parent.config.stash[_TRIALS_KEY], parent.config.stash[_Q_IDS_KEY]
    if q_ids and (q_id := q_ids.get(file_path.resolve())):
        from pytest_fvparity.transfer.items import SkippedFile, StatusFile

        return (SkippedFile if q_id.state == "skipped" else StatusFile).at(parent, file_path)
    if file_path.suffix == ".json" and file_path.resolve() in files:
        return TrialsFile.at(parent, file_path)
    return None


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a collector collects: the root folder's node is remembered for stages whose trials lie outside it."""
    if isinstance(collector, pytest.Directory) and collector.path == collector.config.rootpath:
        collector.config.stash[ROOT_KEY] = collector


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """For every collected test function: one run per trials file, and one per check key where asked for."""
    if "fv_trials" in metafunc.fixturenames:
        parsed = metafunc.config.stash[OPTIONS_KEY]
        files = metafunc.config.stash[_TRIALS_KEY] or parsed.trials
        paths = sorted(files) or [parsed.default_trials()]
        metafunc.parametrize("fv_trials", paths, indirect=True, ids=[title_of(path) for path in paths])
    if "fv_check_key" in metafunc.fixturenames:
        metafunc.parametrize("fv_check_key", CHECK_KEYS, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """When the order of all tests is settled: the stages of a suite take their places in the pipeline's order.

    --ff and plugins that shuffle would run a later key first. A worker that replaces another one learns here what is
    known already.
    """
    failed = known_failures(session.config)
    places: dict[SuiteCollector, list[int]] = {}
    for place, item in enumerate(session.items):
        if isinstance(item, StageItem):
            places.setdefault(item.suite, []).append(place)
    for suite, taken in places.items():
        suite.earliest_failed = failed.get(session.items[taken[0]].nodeid.partition("::")[0])
        stages = sorted((session.items[place] for place in taken), key=lambda item: CHECK_KEYS.index(item.name))
        for place, item in zip(taken, stages, strict=True):
            session.items[place] = item


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """After collection, before the first test: goldens are recorded if that was asked for; a dry run ends here."""
    parsed = session.config.stash[OPTIONS_KEY]
    if not (parsed.regen_golden or parsed.golden_diff) or session.config.option.collectonly:
        return None
    from pytest_fvparity.golden.recording import diff_goldens, record_goldens

    stages = {item.trials_path: item for item in session.items if isinstance(item, StageItem)}
    for stage in stages.values():
        _require_own_model(session, stage)
    if parsed.regen_golden:
        record_goldens(session.config, parsed, list(stages))
        return None
    if n_changed := diff_goldens(session.config, parsed, list(stages)):
        raise session.Failed(f"--fv-golden-diff: {n_changed} golden(s) would change")
    return True


def _require_own_model(session: pytest.Session, stage: StageItem) -> None:
    """The reference loads --fv-model by itself: what a fixture put in its place would not be recorded."""
    definitions = session._fixturemanager.getfixturedefs("fv_model", stage) or ()
    if definitions and definitions[-1].func.__module__ != fixtures.__name__:
        raise pytest.UsageError(
            f"--fv-regen-golden records --fv-model, and fixture fv_model is overridden in {definitions[-1].baseid or '.'}"
            ": record without that override, with its model's directory as --fv-model"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before an item's fixtures are set up: a stage behind a failed one is blocked."""
    if isinstance(item, StageItem):
        item.block()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """After setup, call and teardown of an item: the stage's result travels on the report that decides it."""
    report = yield
    if not isinstance(item, StageItem):
        return report
    error = call.excinfo.value if call.excinfo else None
    blocked = item.result is not None and item.result.status is Status.BLOCKED
    if error is not None and not blocked and not isinstance(error, StageFailed):
        item.record_error(error)
        if report.skipped and not isinstance(error, Unjudged):
            # A stage that is skipped is a stage nobody judged: that is no reason for green.
            report.outcome, report.longrepr = "failed", f"{item.name}: ERROR: skipped: {error}"
    decided = report.when == "call" or not report.passed
    if decided and (text := item.to_json()):
        setattr(report, REPORT_ATTRIBUTE, text)
        if item.result is not None and report.when != "teardown":
            command = options.reproduce(item.config, item.nodeid.partition("::")[0], item.name)
            item.user_properties += junit.properties(item.result, command)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """For every report, to count and colour it: blocked is a count of its own."""
    if report.skipped and status_of(report) is Status.BLOCKED:
        return "blocked", "B", ("BLOCKED", {"yellow": True})
    return None


@pytest.hookimpl(trylast=True)
def pytest_fvparity_candidate(lm: LanguageModel, trials: FixedTrials, settings: Settings) -> Implementation:
    """When a candidate is needed and nobody else gave one: fvcore's own pipeline."""
    from fvcore.pipeline import Pipeline

    return Pipeline(lm, trials, settings)
