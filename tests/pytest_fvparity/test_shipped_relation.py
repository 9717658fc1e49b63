"""Two q_ids of the shipped relation file, frozen and recorded: trials, golden and the six keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvcore.experiments.relation import data
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.relation.data import RelationSource
from fvcore.gates import Status, Suite, run_suite
from fvcore.trials.sampled import read, read_trials
from pytest_fvparity.parity.checks import STAGES, ParityRun
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    from fvcore.model import model as models
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Pipeline, Settings, profile_of
    from pytest_fvparity.golden.golden import Golden, relative_path, require_comparable
    from pytest_fvparity.golden.listing import rows, trials_under
    from pytest_fvparity.parity.tolerances import Tolerances


ROOT = Path(__file__).parents[2]
CSV = Path("datasets", "relation", "relationA_ex.csv")
Q_IDS = ("Q1", "Q13")
MIB = 2**20

per_q_id = pytest.mark.parametrize("q_id", Q_IDS)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return models.load("tiny-llama")


def frozen(q_id: str) -> Path:
    return ROOT / CSV.parent / CSV.stem / q_id / "sampled_trials.json"


def golden_of(q_id: str) -> Path:
    fixed = read_trials(frozen(q_id))
    return ROOT / "golden" / relative_path(fixed.dataset, fixed.id, "src")


@per_q_id
def test_frozen_trials_are_what_the_plans_settings_draw(q_id: str, lm: LanguageModel) -> None:
    plan, relation = RelationSettings(), data.read(ROOT / CSV)
    source = RelationSource(q_id, relation.pairs[q_id], CSV.as_posix(), plan.n_trials, plan.n_shots, plan.seed)

    assert source.sample(lm.tokenizer) == read(frozen(q_id))
    assert len(read(frozen(q_id)).trials) == 25


@per_q_id
def test_the_golden_is_of_these_trials_and_of_the_public_reference(q_id: str) -> None:
    golden, fixed = Golden.open(golden_of(q_id)), read_trials(frozen(q_id))

    assert golden.profile.identity.trials_sha256 == fixed.sha256
    assert (golden.profile.identity.dataset, golden.profile.identity.n_top_heads) == ("relationA_ex", 20)
    assert golden.manifest.reference.commit.startswith("fb9eac7")
    assert sum(file.stat().st_size for file in golden_of(q_id).iterdir()) < 2 * MIB


@pytest.mark.parametrize("q_id", slow_but(["Q1"], Q_IDS))
def test_the_six_keys_agree_with_the_reference(q_id: str, lm: LanguageModel) -> None:
    golden, fixed = Golden.open(golden_of(q_id)), read_trials(frozen(q_id))
    identity = golden.profile.identity
    settings = Settings(identity.edit_layer, identity.n_top_heads, identity.token_class_idx)
    require_comparable(golden.profile, profile_of(lm, fixed, settings))
    run = ParityRun(Pipeline(lm, fixed, settings), golden, Tolerances.read(None, (), "fp32", "cpu", golden.noise))

    results = list(run_suite(Suite("parity", STAGES, lambda: run)))
    assert [result.status for result in results] == [Status.PASS] * 6
    assert all(result.verdict.compared for result in results)


def test_the_list_of_goldens_finds_their_trials() -> None:
    known = trials_under([ROOT / "datasets" / "relation"])
    states = {Path(row.path).parent.name: row.state for row in rows([ROOT / "golden" / "relationA_ex"], known)}

    assert states == {read_trials(frozen(q_id)).id: "current" for q_id in Q_IDS}
