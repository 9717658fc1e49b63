"""The draws of a relation's trials, held against the format's rules written out once more."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fvcore.experiments.relation.data import RelationError, RelationSource, draw
from fvcore.experiments.steps.sampled import Draw
from fvcore.trials.fixed import WordPair
from tests.late import RUNNING

if RUNNING:
    from fvcore.model.model import LanguageModel


KNOWN = [
    ("Q1", 2, (3, 4), ("out4", "out3")),
    ("Q1", 3, (2, 1), ("out2", "out1")),
    ("Q1", 2, (3, 0), ("out0", "out3")),
]


def _pairs(n: int, prefix: str = "") -> tuple[WordPair, ...]:
    return tuple(WordPair(input=f"{prefix}in{i}", output=f"{prefix}out{i}") for i in range(n))


def _as_the_format_has_it(pairs: dict[str, tuple[WordPair, ...]], n_trials: int, n_demos: int, seed: int) -> list[Any]:
    rng, records = random.Random(seed), []
    for q_id in pairs:
        n = len(pairs[q_id])
        for _ in range(n_trials):
            query = rng.randrange(n)
            candidates = [i for i in range(n) if i != query]
            rng.shuffle(candidates)
            chosen = candidates[:n_demos]
            outputs = [pairs[q_id][i].output for i in chosen]
            original = outputs.copy()
            rng.shuffle(outputs)
            if outputs == original and len(outputs) > 1:
                rng.shuffle(outputs)
            records.append((q_id, query, tuple(chosen), tuple(outputs)))
    rng.shuffle(records)
    return records


def _record(one: Draw) -> Any:
    rows, labels = tuple(one.demo_source_indices or ()), tuple(pair.output for pair in one.demos_corrupted)
    return one.q_id, one.query_source_index, rows, labels


@pytest.mark.parametrize("seed", [0, 1, 17])
@pytest.mark.parametrize("n_demos", [1, 2, 3, 9])
def test_draws_are_those_of_the_format(seed: int, n_demos: int) -> None:
    pairs = {"Q2": _pairs(10), "Q10": _pairs(14, "x")}

    found = draw(pairs, 25, n_demos, seed)

    assert [_record(one) for one in found] == _as_the_format_has_it(pairs, 25, n_demos, seed)


def test_known_draws_of_seed_0() -> None:
    """Fixed once, so that rules that are changed in both places are seen too."""
    found = [_record(one) for one in draw({"Q1": _pairs(5)}, 3, 2, 0)]

    assert found == KNOWN


def test_two_demonstrations_that_stay_in_place_are_shuffled_once_more_and_may_stay() -> None:
    found = draw({"Q1": _pairs(4)}, 200, 2, 0)
    in_place = sum(one.demos_clean == one.demos_corrupted for one in found)

    assert 0.15 * 200 < in_place < 0.35 * 200  # a quarter; half of them, had there been no second shuffle


def test_the_query_is_never_among_the_demonstrations_and_is_drawn_again_and_again() -> None:
    found = draw({"Q1": _pairs(10)}, 25, 9, 0)

    for one in found:
        assert one.query_source_index not in (one.demo_source_indices or ())
        assert len(set(one.demo_source_indices or ())) == 9
        assert one.demo_order == list(range(9))
        assert sorted(p.output for p in one.demos_corrupted) == sorted(p.output for p in one.demos_clean)
    assert len({one.query_source_index for one in found}) < len(found)


def test_the_last_shuffle_mixes_the_q_ids() -> None:
    found = [one.q_id for one in draw({"Q1": _pairs(10), "Q2": _pairs(10)}, 25, 3, 0)]

    assert sorted(found) == ["Q1"] * 25 + ["Q2"] * 25
    assert found != sorted(found)


def test_a_q_id_with_one_row_too_few_is_refused() -> None:
    with pytest.raises(RelationError, match="q_id Q1: 9 rows; 9 demonstrations and a query need 10"):
        draw({"Q1": _pairs(9)}, 1, 9, 0)


def test_a_source_restarts_the_generator_and_writes_where_words_come_from(llama: LanguageModel) -> None:
    pairs = _pairs(10)
    source = RelationSource("Q3", pairs, "some/relation.csv", 5, 3, 0)

    found = source.sample(llama.tokenizer)

    assert found.meta.source == "relation_csv"
    assert (found.meta.relation_csv_path, found.meta.n_trials, found.meta.n_demos) == ("some/relation.csv", 5, 3)
    alone = draw({"Q3": pairs}, 5, 3, 0)
    for idx, (trial, one) in enumerate(zip(found.trials, alone, strict=True)):
        assert (trial.q_id, trial.trial_idx, trial.trial_id) == ("Q3", idx, idx)
        assert trial.query_source_index == one.query_source_index
        assert trial.demo_source_indices == one.demo_source_indices
        assert trial.demo_order == [0, 1, 2]
        assert trial.query == pairs[one.query_source_index or 0]
        assert trial.target_str == f" {trial.query.output}"
        assert trial.corrupted_prompt_str.endswith(f"Q: {trial.query.input}\nA:")
        for at, row in enumerate(trial.demo_source_indices or ()):
            assert trial.demos_clean[at] == pairs[row]


def test_a_source_depends_on_its_pairs_and_not_on_where_the_file_lies() -> None:
    source = RelationSource("Q3", _pairs(10), "a.csv", 5, 3, 0)

    assert source.settings() == RelationSource("Q3", _pairs(10), "b.csv", 5, 3, 0).settings()
    assert source.settings() != RelationSource("Q3", _pairs(11), "a.csv", 5, 3, 0).settings()
