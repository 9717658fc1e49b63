"""The transfer suite, stage by stage: green on a run as it is, and red at the right key where a file is not what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import files
from fvcore.experiments.steps import layout
from fvcore.gates import StageResult, Status, run_suite
from pytest_fvparity.transfer.stages import KEYS, PROVES_NOTHING, stepd_scores, stepe_heads
from pytest_fvparity.transfer.suite import transfer_suite
from tests.late import RUNNING
from tests.pytest_fvparity.transfer_world import TransferWorld

if RUNNING:
    import torch

    from fvcore.formats import read_csv, read_json, read_pt, sha256_file, write_csv, write_json, write_pt
    from fvcore.model import model as models
    from fvcore.model.model import LanguageModel
    from pytest_fvparity.parity.tolerances import Tolerances
    from pytest_fvparity.transfer.subject import Transfer


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return models.load("tiny-llama")


@pytest.fixture
def q1(transfer_world: TransferWorld, tmp_path: Path) -> Folder:
    """A copy of one q_id's folder that a test may damage."""
    return Folder(shutil.copytree(transfer_world.root / "Q1", tmp_path / "Q1"))


def judged(lm: LanguageModel, folder: Folder) -> dict[str, StageResult]:
    tolerances = Tolerances.read(None, (), lm.dtype, "cpu")
    results = list(run_suite(replace(transfer_suite(), subject=lambda: Transfer(folder, lm, tolerances))))
    return {result.key: result for result in results}


def sealed(folder: Folder) -> None:
    """The status names the files as they are now: what is wrong with them is for the later stages to see."""
    value = read_json(folder / files.STATUS)
    value["files"] = {name: sha256_file(folder / name) for name in value["files"] if (folder / name).is_file()}
    write_json(folder / files.STATUS, value)


def first_red(results: dict[str, StageResult]) -> tuple[str, Status]:
    key = next(key for key, result in results.items() if result.status is not Status.PASS)
    return key, results[key].status


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    value = read_json(path)
    change(value)
    write_json(path, value)


def test_a_run_as_it_is_passes_every_stage(q1: Folder, lm: LanguageModel) -> None:
    results = judged(lm, q1)

    assert list(results) == list(KEYS)
    assert {result.status for result in results.values()} == {Status.PASS}
    assert all(result.verdict.compared for result in results.values())


# ---------------------------------------------------------------- status


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / layout.FV).unlink(), f"{layout.FV} is missing or was changed since"),
        (lambda f: write_json(f / layout.TOP_HEADS, {}), f"{layout.TOP_HEADS} is missing or was changed since"),
        (lambda f: change_json(f / files.STATUS, lambda v: v.update(status="running", reason="")), "running"),
        (
            lambda f: change_json(f / files.STATUS, lambda v: v.update(status="failed", reason="no memory")),
            "failed: no memory",
        ),
        (
            lambda f: change_json(f / files.STATUS, lambda v: v.update(status="skipped")),
            "skipped, with 5 rows of 4 needed",
        ),
        (
            lambda f: change_json(f / files.STATUS, lambda v: v["expected_layers"].pop()),
            "are not those of tiny-llama",
        ),
        (
            lambda f: change_json(f / files.STATUS, lambda v: v.update(q_id="Q2")),
            "the status in folder Q1 is of another",
        ),
    ],
)
def test_a_status_that_is_not_complete_is_the_first_red(
    q1: Folder, lm: LanguageModel, damage: Callable[[Folder], object], message: str
) -> None:
    damage(q1)
    results = judged(lm, q1)

    assert first_red(results) == ("qid_status", Status.FAIL)
    assert message in [finding.message for finding in results["qid_status"].verdict.findings]
    assert {results[key].status for key in KEYS[1:]} == {Status.BLOCKED}


def test_a_file_that_the_status_forgets_is_missed(q1: Folder, lm: LanguageModel) -> None:
    (q1 / f"{layout.layer_dir(2)}/eval_summary.json").unlink()
    sealed(q1)

    results = judged(lm, q1)
    assert first_red(results) == ("qid_status", Status.FAIL)
    (finding,) = results["qid_status"].verdict.findings
    assert finding.message == f"{layout.layer_dir(2)}/eval_summary.json is missing or was changed since"


