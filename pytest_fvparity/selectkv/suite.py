"""The suite `selectkv`: a config or a run's report is a test file, and its stages are the checks of both gates.

Node ids read `<config>.yaml::selectkv::<check>`. Every check is judged, whatever became of those before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fvcore.gates import StageError, Suite
from pytest_fvparity.fixtures import in_one_sentence, options_of
from pytest_fvparity.report.checks import CheckReports
from pytest_fvparity.selectkv import SUITE
from pytest_fvparity.selectkv.runs import is_finished, title_of
from pytest_fvparity.suite.declaration import Declaration

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.gates import Measured


def select_kv_suite() -> Suite[Measured]:
    from fvcore.experiments.select_kv.gates import suite

    return suite(lambda fv_select_kv_run: fv_select_kv_run)


class SelectKVReports(CheckReports):
    """A report for each config or run."""

    suite, heading, about = SUITE, "Select-KV", " of gates A and B"
    title = staticmethod(title_of)


SELECTKV = Declaration(
    SUITE,
    "a check of gate A or B of a Select-KV run",
    title=title_of,
    option=lambda path: f"--fv-select-kv={path.parent if is_finished(path) else path}",
    reports=SelectKVReports,
)

RUN = "run"
"""The folder of what is run for a report, beside it."""

_RUN_KEY: pytest.StashKey[Measured] = pytest.StashKey()


@pytest.fixture
@in_one_sentence()
def fv_select_kv_run(request: pytest.FixtureRequest) -> Measured:
    """What the checks judge: the numbers of a run, read from its rows. For stages only."""
    from fvcore.experiments.select_kv.reading import measured as measured_of

    collector = request.node.collector
    measured: Measured | None = collector.stash.get(_RUN_KEY, None)
    if measured is None:
        path = collector.path
        folder = path.parent if is_finished(path) else _made(path, SelectKVReports.folder_of(options_of(request), path))
        collector.context["folder"] = options_of(request).shown(folder)
        measured = collector.stash[_RUN_KEY] = measured_of(folder)
    return measured


def _made(config: Path, root: Path) -> Path:
    """Run the config, below the reports; its rows are those of today, whatever lies there."""
    from fvcore.experiments.config import resolve
    from fvcore.experiments.errors import StepError
    from fvcore.experiments.select_kv.config import SelectKVConfig
    from fvcore.experiments.select_kv.run import run_phase2

    settings = resolve(SelectKVConfig, {}, config).resolve().changed({"runtime.output_root": str(root)})
    try:
        result = run_phase2(settings, run_id=RUN, overwrite=True)
    except StepError as error:
        raise StageError(str(error)) from error
    return result.folder
