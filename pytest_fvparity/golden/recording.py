"""What `--fv-regen-golden` does: record the reference for every trials file of the run, and say what changes.

`--fv-golden-diff` is the same up to the point where a golden would change: it is only said what would.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore import escapes
from fvcore.formats import FormatError, write_json
from fvcore.gates import StageError
from pytest_fvparity import fixtures
from pytest_fvparity.fixtures import chosen_for, load_model, recording_defaults, settings_of
from pytest_fvparity.options import ParityOptions

if TYPE_CHECKING:
    from pytest_fvparity.golden.golden import Record


def require_allowed(config: pytest.Config, options: ParityOptions) -> None:
    """Raises pytest.UsageError where nothing may be recorded: on several workers, and unasked in CI."""
    flag = "--fv-golden-diff records" if options.golden_diff else "--fv-regen-golden writes"
    on_workers = [getattr(config.option, name, None) for name in ("numprocesses", "tx")]
    if any(on_workers) or hasattr(config, "workerinput"):
        raise pytest.UsageError(f"{flag} goldens and cannot run on several workers: leave out -n")
    in_ci = os.environ.get("CI", "").lower() not in {"", "0", "false"}
    if in_ci and not (options.golden_diff or options.regen_allow_ci):
        raise pytest.UsageError(
            "--fv-regen-golden is refused in CI, where nobody reads what changes; --fv-regen-allow-ci"
        )


def before_tests(session: pytest.Session, options: ParityOptions) -> bool | None:
    """Record the golden of every trials file of which a stage was selected; True where that is all there is to do."""
    from pytest_fvparity.parity.suite import parity_stages

    stages = {stage.path: stage for stage in parity_stages(session)}
    for stage in stages.values():
        # The reference loads --fv-model by itself: what a fixture put in its place would not be recorded.
        definitions = session._fixturemanager.getfixturedefs("fv_model", stage) or ()
        if definitions and definitions[-1].func.__module__ != fixtures.__name__:
            raise pytest.UsageError(
                "--fv-regen-golden records --fv-model, and fixture fv_model is overridden in "
                f"{definitions[-1].baseid or '.'}: record without that override, with its model's directory as --fv-model"
            )
    if options.regen_golden:
        _each("--fv-regen-golden", session.config, options, list(stages), partial(_record, session.config))
        return None
    if n_changed := sum(
        _each("--fv-golden-diff", session.config, options, list(stages), partial(_rehearse, session.config, options))
    ):
        raise session.Failed(f"--fv-golden-diff: {n_changed} golden(s) would change")
    return True


def _record(config: pytest.Config, place: Path, root: Path, record: Record) -> None:
    """Record a golden and swap it in; a refusal changes nothing of it."""
    from pytest_fvparity.golden import golden

    path = root / place
    changes = golden.regenerate(record, path)
    _tell(config, f"fvparity: recorded {path} twice, byte for byte the same")
    _tell(config, *(f"  {key:<18}{change}" for key, change in changes.items()))
    _tell(config, f"  {golden.Golden.open(path).noise}")


def _rehearse(config: pytest.Config, options: ParityOptions, place: Path, root: Path, record: Record) -> bool:
    """Record without changing a golden; say and write down what would change, and return whether anything would."""
    from pytest_fvparity.golden import golden

    keys = golden.rehearse(record, root / place)
    written = options.report_dir / place / "golden_diff.json"
    rows = {key: diff.model_dump(mode="json") for key, diff in keys.items()}
    write_json(written, {"golden": place.as_posix(), "keys": rows})
    changes = any(diff.state != "unchanged" for diff in keys.values())
    verdict = "would change" if changes else "would stay as it is"
    _tell(config, f"fvparity: {root / place} {verdict}; nothing was written there")
    _tell(config, *(f"  {key:<18}{diff}" for key, diff in keys.items()), f"  {written}")
    return changes


def _each(
    flag: str, config: pytest.Config, options: ParityOptions, files: Sequence[Path], do: Callable[..., Any]
) -> list[Any]:
    """Do something with every golden of the run: told its place, the folder of goldens, and what records it. Every file
    is read and checked before anything is recorded; a refusal ends the run and says what was done before it."""
    from fvcore.model.model import ModelError
    from fvcore.pipeline import Pipeline
    from fvcore.prompts import require_verified
    from fvcore.trials.sampled import read_trials
    from pytest_fvparity.golden import golden
    from pytest_fvparity.reference import progress, reference

    if not files:
        raise pytest.UsageError(f"{flag}: no parity stage is selected, so there is nothing to record")
    results: dict[str, Any] = {}
    try:
        lm = load_model(replace(options, device_map=None), "cpu")
        settings = settings_of(options, recording_defaults(lm))
        settings.require_fit(lm)
        if (chosen := chosen_for(lm, options)) != "":
            _tell(config, f"fvparity: {chosen}")
        every, root = [read_trials(file) for file in files], options.golden or options.rootdir / "golden"
        for fixed in every:
            require_verified(fixed, lm.tokenizer)
            Pipeline(lm, fixed, settings).require_room()
        for fixed in every:
            usual = golden.relative_path(fixed.dataset, fixed.id, options.reference_profile)
            place = golden.place_for(root, usual, lm.weights_sha)
            told: dict[str, Any] = {"advance": progress.shown(config, f"recording {fixed.id}")}
            record = partial(reference.run, options.src, lm, fixed, settings, options.src_python, **told)
            results[fixed.id] = do(place, root, record)
    except (StageError, FormatError, ModelError, OSError) as error:
        before = f" (done before it: {', '.join(results)})" if results else ""
        raise pytest.UsageError(f"{flag}: {error}{before}") from error
    return list(results.values())


def _tell(config: pytest.Config, *lines: str) -> None:
    if (terminal := config.pluginmanager.get_plugin("terminalreporter")) is not None:
        for line in lines:
            terminal.write_line(escapes.line(line))