def test_a_run_of_other_weights_is_refused(q1: Folder, lm: LanguageModel) -> None:
    change_json(q1 / files.STATUS, lambda value: value["settings"].update(weights_sha="0" * 64))

    results = judged(lm, q1)
    assert first_red(results) == ("qid_status", Status.REFUSED)
    assert "weights_sha: run 000000" in results["qid_status"].message
    assert "Give the run's own: --fv-model=PATH" in results["qid_status"].message


def test_a_q_id_with_too_few_rows_is_rightly_skipped(transfer_world: TransferWorld, lm: LanguageModel) -> None:
    assert judged(lm, Folder(transfer_world.root / "Q3"))["qid_status"].status is Status.PASS


# ---------------------------------------------------------------- what the files hold


def change_csv(path: Path, change: Callable[[list[dict[str, str]]], object]) -> None:
    columns, rows = read_csv(path)
    change(rows)
    write_csv(path, columns, rows)


def add(row: dict[str, str], by: float) -> None:
    row["mean_delta_p"] = repr(float(row["mean_delta_p"]) + by)


def fixed_decimals(rows: list[dict[str, str]]) -> None:
    for row in rows:
        row["mean_delta_p"] = f"{float(row['mean_delta_p']):.7f}"


def change_means(folder: Folder) -> None:
    value = read_pt(folder / layout.q_mean("Q1"))
    value["clean_mean"][2, 1, 0] += 1e-3
    write_pt(folder / layout.q_mean("Q1"), value)


def change_vector(folder: Folder) -> None:
    value = read_pt(folder / layout.FV)
    value["fv_global_resid"][7] += 1e-2
    write_pt(folder / layout.FV, value)


def change_trial(folder: Folder) -> None:
    lines = (folder / layout.TRIAL_METRICS).read_text().splitlines()
    row = json.loads(lines[5])
    row["delta_p"] += 1e-3
    lines[5] = json.dumps(row)
    (folder / layout.TRIAL_METRICS).write_text("\n".join([*lines, ""]))


def drop_head(folder: Folder) -> None:
    """A head that no file knows: a sweep that left it out, not a file that lost it."""
    for name in (layout.CIE, layout.AIE):
        change_csv(
            folder / name, lambda rows: rows.remove(next(r for r in rows if (r["layer"], r["head"]) == ("5", "2")))
        )
    lines = (folder / layout.TRIAL_METRICS).read_text().splitlines()
    kept = [line for line in lines if (json.loads(line)["layer"], json.loads(line)["head"]) != (5, 2)]
    (folder / layout.TRIAL_METRICS).write_text("\n".join([*kept, ""]))


def shift_layers(folder: Folder) -> None:
    """Every injection one block late: each file is whole, each score the mean of its own rows."""
    dirs = [folder / layout.layer_dir(layer) for layer in range(6)]
    texts = [(each / "eval_trials.jsonl").read_text() for each in dirs]
    summary = read_json(folder / layout.ALL_LAYERS)
    scores = [summary["per_layer"][str(layer)]["score_value"] for layer in range(6)]
    for layer, each in enumerate(dirs):
        (each / "eval_trials.jsonl").write_text(texts[(layer + 1) % 6])
        summary["per_layer"][str(layer)]["score_value"] = scores[(layer + 1) % 6]
    summary["best_layer"] = (summary["best_layer"] - 1) % 6
    write_json(folder / layout.ALL_LAYERS, summary)


def swap_heads(value: dict[str, Any]) -> None:
    heads = value["heads"]
    heads[0], heads[3] = heads[3], heads[0]


def drop_layer(value: dict[str, Any]) -> None:
    del value["per_layer"]["4"]
    value["completed_layers"].remove(4)
    value["missing_layers"].append(4)


