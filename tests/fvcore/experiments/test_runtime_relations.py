"""Trials of relations go through the same steps: means and effects by q_id, then averaged over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.folder import Folder
from fvcore.experiments.steps import layout, sampled
from fvcore.experiments.steps.sampled import Draw, SampledMeta, SampledTrials
from fvcore.experiments.steps.scores import read_scores
from fvcore.experiments.steps.settings import STEPS, StepSettings
from fvcore.formats import read_csv, read_json, read_pt
from fvcore.model.tokenizer import Tokenizer
from fvcore.trials.fixed import WordPair
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.activations import mean_head_activations
    from fvcore.effects import causal_indirect_effect
    from fvcore.experiments.steps import cases
    from fvcore.experiments.steps.run import run
    from fvcore.model.model import LanguageModel


WORDS = {
    "Q2": [("hot", "cold"), ("big", "small"), ("old", "young"), ("rich", "poor"), ("dark", "bright")],
    "Q10": [("cold", "hot"), ("small", "big"), ("young", "old"), ("poor", "rich"), ("bright", "dark")],
}
STEPS_WITHOUT_PICTURES = [step for step in STEPS if step != "heatmap"]


@dataclass(frozen=True)
class Relations:
    """Some trials of each q_id, labels moved by one; the trials of the q_ids take turns."""

    n_trials: dict[str, int]

    def settings(self) -> dict[str, Any]:
        return {"source": "relation_csv", "n_trials": self.n_trials}

    def sample(self, tokenizer: Tokenizer) -> SampledTrials:
        draws = sorted(
            (draw for q in self.n_trials for draw in self._draws(q)), key=lambda d: d.query_source_index or 0
        )
        meta = SampledMeta(source="relation_csv", relation_csv_path="r.csv", seed=0, n_trials=0, n_shots=3, n_demos=3)
        return sampled.of_draws(draws, tokenizer, meta)

    def _draws(self, q_id: str) -> Sequence[Draw]:
        pairs = [WordPair(input=a, output=b) for a, b in WORDS[q_id]]
        found = []
        for query in range(self.n_trials[q_id]):
            rows = [(query + 1 + i) % len(pairs) for i in range(3)]
            labels = [pairs[row].output for row in (*rows[1:], rows[0])]
            found.append(Draw.of([(row, pairs[row]) for row in rows], labels, (query, pairs[query]), q_id))
        return found


@pytest.fixture(scope="module")
def both(llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("relations"))
    run(llama, folder.root, StepSettings(top_heads=5), Relations({"Q2": 3, "Q10": 2}), STEPS_WITHOUT_PICTURES)
    return folder


def test_each_q_id_has_means_and_effects_of_its_own(both: Folder, llama: LanguageModel) -> None:
    found = cases.of(llama, sampled.read(both / layout.SAMPLED))
    effects = {}
    for q_id in WORDS:
        own = [case for case in found.cases if case.trial.q_id == q_id]
        means = mean_head_activations(llama, [(case.clean.input_ids, case.clean_slots) for case in own])
        clean = read_pt(both / layout.q_mean(q_id))["clean_mean"]
        torch.testing.assert_close(clean, means[:, :, -1], rtol=0, atol=5e-6)
        each = [
            causal_indirect_effect(
                llama, case.corrupted.input_ids, case.corrupted.target_id, case.corrupted_slots, means
            )
            for case in own
        ]
        effects[q_id] = torch.stack(each).mean(dim=0)

    _, rows = read_csv(both / layout.CIE)
    assert [row["q_id"] for row in rows] == ["Q10"] * 24 + ["Q2"] * 24  # sorted as strings
    for row in rows:
        expected = float(effects[row["q_id"]][int(row["layer"]), int(row["head"])])
        assert float(row["mean_delta_p"]) == pytest.approx(expected, abs=1e-6)
        assert int(row["n_trials"]) == {"Q2": 3, "Q10": 2}[row["q_id"]]
    average = (effects["Q2"] + effects["Q10"]) / 2
    for row in read_scores(both / layout.AIE, "mean_delta_p"):
        assert row["mean_delta_p"] == pytest.approx(float(average[row["layer"], row["head"]]), abs=1e-6)
        assert (row["n_qid"], row["n_trials"]) == (2, 5)
    assert float((effects["Q2"] - effects["Q10"]).abs().max()) > 1e-3  # or nothing would be shown


def test_the_mean_over_q_ids_is_unweighted_and_of_the_last_slot(both: Folder) -> None:
    own = [read_pt(both / layout.q_mean(q_id))["clean_mean"] for q_id in ("Q10", "Q2")]
    average = read_pt(both / layout.MEANS)

    assert average.shape == (6, 4, 32)
    torch.testing.assert_close(average, (own[0] + own[1]) / 2)
    assert torch.equal(average, read_pt(both / layout.GLOBAL_MEAN)["clean_mean"])
    assert not (both / layout.AIE_JSON).exists()


def test_step6_takes_the_q_ids_in_turn_and_counts_each(both: Folder) -> None:
    lines = (both / "artifacts/step6/layer_3/eval_trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["q_id"] for line in lines] == ["Q10", "Q2", "Q10", "Q2", "Q2"]
    value = read_json(both / "artifacts/step6/layer_3/step6_results_tiny-llama_layer3_n5.json")
    assert {q_id: one["n_eval"] for q_id, one in value["per_qid"].items()} == {"Q10": 2, "Q2": 3}
    assert value["matrix"]["__global__"].keys() == {"Q10", "Q2"}
    assert read_json(both / "artifacts/step6/layer_3/eval_meta.json")["eval_scope"] == "all_qids"
    assert read_json(both / layout.ALL_LAYERS)["q_id"] == "__all__"


def test_one_q_id_gives_a_vector_of_its_own(llama: LanguageModel, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    run(llama, tmp_path, StepSettings(top_heads=5, edit_layer=3), Relations({"Q2": 3}))

    meta = read_json(folder / layout.FV_META)
    assert (meta["fv_type"], meta["fv_source_qid"]) == ("qid", "Q2")
    assert (folder / layout.heatmap("Q2")).is_file()
    assert read_json(folder / layout.ALL_LAYERS)["q_id"] == "Q2"
    rows = read_json(folder / layout.SAMPLED)["trials"]
    assert (rows[0]["query_source_index"], rows[0]["demo_source_indices"]) == (0, [1, 2, 3])
    snapshot = read_json(folder / layout.ZERO_SHOT)["trials"]
    assert [(row["q_id"], row["query_source_index"]) for row in snapshot] == [("Q2", 0), ("Q2", 1), ("Q2", 2)]
