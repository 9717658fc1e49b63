"""The files of a run: names, keys in order, columns in order, ranks and line ends; and the pictures."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvcore.experiments.folder import Folder
from fvcore.experiments.steps import heatmap, layout
from fvcore.experiments.steps.scores import aie_rows, cie_row, population_std, ranked, read_scores
from fvcore.formats import FormatError, read_csv, read_pt, write_csv
from fvcore.plots import limit
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.steps.stepd import permutation
    from fvcore.model.model import LanguageModel


CIE = (
    "q_id,layer,head,n_trials,mean_delta_p,std_delta_p,mean_abs_delta_p,mean_p_base,std_p_base,mean_p_patch,std_p_patch,"
    "mean_p_base_target,mean_p_patch_target,mean_delta_p_target,mean_delta_logit,std_delta_logit,mean_abs_delta_logit,"
    "mean_logit_base,mean_logit_patch,mean_delta_logprob,std_delta_logprob,mean_abs_delta_logprob,mean_logprob_base,"
    "mean_logprob_patch,any_nonzero,mean_act_norm,clean_mean_norm"
)
TRIAL_METRICS = (
    "q_id trial_idx layer head target_id target_token seed_global shuffle_labels shuffle_derangement n_icl_examples "
    "demo_perm demo_fixed_points demo_outputs_before demo_outputs_after p_base p_patch delta_p logit_base logit_patch "
    "delta_logit logprob_base logprob_patch delta_logprob p_base_target p_patch_target delta_p_target prompt_tail_repr "
    "prompt_ends_with_space slot_idx seq_token_idx trial_id"
)
EVAL_TRIALS = (
    "idx q_id prompt answer target_id target_token leading_space used_id used_token pred_id_base pred_id_with "
    "accuracy_base accuracy_with delta_acc logit_base logit_with delta_logit logprob_base logprob_with delta_logprob "
    "p_base p_with delta_p trial_id trial_idx"
)
JSON_KEYS = {
    layout.SAMPLED: "meta trials",
    layout.ZERO_SHOT: "meta trials",
    layout.AIE_JSON: "meta scores",
    layout.MEANS_META: "n_mean_trials n_icl_examples seed layers n_layers n_heads head_dim resid_dim dummy_labels "
    "slot_index_map slot_query_pred",
    layout.TOP_HEADS: "meta heads",
    layout.FV_META: "spec_name model run_id_stepD heads token_position_rule fv_type fv_source_qid",
    layout.STEP_E_EVAL: "meta per_layer overall",
    layout.ALL_LAYERS: "q_id score_key expected_layers completed_layers missing_layers best_layer best_score per_layer "
    "generated_at",
    "artifacts/step6/layer_2/eval_summary.json": "acc_base acc_with delta_acc mean_logit_base mean_logit_with "
    "mean_delta_logit std_delta_logit mean_logprob_base mean_logprob_with mean_delta_logprob std_delta_logprob "
    "mean_p_base mean_p_with mean_delta_p std_delta_p",
    "artifacts/step6/layer_2/eval_meta.json": "model model_spec edit_layer injection_point slot slot_name "
    "slot_index_rule token_rule score_key heads seed n_eval requested_n_eval alpha fv_source fv_type fv_source_qid "
    "eval_scope eval_qids config fv fv_meta timestamp",
}
ROW_KEYS = {
    layout.SAMPLED: "q_id trial_idx clean_prompt_str corrupted_prompt_str corrupted_full_str target_str "
    "target_first_token_id target_token demos_clean demos_corrupted query query_source_index demo_source_indices "
    "demo_order trial_id",
    layout.ZERO_SHOT: "q_id trial_idx query target_str target_first_token_id corrupted_prompt_str corrupted_full_str "
    "query_source_index demo_source_indices demo_order trial_id",
}


def value_of(path: Path) -> Any:
    return json.loads(path.read_text())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", JSON_KEYS)
def test_objects_have_their_keys_in_order(done: Folder, name: str) -> None:
    assert list(value_of(done / name)) == JSON_KEYS[name].split()


@pytest.mark.parametrize("name", ROW_KEYS)
def test_trials_have_their_keys_in_order(done: Folder, name: str) -> None:
    rows = value_of(done / name)["trials"]
    assert len(rows) == 10
    assert all(list(row) == ROW_KEYS[name].split() for row in rows)


def test_score_files_have_their_columns_in_order(done: Folder, lm: LanguageModel) -> None:
    cie, aie = (done / layout.CIE).read_bytes(), (done / layout.AIE).read_bytes()

    assert cie.split(b"\r\n")[0].decode() == CIE
    assert aie.split(b"\r\n")[0].decode() == CIE.removeprefix("q_id,")
    assert cie.count(b"\n") == cie.count(b"\r\n") == 1 + lm.n_layers * lm.n_heads
    _, rows = read_csv(done / layout.CIE)
    places = [(int(row["layer"]), int(row["head"])) for row in rows]
    assert places == sorted(places)
    assert {row["q_id"] for row in rows} == {"__all__"}
    assert {row["any_nonzero"] for row in rows} <= {"True", "False"}
    scores = [float(row["mean_delta_p"]) for row in read_csv(done / layout.AIE)[1]]
    assert scores == sorted(scores, reverse=True)
    assert [row["mean_delta_p"] for row in value_of(done / layout.AIE_JSON)["scores"]] == scores


def test_rows_have_their_keys_and_order(done: Folder, lm: LanguageModel) -> None:
    metrics = lines_of(done / layout.TRIAL_METRICS)
    assert all(list(row) == TRIAL_METRICS.split() for row in metrics)
    order = [(row["layer"], row["head"], row["trial_idx"]) for row in metrics]
    assert order == sorted(order)
    assert len(order) == 10 * lm.n_layers * lm.n_heads
    # Positions where the corrupted label is the clean one, in the committed trials.
    fixed = [
        sum(a == b for a, b in zip(r["demo_outputs_before"], r["demo_outputs_after"], strict=True)) for r in metrics
    ]
    assert [row["demo_fixed_points"] for row in metrics] == fixed
    for row in metrics[:10]:
        assert [row["demo_outputs_before"][i] for i in row["demo_perm"]] == row["demo_outputs_after"]
        assert sorted(row["demo_perm"]) == list(range(10))
        assert row["prompt_tail_repr"].endswith("A:'")
    for row in lines_of(done / "artifacts/step6/layer_2/eval_trials.jsonl"):
        assert list(row) == EVAL_TRIALS.split()


def test_tensors_have_their_shapes(done: Folder, lm: LanguageModel) -> None:
    meta = value_of(done / layout.MEANS_META)
    sizes = {"n_heads": lm.n_heads, "head_dim": lm.d_head, "resid_dim": lm.d_model}
    means, clean = read_pt(done / layout.MEANS), read_pt(done / layout.GLOBAL_MEAN)

    assert means.shape == (lm.n_layers, lm.n_heads, len(meta["dummy_labels"]), lm.d_head)
    assert meta["slot_index_map"] == dict.fromkeys(("QUERY_PRED", "query_predictive_token"), meta["slot_query_pred"])
    assert meta["dummy_labels"][meta["slot_query_pred"]] == "query_predictive_token"
    assert clean.keys() == {"clean_mean", "slot_q", *sizes}
    assert clean["clean_mean"].shape == (lm.n_layers, lm.n_heads, lm.d_head)
    assert torch.equal(read_pt(done / layout.q_mean("__all__"))["clean_mean"], clean["clean_mean"])
    vector, by_layer = read_pt(done / layout.FV), read_pt(done / layout.FV_BY_LAYER)
    assert vector.keys() == {"fv_global_resid", *sizes}
    assert {k: vector[k] for k in sizes} == {k: by_layer[k] for k in sizes} == sizes
    assert (by_layer["selected_k"], by_layer["alpha_default"]) == (7, 1.0)


def test_results_say_how_many_were_asked_for_and_how_many_there_were(done: Folder, lm: LanguageModel) -> None:
    name = f"artifacts/step6/layer_3/step6_results_{lm.name}_layer3_n5.json"
    value = value_of(done / name)

    assert list(value) == ["config", "fv", "summary", "per_qid", "matrix", "metadata", "results"]
    assert (value["config"]["n_eval"], value["config"]["requested_n_eval"]) == (5, 50)
    assert value["matrix"] == {"__global__": {"__all__": value["summary"]["mean_delta_logprob"]}}
    assert value["per_qid"]["__all__"]["n_eval"] == len(value["results"]) == 5
    assert value_of(done / layout.ALL_LAYERS)["per_layer"]["3"]["results_path"] == name


def test_heads_say_over_how_many_trials(done: Folder) -> None:
    value = value_of(done / layout.TOP_HEADS)
    keys = ["layer", "head", "score_key", "rank_score", "mean_delta_logprob", "mean_delta_p", "n_trials"]
    assert all(list(head) == keys for head in value["heads"])
    assert [head["n_trials"] for head in value["heads"]] == [10] * 7
    assert value["meta"]["k"] == 7


# ---------------------------------------------------------------- scores by hand


def metric(p: float) -> dict[str, float]:
    names = ("p_base", "p_patch", "delta_p", "logit_base", "logit_patch", "delta_logit")
    return dict.fromkeys((*names, "logprob_base", "logprob_patch", "delta_logprob"), p)


def test_deviations_are_the_populations() -> None:
    assert population_std([3.0]) == 0.0
    assert population_std([1.0, 3.0]) == 1.0
    row = cie_row("Q", 0, 0, [metric(-1.0), metric(3.0)], norm=2.5)
    assert (row["mean_delta_p"], row["std_delta_p"], row["mean_abs_delta_p"]) == (1.0, 2.0, 2.0)
    assert row["mean_act_norm"] == row["clean_mean_norm"] == 2.5


def test_q_ids_count_alike_whatever_their_trials() -> None:
    cie = [
        cie_row("Q1", 0, 0, [metric(0.0)] * 3, 1.0), cie_row("Q1", 0, 1, [metric(1.0)] * 3, 1.0),
        cie_row("Q2", 0, 0, [metric(3.0)], 3.0), cie_row("Q2", 0, 1, [metric(1.0)], 1.0),
    ]  # fmt: skip

    rows = aie_rows(cie, "mean_delta_p", of_relations=True)

    assert list(rows[0]) == ["layer", "head", "n_qid", *CIE.split(",")[4:], "n_trials"]
    assert [(r["head"], r["mean_delta_p"], r["n_qid"], r["n_trials"]) for r in rows] == [(0, 1.5, 2, 4), (1, 1.0, 2, 4)]
    assert [r["any_nonzero"] for r in rows] == [0.5, 1.0]


def test_equal_scores_rank_by_place() -> None:
    rows = [{"layer": a, "head": b, "s": s} for a, b, s in ((1, 1, 2.0), (0, 3, 2.0), (0, 2, 1.0), (1, 0, 2.0))]
    assert [(r["layer"], r["head"]) for r in ranked(rows, "s", 4)] == [(0, 3), (1, 0), (1, 1), (0, 2)]


def test_permutation_of_equal_words_uses_each_once() -> None:
    assert permutation(["a", "b", "a"], ["a", "a", "b"]) == [0, 2, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"layer": 0, "head": 0, "other": 1.0}], "no numeric column 'mean_delta_p'; available: other"),
        ([{"layer": 0, "head": 0, "mean_delta_p": "x", "other": 1.0}], "no numeric column 'mean_delta_p'; available"),
        (
            [{"layer": 0, "head": 0, "mean_delta_p": 1.0}, {"layer": 0, "head": 1, "mean_delta_p": "nan"}],
            "row 2, column",
        ),
        ([], "holds no scores|no numeric column"),
    ],
)
def test_scores_that_are_none_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    write_csv(tmp_path / "s.csv", list(rows[0]) if rows else ["layer", "head", "mean_delta_p"], rows)
    with pytest.raises(FormatError, match=message):
        read_scores(tmp_path / "s.csv", "mean_delta_p")


# ---------------------------------------------------------------- pictures


def test_pictures_are_there_in_their_size(done: Folder) -> None:
    for name in (layout.heatmap("all"), layout.heads_by_layer("mean_delta_p")):
        data = (done / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert struct.unpack(">II", data[16:24]) == (2200, 1300)


def test_a_head_without_a_score_is_zero() -> None:
    grid = heatmap.grid_of([{"layer": 1, "head": 2, "m": 5.0}], "m", 3, 4)
    assert grid.shape == (3, 4)
    assert grid[1, 2] == 5.0
    assert np.count_nonzero(grid) == 1


def test_colours_stop_at_percentiles_of_what_is_not_zero() -> None:
    values = np.zeros((20, 20))
    values[:10] = np.arange(1, 201).reshape(10, 20)
    outer = limit(values)
    assert outer == np.percentile(np.arange(1, 201), 99)
    assert limit(values, clipped=False) == 200.0
    assert limit(np.zeros((2, 2))) == 1.0
