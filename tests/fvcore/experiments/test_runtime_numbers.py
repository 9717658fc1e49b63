"""The steps give the stations' own numbers, with both engines, on a model with biases and one without."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import random_lm, trials_for
from fvcore.experiments.folder import Folder
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.sampled import FixedSource
from fvcore.experiments.steps.scores import read_scores
from fvcore.experiments.steps.settings import STEPS, StepSettings
from fvcore.formats import read_pt
from fvcore.trials import fixed as trials
from tests.fvcore.experiments.conftest import trials_path
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.artifacts import tensor_leaf
    from fvcore.effects import average_indirect_effect
    from fvcore.experiments.steps import stepe
    from fvcore.experiments.steps.run import run
    from fvcore.injection import inject, inject_readings
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Pipeline
    from fvcore.pipeline import Settings as StationSettings
    from fvcore.vectors import function_vector


TOPK = 7


@pytest.fixture(scope="module", params=["fast", "exact"])
def world(
    request: pytest.FixtureRequest, lm: LanguageModel, done: Folder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Folder, dict[str, Any], bool]:
    """A run's folder, the stations' artifacts with the same engine, and whether it is the exact one."""
    engine, path = request.param, trials_path(lm.name)
    if engine == "exact":  # one pass a head and trial: a few trials, and no picture
        path = first_trials(path, 3, tmp_path_factory.mktemp("trials"))
        done = Folder(tmp_path_factory.mktemp(f"{lm.name}_exact"))
        steps = [step for step in STEPS if step != "heatmap"]
        run(lm, done.root, StepSettings(top_heads=TOPK, engine="exact"), FixedSource(path), steps)
    stations = Pipeline(lm, trials.read(path), StationSettings(1, n_top_heads=TOPK, engine=engine))
    prompts = stations.prompt_boundary()
    means = stations.mean_activations(prompts, slots := stations.slot_map(prompts))
    heads = stations.top_heads(prompts, slots, means)
    return done, {**means, **heads, **stations.fv_vector(means, heads)}, engine == "exact"


def first_trials(path: Path, n: int, folder: Path) -> Path:
    file = trials.read(path).file
    few = file.model_copy(update={"trials": file.trials[:n], "meta": file.meta.model_copy(update={"n_trials": n})})
    trials.write(folder / path.name, few)
    return folder / path.name


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_means_are_the_stations(world: tuple[Folder, dict[str, Any], bool]) -> None:
    folder, found, _ = world
    means = tensor_leaf(found, "mean_activations")

    torch.testing.assert_close(read_pt(folder / layout.MEANS), means, rtol=0, atol=0)
    clean = read_pt(folder / layout.GLOBAL_MEAN)
    assert torch.equal(clean["clean_mean"], means[:, :, -1])
    assert clean["slot_q"] == means.shape[2] - 1


def test_effects_of_every_trial_and_their_means_are_the_stations(world: tuple[Folder, dict[str, Any], bool]) -> None:
    folder, found, _ = world
    cie = tensor_leaf(found, "cie")
    aie = average_indirect_effect(cie)

    for row in rows_of(folder / layout.TRIAL_METRICS):
        expected = float(cie[row["trial_idx"], row["layer"], row["head"]])
        assert row["delta_p"] == pytest.approx(expected, abs=3e-8)
    for path in (layout.AIE, layout.CIE):
        for row in read_scores(folder / path, "mean_delta_p"):
            assert row["mean_delta_p"] == pytest.approx(float(aie[row["layer"], row["head"]]), abs=3e-8)
    assert float(aie.abs().max()) > 0.01  # or nothing would be shown


def test_logits_and_log_probabilities_are_the_models(
    world: tuple[Folder, dict[str, Any], bool], lm: LanguageModel
) -> None:
    folder, _, exact = world
    close = 0.0 if exact else 2e-5
    sampled = json.loads((folder / layout.SAMPLED).read_text())["trials"]
    for row in rows_of(folder / layout.TRIAL_METRICS)[:3]:
        trial = sampled[row["trial_idx"]]
        logits = lm.logits(lm.ids(lm.tokenizer(trial["corrupted_prompt_str"]).input_ids))[0, -1]
        assert row["logit_base"] == pytest.approx(float(logits[row["target_id"]]), abs=close)
        assert row["logprob_base"] == pytest.approx(float(logits.log_softmax(-1)[row["target_id"]]), abs=close)
    for row in rows_of(folder / layout.TRIAL_METRICS):
        for side in ("base", "patch"):
            assert torch.tensor(row[f"logprob_{side}"]).exp().item() == pytest.approx(row[f"p_{side}"], rel=1e-5)
        for name in ("p", "logit", "logprob"):
            assert row[f"delta_{name}"] == row[f"{name}_patch"] - row[f"{name}_base"]


def test_heads_and_vector_are_the_stations(world: tuple[Folder, dict[str, Any], bool], lm: LanguageModel) -> None:
    folder, found, _ = world
    chosen = json.loads((folder / layout.TOP_HEADS).read_text())["heads"]
    vector = read_pt(folder / layout.FV)["fv_global_resid"]

    assert [[head["layer"], head["head"]] for head in chosen] == found["heads"]
    assert vector.shape == (lm.d_model,)
    assert vector.dtype == torch.float32
    expected = function_vector(lm, tensor_leaf(found, "mean_activations"), found["heads"])
    assert torch.equal(vector.to(lm.hf.dtype), expected.cpu())
    assert torch.equal(vector, tensor_leaf(found, "function_vector"))


def test_the_vector_of_all_slots_is_that_of_the_last(done: Folder, lm: LanguageModel, tmp_path: Path) -> None:
    shutil.copytree(done.root, tmp_path / "run")
    folder = Folder(tmp_path / "run")
    expected = stepe.read_clean_mean(folder, lm)
    (folder / layout.GLOBAL_MEAN).unlink()

    assert read_pt(folder / layout.MEANS).ndim == 4
    assert torch.equal(stepe.read_clean_mean(folder, lm), expected)


def test_heads_by_layer_lie_in_head_space(done: Folder, lm: LanguageModel) -> None:
    chosen = [(h["layer"], h["head"]) for h in json.loads((done / layout.TOP_HEADS).read_text())["heads"]]
    mean = read_pt(done / layout.GLOBAL_MEAN)["clean_mean"]
    found = read_pt(done / layout.FV_BY_LAYER)["fv_by_layer"]

    assert list(found) == list(range(lm.n_layers))
    for layer, vector in found.items():
        slices = vector.view(lm.n_heads, lm.d_head)
        for head in range(lm.n_heads):
            expected = mean[layer, head] if (layer, head) in chosen else torch.zeros(lm.d_head)
            assert torch.equal(slices[head], expected)


def test_the_evaluation_in_head_space_is_that_of_its_vectors(
    world: tuple[Folder, dict[str, Any], bool], lm: LanguageModel
) -> None:
    folder, _, _ = world
    value = json.loads((folder / layout.STEP_E_EVAL).read_text())
    by_layer = read_pt(folder / layout.FV_BY_LAYER)["fv_by_layer"]
    assert value["meta"]["space"] == "head"
    assert value["overall"]["n"] == 20 * lm.n_layers
    idle = [str(layer) for layer, vector in by_layer.items() if not vector.any()]
    assert idle
    assert all(value["per_layer"][layer]["any_nonzero"] is False for layer in idle)

    layer = next(layer for layer, vector in by_layer.items() if vector.any())
    sampled = json.loads((folder / layout.SAMPLED).read_text())["trials"]
    drawn = [random.Random(i).choice(sampled) for i in range(20)]
    moved = {}
    for trial in {trial["trial_idx"]: trial for trial in drawn}.values():
        ids, target = lm.tokenizer(trial["corrupted_prompt_str"]).input_ids, trial["target_first_token_id"]
        found = inject(lm, ids, target, by_layer[layer], layer)
        moved[trial["trial_idx"]] = float(found.with_logits[target] - found.base_logits[target])
    deltas = torch.tensor([moved[trial["trial_idx"]] for trial in drawn], dtype=torch.float64)
    assert value["per_layer"][str(layer)]["mean_delta_logit"] == pytest.approx(deltas.mean().item(), abs=2e-5)
    assert value["per_layer"][str(layer)]["std_delta_logit"] == pytest.approx(deltas.std(correction=0).item(), abs=2e-5)


@pytest.mark.parametrize("engine", ["fast", "exact"])
def test_alpha_says_how_strongly(engine: str, done: Folder, lm: LanguageModel) -> None:
    vector, layers = read_pt(done / layout.FV)["fv_global_resid"], [1, 4]
    prompts = [lm.tokenizer(text).input_ids for text in ("Q: hot\nA:", "Q: transparent\nA:")]
    found = inject_readings(lm, prompts, [5, 7], vector, layers, -0.5, engine)
    for i, (ids, target) in enumerate(zip(prompts, (5, 7), strict=True)):
        for j, layer in enumerate(layers):
            expected = inject(lm, ids, target, vector, layer, alpha=-0.5)
            assert float(found.injected[i, j, 2]) == pytest.approx(expected.with_logprob, abs=2e-5)
            assert abs(expected.delta_logprob) > 1e-3


def test_step6_is_injection(world: tuple[Folder, dict[str, Any], bool], lm: LanguageModel) -> None:
    folder, _, exact = world
    close = 1e-6 if exact else 2e-5
    vector = read_pt(folder / layout.FV)["fv_global_resid"]
    for layer in range(lm.n_layers):
        rows = rows_of(folder / f"{layout.layer_dir(layer)}/eval_trials.jsonl")
        assert len({row["prompt"] for row in rows}) == len(rows) == (2 if exact else 5)  # of 3 and of 10 trials
        for row in rows:
            expected = inject(lm, lm.tokenizer(row["prompt"]).input_ids, row["target_id"], vector, layer)
            assert row["logprob_base"] == pytest.approx(expected.base_logprob, abs=close)
            assert row["logprob_with"] == pytest.approx(expected.with_logprob, abs=close)
            assert row["logit_with"] == pytest.approx(float(expected.with_logits[row["target_id"]]), abs=close)
            assert row["pred_id_base"] == int(expected.base_logits.argmax())
            assert row["pred_id_with"] == int(expected.with_logits.argmax())
            assert row["p_with"] == pytest.approx(float(expected.with_logits.softmax(-1)[row["target_id"]]), rel=1e-4)
            assert abs(row["delta_logit"]) > 1e-3


def test_summaries_are_means_of_their_rows(done: Folder, lm: LanguageModel) -> None:
    best = []
    for layer in range(lm.n_layers):
        rows = rows_of(done / f"{layout.layer_dir(layer)}/eval_trials.jsonl")
        summary = json.loads((done / f"{layout.layer_dir(layer)}/eval_summary.json").read_text())
        deltas = torch.tensor([row["delta_logprob"] for row in rows], dtype=torch.float64)
        assert summary["mean_delta_logprob"] == pytest.approx(deltas.mean().item())
        assert summary["std_delta_logprob"] == pytest.approx(deltas.std(correction=0).item())
        hits = [row["pred_id_with"] == row["target_id"] for row in rows]
        assert summary["acc_with"] == pytest.approx(sum(hits) / len(rows))
        best.append(summary["mean_delta_logprob"])
    value = json.loads((done / layout.ALL_LAYERS).read_text())
    assert value["best_layer"] == max(range(lm.n_layers), key=best.__getitem__)
    assert value["best_score"] == max(best)
    assert value["completed_layers"] == value["expected_layers"] == list(range(lm.n_layers))


# ---------------------------------------------------------------- other families


@pytest.mark.parametrize("family", ["qwen3", "gptj", "gpt_neox"])
def test_every_kind_of_model_goes_all_the_way(family: str, tmp_path: Path) -> None:
    """Heads x width other than the residual stream's; blocks that return tuples; biases in parallel blocks."""
    lm = random_lm(family)
    fixed = trials_for(lm, n_trials=3, n_shots=3, seed=2)
    trials.write(tmp_path / "ft.json", fixed.file)
    folder = Folder(tmp_path / "run")
    steps = [step for step in STEPS if step != "heatmap"]
    run(lm, folder.root, StepSettings(top_heads=3, n_eval=2), FixedSource(tmp_path / "ft.json"), steps)

    chosen = json.loads((folder / layout.TOP_HEADS).read_text())["heads"]
    heads = [(head["layer"], head["head"]) for head in chosen]
    vector = read_pt(folder / layout.FV)["fv_global_resid"]
    assert torch.equal(vector, function_vector(lm, read_pt(folder / layout.MEANS), heads))
    evaluation = json.loads((folder / layout.STEP_E_EVAL).read_text())
    if lm.n_heads * lm.d_head == lm.d_model:
        assert evaluation["overall"]["n"] == 20 * lm.n_layers
    else:
        assert evaluation["overall"] is None
        assert "head space is 48 wide, the residual stream 32" in evaluation["note"]
    for row in rows_of(folder / f"{layout.layer_dir(1)}/eval_trials.jsonl"):
        expected = inject(lm, lm.tokenizer(row["prompt"]).input_ids, row["target_id"], vector, 1)
        assert row["logprob_with"] == pytest.approx(expected.with_logprob, abs=1e-4)
        assert row["pred_id_with"] == int(expected.with_logits.argmax())
