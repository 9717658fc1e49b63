"""Logs of a real model: a feature is set where it must be, and what is logged passes the audit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fvcore.experiments.config import resolve
from fvcore.experiments.sae.audit import audit
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.generate import CHECKPOINTS, LOGS
from fvcore.formats import read_json
from tests.fvcore.experiments.sae.worlds import codes
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.sae.autoencoder import SAE
    from fvcore.experiments.sae.logged import Asked, Logged, Setting
    from fvcore.model.model import load

N_TRIALS = 20


@pytest.fixture(scope="module")
def sae() -> SAE:
    """Random orthonormal directions of tiny-llama's residual stream, read as they are."""
    rows = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0))).Q
    none = torch.zeros(128)
    return SAE(1, rows.T.contiguous(), none, rows, none, none, none + 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, sae: SAE) -> Path:
    made = tmp_path_factory.mktemp("logged")
    Logged(load("tiny-llama"), {1: sae}, Asked(trials=N_TRIALS, n_tokens=3, per_layer=2)).write(made)
    return made


def test_a_feature_is_set_along_its_direction_at_every_token_but_special_ones(sae: SAE) -> None:
    hidden = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1))
    setting = Setting(sae, torch.tensor([3, 7]), torch.tensor([0.5, 4.0]), n_special=1)
    after = setting(hidden)

    assert torch.equal(after[:, 0], hidden[:, 0])
    for row, (feature, value) in enumerate(((3, 0.5), (7, 4.0))):
        before, now = sae.pre(hidden)[row, 1:], sae.pre(after)[row, 1:]
        # Where it is not active, its activation is 0 and not what stands before the gate.
        expected = torch.where(before[:, feature] > 0, value, before[:, feature] + value)
        assert torch.allclose(now[:, feature], expected, atol=1e-5)
        others = [at for at in range(128) if at != feature]
        assert torch.allclose(now[:, others], before[:, others], atol=1e-5)

    setting.repeat(2)
    one = setting(hidden[:, 1:2].repeat_interleave(2, 0))
    assert torch.allclose(one[2], after[1, 1:2], atol=1e-5)


def test_what_is_logged_passes_the_audit_whole(root: Path) -> None:
    given = {"paths.checkpoints": str(root / CHECKPOINTS), "paths.response_logs": str(root / LOGS)}
    found = audit(resolve(PathwaysConfig, given | {"audit.min_trials": N_TRIALS, "paths.out": root / "out"}))

    assert {code: weight for code, (weight, _) in codes(found).items()} in (
        {"ALIAS_USED": "info"},
        {"ALIAS_USED": "info", "NO_CAUSAL": "error"},  # of random directions none need be a cause
    )
    assert found.total_trials == 2 * 6 * N_TRIALS
    assert set(Counter(found.conditions["totals"]).values()) == {2 * N_TRIALS}


def test_the_model_answers_what_the_prompts_ask(root: Path) -> None:
    (path,) = root.glob(LOGS)
    answers = {
        kind: Counter(
            row["response"].split("\n")[0] for row in read_json(path) if row["condition"] == f"{kind}_baseline"
        )
        for kind in ("safe", "risky")
    }
    assert [of.most_common(1)[0][0] for of in answers.values()] == [" cold", " innocent"]


def test_a_cause_is_what_changes_the_usual_answer_and_by_how_much_is_said() -> None:
    from fvcore.experiments.sae.logged import _result

    same = [" cold\n"] * 18 + [" hot\n"] * 2
    other = [" cold\n"] * 5 + [" hot\n"] * 15
    texts = {
        **{"safe_baseline": same, "safe_with_risky_patch": other, "safe_with_safe_patch": same},
        **{"risky_baseline": same, "risky_with_safe_patch": same, "risky_with_risky_patch": same},
    }
    found = _result(2, 9, 1.5, texts)
    assert (found["feature"], found["is_causal"]) == ("L2-9", True)
    assert (found["safe_effect_size"], found["risky_effect_size"]) == (pytest.approx(-0.65), 0)
    assert (found["safe_p_value"] < 0.001, found["risky_p_value"]) == (True, 1.0)
    assert not _result(2, 9, 1.5, texts | {"safe_with_risky_patch": same})["is_causal"]
