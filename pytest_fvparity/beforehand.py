"""What can be told before anything is collected: that paths are there, and that options fit the model's config.json.

All of it is read off files in well under a second, and no library of models is imported. What a user's conftest.py puts
in the place of a fixture is not judged here.
"""

import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from fvcore import escapes
from pytest_fvparity import fixtures
from pytest_fvparity.options import ParityOptions, require_model

FOLDERS = ("golden", "candidate_dir", "src")
PYTHONS = ("src_python", "candidate_python")


def require_possible(config: pytest.Config, options: ParityOptions, trials: Sequence[Path]) -> None:
    """Raise pytest.UsageError for the first thing that cannot be, with the command that helps."""
    for problem in _problems(config, options, trials):
        raise pytest.UsageError(problem)


def _problems(config: pytest.Config, options: ParityOptions, trials: Sequence[Path]) -> Iterator[str]:
    yield from _paths(options)
    if options.live or options.regen_golden or options.golden_diff:
        yield from _reference(config, options)
    if not _overridden(config, "fv_model"):
        yield from _model(config, options, trials)
    if options.max_trials is not None and not _overridden(config, "fv_trials"):
        yield from _max_trials(config, options.max_trials, trials)


def require_own_root(config: pytest.Config) -> None:
    """Raise pytest.UsageError where a path that stands alone behind its option moved pytest's root folder away from here."""
    words, here = [str(word) for word in config.invocation_params.args], config.invocation_params.dir
    if config.inipath is not None and here.is_relative_to(config.inipath.parent):
        return
    for flag, value in pairwise(words):
        path = (here / value).resolve()
        if flag.startswith("--fv-") and "=" not in flag and path.exists() and not path.is_relative_to(here):
            whole = escapes.shell(["pytest", *_with(words, flag, value)])
            raise pytest.UsageError(
                f"{flag} {value}: pytest takes a path that stands alone for a test path. Write it with `=`: `{whole}`"
            )


def _with(words: Sequence[str], flag: str, value: object) -> list[str]:
    """A command line with another value of an option, in place of the one that it has."""
    kept = list(words)
    for at in [at for at, word in enumerate(kept) if word == flag or word.startswith(f"{flag}=")][::-1]:
        del kept[at : at + (2 if kept[at] == flag else 1)]
    return [*kept, f"{flag}={value}"]


def _again(config: pytest.Config, flag: str, value: object) -> str:
    words = [str(word) for word in config.invocation_params.args]
    return f"`{escapes.shell(['pytest', *_with(words, flag, value)])}`"


def _paths(options: ParityOptions) -> Iterator[str]:
    for name in FOLDERS:
        path: Path | None = getattr(options, name)
        made = name == "golden" and options.regen_golden
        if path is not None and not path.is_dir() and not made:
            yield f"{_flag(name)}: no such folder: {path}"
    if options.tolerances is not None and not options.tolerances.is_file():
        yield f"--fv-tolerances: no such file: {options.tolerances}"
    if options.report_dir.exists() and not options.report_dir.is_dir():
        yield f"--fv-report-dir: {options.report_dir} is a file; name a folder"
    for name in PYTHONS:
        python: str | None = getattr(options, name)
        if python is not None and shutil.which(python) is None:
            yield f"{_flag(name)}: no interpreter {python}"
    if options.candidate is not None and not all(options.candidate.partition(":")):
        yield f"--fv-candidate: expected package.module:factory, found {options.candidate!r}"


def _flag(name: str) -> str:
    return f"--fv-{name.replace('_', '-')}"


def _reference(config: pytest.Config, options: ParityOptions) -> Iterator[str]:
    from pytest_fvparity.reference import checkout

    try:
        checkout.require_checkout(options.src)
    except checkout.RecordingError as error:
        yield f"{error}; then {_again(config, '--fv-src', checkout.REPOSITORY.rpartition('/')[2])}"
    if options.src_python is None and (missing := checkout.lacking()):
        yield (
            f"the reference needs {', '.join(missing)}, which this interpreter has not: `pip install "
            "'pytest-fvparity[reference]'`, or name another interpreter with --fv-src-python"
        )


def _model(config: pytest.Config, options: ParityOptions, trials: Sequence[Path]) -> Iterator[str]:
    from fvcore.model import on_disk

    require_model(config, options.model)
    if on_disk.lacks_weights(options.model):
        small, named = f"{Path(options.model).name}-small", options.model_words[0]
        words = ["fvcore", "spec", "shrink", named, "--out", small, "--trials", *map(options.shown, trials[:1])]
        yield (
            f"--fv-model: {named} has a config.json and no weights. Bring them there, or make a small model of its "
            f"architecture with weights by a seed: `{escapes.shell(words)}`; then {_again(config, '--fv-model', small)}"
        )
    n_layers, n_heads = on_disk.sizes(options.model)
    layer, top, named = options.edit_layer, options.top_heads, options.model_words[0]
    if layer is not None and n_layers is not None and not 0 <= layer < n_layers:
        better = _again(config, "--fv-edit-layer", n_layers // 3)
        yield f"--fv-edit-layer: {on_disk.out_of_range(named, layer, n_layers)}: {better}"
    most = None if n_layers is None or n_heads is None else n_layers * n_heads
    if top is not None and (top < 1 or (most is not None and top > most)):
        better = _again(config, "--fv-top-heads", min(10, most or 10))
        yield f"--fv-top-heads: {top} top heads asked for, {named} has {most}; ask for 1 to {most}: {better}"
    if options.token_class is not None:
        yield from _token_class(config, options.token_class)


def _token_class(config: pytest.Config, asked: int) -> Iterator[str]:
    from fvcore.slots import TOKEN_CLASSES

    if not -1 <= asked < len(TOKEN_CLASSES):
        better = _again(config, "--fv-token-class", -1)
        yield f"--fv-token-class: {asked} is not in [-1, {len(TOKEN_CLASSES) - 1}]: {better}"


def _max_trials(config: pytest.Config, asked: int, trials: Sequence[Path]) -> Iterator[str]:
    from fvcore.formats import FormatError
    from fvcore.trials.sampled import read_trials

    for path in trials:
        try:
            fixed = read_trials(path)
        except FormatError:  # the stages say what is wrong with it
            continue
        if asked > (n := len(fixed.trials)):
            yield f"--fv-max-trials {asked}: {fixed.id} has {n} trials; ask for 1 to {n}: {_again(config, '--fv-max-trials', n)}"


def _overridden(config: pytest.Config, fixture: str) -> bool:
    """Whether a conftest.py or another plugin brings a fixture of this name."""
    own = [fixtures, config.pluginmanager.get_plugin("fvparity")]
    return any(hasattr(plugin, fixture) for plugin in config.pluginmanager.get_plugins() if plugin not in own)
