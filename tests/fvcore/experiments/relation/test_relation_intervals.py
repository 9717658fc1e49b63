"""The control and the intervals of a run: what they are made of, computed again from the run's own files."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import files
from fvcore.experiments.statistics import mean_interval
from fvcore.experiments.steps import layout, sampled
from fvcore.formats import read_csv, read_json, read_jsonl, read_pt
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.relation import intervals
    from fvcore.experiments.steps import zeroshot
    from fvcore.experiments.steps.plan import unique_queries
    from fvcore.injection import inject
    from fvcore.model.model import LanguageModel
    from fvcore.trials.draws import random_heads
    from fvcore.vectors import function_vector


SCORED = [(layer, head) for layer in range(3) for head in range(4)]


def test_random_heads_are_as_many_and_others_than_the_chosen() -> None:
    top = [(2, 3), (0, 1), (1, 1)]

    sets, source = random_heads(SCORED, top, 50, "0/Q1")

    assert source == "heads that were not chosen"
    for heads in sets:
        assert len(set(heads)) == 3
        assert not set(heads) & set(top)
    assert {head for heads in sets for head in heads} == set(SCORED) - set(top)


def test_where_too_few_heads_are_left_all_of_them_are_drawn_from_and_it_is_said() -> None:
    sets, source = random_heads(SCORED, SCORED[:7], 20, "0/Q1")

    assert source == "all heads"
    assert {head for heads in sets for head in heads} == set(SCORED)
    assert all(len(set(heads)) == 7 for heads in sets)


def test_random_heads_follow_from_seed_and_q_id_alone() -> None:
    one, _ = random_heads(SCORED, SCORED[:3], 5, "0/Q1")

    assert one == random_heads(list(reversed(SCORED)), SCORED[:3], 5, "0/Q1")[0]
    assert one != random_heads(SCORED, SCORED[:3], 5, "1/Q1")[0]
    assert one != random_heads(SCORED, SCORED[:3], 5, "0/Q2")[0]


def test_the_controls_numbers_are_the_stations_own(ran: Path, llama: LanguageModel) -> None:
    folder = Folder(ran / "Q2")
    mean = read_pt(folder / layout.GLOBAL_MEAN)["clean_mean"]
    found = read_json(folder / files.RANDOM_HEADS)
    vectors = read_pt(folder / files.RANDOM_FV)["fv_random_heads"]
    rows = read_jsonl(folder / files.RANDOM_TRIALS)
    chosen = unique_queries(zeroshot.read(folder / layout.ZERO_SHOT), 3, 0)

    assert len(rows) == 2 * llama.n_layers * len(chosen)
    for draw, vector in zip(found["draws"], vectors, strict=True):
        expected = function_vector(llama, mean[:, :, None], draw["heads"])
        torch.testing.assert_close(vector, expected, rtol=0, atol=1e-6)
        assert draw["norm"] == pytest.approx(float(vector.norm()), rel=1e-6)
    for row in rows:
        example = chosen[row["idx"]]
        ids = example.prompt(llama.tokenizer).input_ids
        one = inject(llama, ids, example.target_first_token_id, vectors[row["draw"]], row["layer"])
        assert row["delta_logprob"] == pytest.approx(one.delta_logprob, abs=1e-5)
        assert row["trial_idx"] == example.trial_idx


def test_intervals_of_heads_are_over_trials_grouped_by_query(ran: Path) -> None:
    folder = Folder(ran / "Q10")
    _, rows = read_csv(folder / files.AIE_INTERVALS)
    queries = {trial.trial_idx: trial.query.input for trial in sampled.read(folder / layout.SAMPLED).trials}
    trials = read_jsonl(folder / layout.TRIAL_METRICS)
    _, aie = read_csv(folder / layout.AIE)
    scores = {(row["layer"], row["head"]): row for row in aie}

    assert len(rows) == 24 * 3
    for row in rows:
        own = [t for t in trials if (t["layer"], t["head"]) == (int(row["layer"]), int(row["head"]))]
        expected = mean_interval([t[row["metric"]] for t in own], [queries[t["trial_idx"]] for t in own], 0.95)
        assert float(row["mean"]) == expected.mean
        assert float(row["mean"]) == pytest.approx(float(scores[row["layer"], row["head"]][f"mean_{row['metric']}"]))
        assert (int(row["n_trials"]), int(row["n_queries"])) == (4, expected.n_groups)
        assert (float(row["low"]), float(row["high"])) == (expected.low, expected.high)


def test_intervals_of_the_injection_pair_every_example_with_itself(ran: Path) -> None:
    folder = Folder(ran / "Q2")
    _, found = read_csv(folder / files.INJECTION_INTERVALS)
    rows = {(row["heads"], int(row["layer"]), row["metric"]): row for row in found}
    drawn = read_jsonl(folder / files.RANDOM_TRIALS)

    assert len(rows) == len(found) == 6 * (4 * 3 + 2)
    for layer in range(6):
        top = read_jsonl(folder / f"{layout.layer_dir(layer)}/eval_trials.jsonl")
        summary = read_json(folder / f"{layout.layer_dir(layer)}/eval_summary.json")
        for metric in intervals.OF_INJECTION:
            by_example = [
                fmean(row[metric] for row in drawn if (row["layer"], row["idx"]) == (layer, idx))
                for idx in range(len(top))
            ]
            apart = [row[metric] - other for row, other in zip(top, by_example, strict=True)]
            expected = mean_interval(apart, range(len(top)), 0.95)
            row = rows["difference", layer, metric]
            assert float(row["mean"]) == pytest.approx(expected.mean, rel=1e-12)
            assert (float(row["low"]), float(row["high"])) == pytest.approx((expected.low, expected.high), rel=1e-9)
            name = "delta_acc" if metric == "delta_acc" else f"mean_{metric}"
            assert float(rows["top", layer, metric]["mean"]) == pytest.approx(summary[name], rel=1e-12, abs=1e-15)
        for name, key in (("accuracy_base", "acc_base"), ("accuracy_with", "acc_with")):
            row = rows["top", layer, name]
            assert float(row["mean"]) == pytest.approx(summary[key])
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])


def test_with_replacement_an_example_drawn_twice_is_one_witness() -> None:
    values, prompts = [1, 0, 1, 0], ["a", "b", "a", "b"]

    assert mean_interval(values, prompts, 0.95).n_groups == 2
    shares = intervals._share([{"accuracy_with": v} for v in values], "accuracy_with", prompts, 0.95)
    assert (shares.mean, shares.n) == (0.5, 2)
