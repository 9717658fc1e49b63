"""What datasets/relation/relationA_ex.csv promises: its form, its sizes, and effects that are real on a shipped model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fvcore.embedded.words import relations
from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import data
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.workers import Local
from fvcore.prompts import prompt_at_boundary
from tests.late import RUNNING, inference_mode

if RUNNING:
    from fvcore.experiments.relation import intervals, report
    from fvcore.experiments.relation.run import run
    from fvcore.model.model import LanguageModel


SHIPPED = Path(__file__).parents[4] / "datasets" / "relation" / "relationA_ex.csv"
KNOWN = {
    "Q1": "antonym", "Q4": "next_letter", "Q6": "prev_number", "Q8": "mirror_letter", "Q10": "next_number",
    "Q13": "across_adjective", "Q16": "leap_adjective", "Q17": "prev_letter", "Q19": "mirror_number",
}  # fmt: skip
TOO_SMALL = ["Q12", "Q14"]


@pytest.fixture(scope="module")
def shipped() -> data.Relation:
    return data.read(SHIPPED)


def test_its_form_is_that_of_the_plans_files() -> None:
    content = SHIPPED.read_bytes()

    assert content.startswith(b"id,ex_A,ex_B\r\n")
    assert content.endswith(b"\r\n")
    assert content.count(b"\n") == content.count(b"\r\n")
    assert content.isascii()


def test_its_sizes(shipped: data.Relation) -> None:
    assert len(shipped.pairs) >= 16
    assert all(re.fullmatch(r"Q\d+", q_id) for q_id in shipped.pairs)
    assert all(5 <= len(pairs) <= 40 for pairs in shipped.pairs.values())
    assert [q_id for q_id, pairs in shipped.pairs.items() if len(pairs) < 10] == TOO_SMALL
    assert shipped.dropped == ()


def test_every_q_id_is_a_relation_of_its_own(shipped: data.Relation) -> None:
    rows = [(pair.input, pair.output) for pairs in shipped.pairs.values() for pair in pairs]

    assert len(set(rows)) == len(rows)
    for q_id, pairs in shipped.pairs.items():
        assert len({pair.input for pair in pairs}) == len(pairs), q_id  # one answer a question


def test_the_shipped_models_know_nine_of_them(shipped: data.Relation) -> None:
    tables = relations()

    for q_id, name in KNOWN.items():
        assert all(tables[name][pair.input] == pair.output for pair in shipped.pairs[q_id]), q_id


def test_with_nine_demonstrations_the_model_answers_what_it_knows(shipped: data.Relation, llama: LanguageModel) -> None:
    settings = RelationSettings()
    from fvcore.experiments.relation.run import units_of

    units = {unit.name: unit for unit in units_of(shipped, Path(), settings, None)}
    for q_id in KNOWN:
        assert _accuracy(llama, units[q_id].source.sample(llama.tokenizer).trials) >= 0.8, q_id
    for q_id in ("Q2", "Q5", "Q9"):  # English words mean nothing to it
        assert _accuracy(llama, units[q_id].source.sample(llama.tokenizer).trials) <= 0.3, q_id


@inference_mode
def _accuracy(lm: LanguageModel, trials: list) -> float:  # type: ignore[type-arg]
    hits = 0
    for trial in trials:
        prompt = prompt_at_boundary(lm.tokenizer, trial.clean_prompt_str, trial.target_str)
        hits += int(lm.logits(lm.ids(prompt.input_ids))[0, -1].argmax()) == prompt.target_id
    return hits / len(trials)


def test_the_vectors_of_known_relations_do_more_than_random_heads(
    shipped: data.Relation, llama: LanguageModel, tmp_path: Path
) -> None:
    settings = RelationSettings(top_heads=4, pictures=False)

    run(shipped, tmp_path, settings, Local(llama), ["Q1", "Q8"])

    for row in report.rows(tmp_path):
        assert row["aie_low"] > 0, row["q_id"]
        assert row["difference_low"] > 0, row["q_id"]
        assert row["acc_with"] - row["acc_base"] >= 0.4, row["q_id"]
        curve = report.curve(Folder(tmp_path / row["q_id"]), intervals.DIFFERENCE, "delta_acc")
        assert curve[row["best_layer"]]["low"] > 0, row["q_id"]
