"""Which files of data are test files in this run: trials for parity, the q_ids of a relation run for transfer, a config or
a run for selectkv, a config for audit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fvcore import escapes, shipped
from fvcore.formats import FormatError
from pytest_fvparity.audit.suite import AUDIT, audit_suite, config_file
from pytest_fvparity.options import ParityOptions
from pytest_fvparity.parity.place import place_of
from pytest_fvparity.parity.suite import PARITY, parity_suite
from pytest_fvparity.selectkv.runs import subject_file
from pytest_fvparity.selectkv.suite import SELECTKV, select_kv_suite
from pytest_fvparity.suite.declaration import SuiteFile
from pytest_fvparity.transfer.runs import Q_IDS_KEY, QId, q_ids_of
from pytest_fvparity.transfer.suite import TRANSFER, transfer_suite

DECLARED = (PARITY, TRANSFER, SELECTKV, AUDIT)


def select(config: pytest.Config, options: ParityOptions) -> dict[Path, SuiteFile]:
    """The files by their paths, in order. Those that the arguments do not name yet are added to them."""
    stages = _named(config, TRANSFER.name)
    q_ids = _q_ids(config, options, stages)
    config.stash[Q_IDS_KEY] = q_ids
    recorded_now = options.live or options.regen_golden or options.golden_diff
    trials = _trials_files(config, options, with_default=not q_ids)
    parity, transfer = parity_suite(), transfer_suite()
    found = {path: SuiteFile(parity, PARITY) for path in trials}
    for q_id in q_ids:
        # Its frozen trials, of which there is a golden, or of which one is recorded in this run.
        frozen = not stages and q_id.state == "completed" and q_id.trials_file.is_file()
        if frozen and (recorded_now or q_id.has_golden(options.golden_roots, options.reference_profile)):
            found[q_id.trials_file] = SuiteFile(parity, PARITY, markers=(TRANSFER.name,))
        found[q_id.status_file] = SuiteFile(transfer_suite(1) if q_id.state == "skipped" else transfer, TRANSFER)
    if states := _subjects(
        config, SELECTKV.name, "--fv-select-kv", lambda: subject_file(options.select_kv, options.rootdir)
    ):
        found |= dict.fromkeys(states, SuiteFile(select_kv_suite(), SELECTKV))
    if data := _subjects(config, AUDIT.name, "--fv-audit", lambda: config_file(options.audit)):
        found |= dict.fromkeys(data, SuiteFile(audit_suite(), AUDIT))
    given = [(config.invocation_params.dir / str(argument).partition("::")[0]).resolve() for argument in config.args]
    config.args += [str(path) for path in found if path not in given]
    return found


def marked(config: pytest.Config, marker: str) -> bool:
    """`-m` selects an item that bears the marker, and none that bears nothing: `not slow` is no wish for parity."""
    expression = config.getoption("markexpr", "")
    if not expression:
        return False
    from _pytest.mark.expression import Expression  # pytest offers no public way to evaluate -m

    try:
        compiled = Expression.compile(expression)
    except SyntaxError:
        return False  # pytest itself will say what is wrong with it

    return compiled.evaluate(lambda name, /, **_: name == marker) and not compiled.evaluate(lambda *_, **__: False)


def _named(config: pytest.Config, suite: str, alone: bool = False) -> list[Path]:
    """Files of data among the arguments: node ids of a suite's stages, and JSON files without one if `alone`."""
    parted = [str(argument).partition("::") for argument in config.args]
    data = [(name, rest) for name, _, rest in parted if name.endswith((".json", ".yaml"))]
    named = [name for name, rest in data if rest.startswith(suite) or (alone and name.endswith(".json"))]
    return list(dict.fromkeys((config.invocation_params.dir / name).resolve() for name in named))


def _trials_files(config: pytest.Config, options: ParityOptions, with_default: bool) -> list[Path]:
    """The trials files of this run. Trials in the ini file only say which: a plain `pytest` there must not load a model."""
    by_marker = marked(config, PARITY.name)
    named = _named(config, PARITY.name, alone=by_marker)
    wanted = list(options.trials) if config.getoption("fv_trials") else []
    if not named and not wanted and with_default and (by_marker or options.regen_golden or options.golden_diff):
        wanted = list(options.trials) or [options.default_trials(config)]
    files = list(dict.fromkeys([*named, *wanted]))
    for path in files:
        _require_reachable(config, path)
        same = [other for other in files if other.stem == path.stem and other != path]
        if others := [str(other) for other in same if place_of(other) == place_of(path)]:
            raise pytest.UsageError(
                f"two trials files of one name, whose goldens and reports would be mixed up: {path}, {others[0]}; "
                "run them one at a time, or rename one"
            )
    return files


def _require_reachable(config: pytest.Config, path: Path) -> None:
    """Of a file elsewhere pytest reads every conftest.py on the way, and refuses one with `pytest_plugins` then."""
    root, here = config.rootpath, config.invocation_params.dir
    for folder in () if path.is_relative_to(root) else path.parents:
        conftest = folder / "conftest.py"
        if root.is_relative_to(folder) or config.pluginmanager.has_plugin(str(conftest)) or not conftest.is_file():
            continue
        if "pytest_plugins" in conftest.read_text(errors="replace"):
            words = [str(word) for word in config.invocation_params.args]
            copied = [_of_copy(word, path, here) for word in words]
            copied += [] if copied != words else [f"--fv-trials={path.name}"]
            command = f"{escapes.shell(['cp', str(path), '.'])} && {escapes.shell(['pytest', *copied])}"
            raise pytest.UsageError(
                f"{path} lies below {conftest}, which names pytest_plugins, and that pytest takes at the top of a run alone. "
                f"Take a copy of the trials; their golden is found by their name: {command}"
            )


def _of_copy(word: str, path: Path, here: Path) -> str:
    """A word of the command line, for a copy of a file in the folder at hand."""
    flag, is_said, value = word.partition("=") if word.startswith("-") else ("", "", word)
    file = shipped.file(value) if flag == "--fv-trials" else Path(value)
    return f"{flag}{is_said}{path.name}" if value and (here / file).resolve() == path else word


def _q_ids(config: pytest.Config, options: ParityOptions, stages: Sequence[Path]) -> list[QId]:
    """The q_ids of this run, if `-m` picks `transfer` by name or an argument is one of its stages: a relation root in the
    ini file only says which."""
    if not stages and not marked(config, TRANSFER.name):
        return []
    root = options.relation_root or (stages[0].parents[2] if stages else None)
    if root is None:
        raise pytest.UsageError(
            "-m transfer needs --fv-relation-root, the folder of a finished relation run; `fvcore relation run` makes one"
        )
    try:
        return q_ids_of(root, options.qid or [path.parents[1].name for path in stages])
    except FormatError as error:
        raise pytest.UsageError(f"--fv-relation-root: {error}") from None


def _subjects(config: pytest.Config, suite: str, flag: str, chosen: Callable[[], Path]) -> list[Path]:
    """What a suite judges, if `-m` picks it by name or an argument is one of its stages."""
    stages = _named(config, suite)
    if stages or not marked(config, suite):
        return stages
    try:
        return [chosen().resolve()]
    except FormatError as error:
        raise pytest.UsageError(f"{flag}: {error}") from None