@pytest.mark.parametrize(
    ("damage", "key", "where"),
    [
        (
            lambda f: change_json(f / layout.SAMPLED, lambda v: v["trials"][1].update(target_str="x")),
            "sampled_trials",
            "",
        ),
        (
            lambda f: change_json(f / layout.SAMPLED, lambda v: v["trials"][1].update(target_first_token_id=3)),
            "sampled_trials",
            "trials",
        ),
        (change_means, "mean_activations", "mean_activations[layer 2, head 1, dim 0]"),
        (lambda f: change_csv(f / layout.CIE, lambda rows: add(rows[9], 1e-3)), "stepd_scores", layout.CIE),
        (lambda f: change_csv(f / layout.AIE, lambda rows: add(rows[0], -1e-3)), "stepd_scores", layout.AIE),
        (change_trial, "stepd_scores", layout.TRIAL_METRICS),
        (lambda f: change_csv(f / layout.AIE, fixed_decimals), "stepd_scores", layout.AIE),
        (lambda f: change_json(f / layout.TOP_HEADS, swap_heads), "stepe_heads", "rank 0"),
        (change_vector, "stepe_vector", "function_vector[dim 7]"),
        (drop_head, "stepd_scores", layout.TRIAL_METRICS),
        (shift_layers, "step6_summary", "layer 0"),
        (lambda f: change_json(f / layout.ALL_LAYERS, drop_layer), "step6_summary", "missing_layers"),
        (
            lambda f: change_json(f / layout.ALL_LAYERS, lambda v: v["per_layer"]["1"].update(score_value=9.0)),
            "step6_summary",
            "layer 1",
        ),
        (
            lambda f: change_json(f / layout.ALL_LAYERS, lambda v: v.update(best_layer=77)),
            "step6_summary",
            "best_layer",
        ),
    ],
)
def test_a_planted_fault_is_red_at_its_own_key(
    q1: Folder, lm: LanguageModel, damage: Callable[[Folder], object], key: str, where: str
) -> None:
    damage(q1)
    sealed(q1)

    results = judged(lm, q1)
    assert first_red(results)[0] == key
    first = results[key].verdict.first_mismatch
    assert (first.where if first else "").startswith(where)


def test_fewer_trials_than_asked_for_are_not_enough(q1: Folder, lm: LanguageModel) -> None:
    change_json(q1 / files.STATUS, lambda value: value["config"].update(n_trials_per_q=25))

    results = judged(lm, q1)
    assert first_red(results) == ("sampled_trials", Status.FAIL)
    first = results["sampled_trials"].verdict.first_mismatch
    assert first is not None
    assert (first.expected, first.actual) == (25, 3)


def test_heads_that_the_effects_leave_open_are_a_tie(q1: Folder, lm: LanguageModel) -> None:
    tolerances = Tolerances.read(None, (), lm.dtype, "cpu")
    run = Transfer(q1, lm, tolerances)
    heads, aie = run.heads, run.top_heads["aie"]
    assert isinstance(aie, torch.Tensor)
    other = next([layer, 0] for layer in range(lm.n_layers) if [layer, 0] not in heads)
    aie[other[0], other[1]] = aie[heads[3][0], heads[3][1]]  # as good as the last of the chosen
    change_json(q1 / layout.TOP_HEADS, lambda value: value["heads"][3].update(layer=other[0], head=other[1]))

    again = replace(run)
    again.__dict__["top_heads"] = run.top_heads
    assert not stepe_heads(again).passed  # by the run's own effects it is another head

    again.__dict__["delta_p"] = run.delta_p.clone()
    again.delta_p[:, other[0], other[1]] = run.delta_p[:, heads[3][0], heads[3][1]]
    verdict = stepe_heads(again)
    assert verdict.passed
    (finding,) = verdict.findings
    assert (finding.where, finding.message.partition(":")[0]) == ("rank 3", "tie")


def test_effects_below_the_tolerance_are_said_to_prove_nothing(q1: Folder, lm: LanguageModel) -> None:
    run = Transfer(q1, lm, Tolerances.read(None, (), lm.dtype, "cpu"))
    tiny = {leaf: torch.full_like(value, 1e-9) for leaf, value in run.top_heads.items() if leaf in {"cie", "aie"}}
    run.__dict__["top_heads"] = tiny
    run.__dict__["delta_p"] = torch.full((3, lm.n_layers, lm.n_heads), 1e-9, dtype=torch.float64)
    run.__dict__["scores"] = lambda name: [
        {"layer": layer, "head": head, "mean_delta_p": 1e-9}
        for layer in range(lm.n_layers)
        for head in range(lm.n_heads)
    ]

    verdict = stepd_scores(run)
    assert verdict.passed
    assert {finding.message for finding in verdict.findings} == {PROVES_NOTHING}


def test_heads_chosen_by_another_score_are_not_compared(q1: Folder, lm: LanguageModel) -> None:
    change_json(q1 / files.STATUS, lambda value: value["config"].update(score_key="mean_delta_logit"))

    results = judged(lm, q1)
    assert results["stepe_heads"].status is Status.NOT_PROVIDED
    assert results["stepe_vector"].status is Status.PASS
