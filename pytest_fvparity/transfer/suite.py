"""The suite `transfer`: a q_id's status file is a test file, and its stages hold the run's files against the stations.

Node ids read `<relation root>/<q_id>/artifacts/qid_status.json::transfer::stepd_scores`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fvcore.gates import Suite
from pytest_fvparity.fixtures import in_one_sentence, tolerances_of
from pytest_fvparity.suite.declaration import Declaration
from pytest_fvparity.transfer import SUITE
from pytest_fvparity.transfer.reports import TransferReports
from pytest_fvparity.transfer.stages import STAGES

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from pytest_fvparity.transfer.subject import Transfer


def transfer_suite(n_stages: int | None = None) -> Suite[Transfer]:
    """Of a q_id that was skipped there is nothing to compare: its status alone is judged."""
    return Suite(SUITE, STAGES[:n_stages], lambda fv_transfer_run: fv_transfer_run)


TRANSFER = Declaration(
    SUITE,
    "a stage that holds a relation run against stations and reference",
    title=lambda path: path.parents[1].name,
    option=lambda path: f"--fv-qid={path.parents[1].name}",
    reports=TransferReports,
)

_RUN_KEY: pytest.StashKey[Transfer] = pytest.StashKey()


@pytest.fixture
@in_one_sentence()
def fv_transfer_run(request: pytest.FixtureRequest) -> Transfer:
    """What the stages of one q_id judge; what it has computed for one stage serves the next. For stages only."""
    from fvcore.experiments.folder import Folder
    from pytest_fvparity.transfer.subject import Transfer

    collector = request.node.collector
    lm: LanguageModel = request.getfixturevalue("fv_model")
    run: Transfer | None = collector.stash.get(_RUN_KEY, None)
    if run is None or run.lm is not lm:
        tolerances = tolerances_of(request, lm.dtype, lm.device.type)
        collector.context["tolerances"] = list(tolerances.sources)
        run = collector.stash[_RUN_KEY] = Transfer(Folder(collector.path.parents[1]), lm, tolerances)
    return run
