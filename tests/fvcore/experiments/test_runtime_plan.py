"""Which examples Step6 takes, in which order."""

from __future__ import annotations

import random

import pytest

from fvcore.trials.draws import seed_offset
from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.steps.plan import unique_queries, with_replacement
    from fvcore.experiments.steps.zeroshot import Example


def examples(**words: str) -> list[Example]:
    """`Q1="abca"`: four trials of Q1, the first and the last with one prompt."""
    rows = [(q_id, word) for q_id, text in words.items() for word in text]
    return [
        Example(
            q_id=q_id, trial_idx=i, trial_id=i, corrupted_prompt_str=f"Q: {word}\nA:", target_str=" x",
            target_first_token_id=0,
        )
        for i, (q_id, word) in enumerate(rows)
    ]  # fmt: skip


@pytest.mark.parametrize(("q_id", "offset"), [("Q1", 179), ("1Q", 49 + 2 * 81), ("Q10", 81 + 2 * 49 + 3 * 48), ("", 0)])
def test_the_seed_depends_on_the_q_id(q_id: str, offset: int) -> None:
    assert seed_offset(q_id) == offset


def test_unique_queries_keep_the_first_of_equal_prompts_and_are_shuffled_by_q() -> None:
    found = unique_queries(examples(Q1="abcab"), n_eval=50, seed=4)

    expected = [0, 1, 2]
    random.Random(4 + 179).shuffle(expected)
    assert [e.trial_idx for e in found] == expected


def test_q_ids_take_turns_until_none_is_left() -> None:
    some = examples(Q2="abc", Q10="d")
    assert [e.q_id for e in unique_queries(some, 50, 0)] == ["Q10", "Q2", "Q2", "Q2"]
    assert len(unique_queries(some, 2, 0)) == 2


def test_with_replacement_gives_exactly_what_is_asked() -> None:
    some = examples(Q2="abc", Q10="de")
    found = with_replacement(some, 7, seed=2)

    assert [e.q_id for e in found] == ["Q10", "Q2"] * 3 + ["Q10"]
    for i, example in enumerate(found):
        own = [e for e in some if e.q_id == example.q_id]
        assert example is random.Random(2 + i).choice(own)
