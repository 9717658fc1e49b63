"""Scores of answers, on strings and logits made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, rankdata

from fvcore.experiments.statistics import bootstrap_interval, share_interval
from fvcore.model.spec import ModelError
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.evaluation import scores


NAN = float("nan")


@pytest.mark.parametrize(
    "answer, right, f1, exact, first",
    [
        ("cold", "cold", 1, 1, 1),
        (" The Cold!", "cold", 1, 1, 1),
        ("cold", "hot", 0, 0, 0),
        ("New York City", "York New", 0.8, 0, 0),
        ("new new york", "new york", 0.8, 0, 1),
        ("ice cream", "ice", 2 / 3, 0, 1),
        ("", "cold", 0, 0, 0),
        ("the", "a", 0, 1, 1),  # nothing is left of either
        ("3.5", "35", 1, 1, 1),  # punctuation goes, also within a number
        ("l'eau", "leau", 1, 1, 1),
    ],
)
def test_generated_words(answer: str, right: str, f1: float, exact: float, first: float) -> None:
    assert scores.f1(answer, right) == pytest.approx(f1)
    assert scores.exact_match(answer, right) == exact
    assert scores.first_word(answer, right) == first


def test_f1_is_the_same_both_ways() -> None:
    for one, other in (("ice cream", "ice"), ("a new new york", "york town")):
        assert scores.f1(one, other) == pytest.approx(scores.f1(other, one))


def test_the_best_of_several_right_answers_counts() -> None:
    assert scores.best(scores.exact_match, "cat", ["dog", "Cat"]) == 1
    assert scores.best(scores.f1, "bird", ["dog", "Cat"]) == 0


@pytest.mark.parametrize(
    "generated, answer",
    [
        (" cold\n\nQ: big\nA:", "cold"),
        ("\n cold\n", "cold"),
        (" New York.\nA", "New York."),
        (" well-known", "well"),
        (": no", "no"),
        ("\n\n", ""),
        ("", ""),
    ],
)
def test_where_an_answer_ends(generated: str, answer: str) -> None:
    assert scores.answer_in(generated) == answer


def test_ranks_count_the_tokens_before_the_target() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.0, -1.0]])
    assert [int(scores.ranks(logits, torch.tensor([i]))[0]) for i in range(4)] == [2, 0, 1, 3]


def test_equal_logits_are_ordered_by_token() -> None:
    assert [int(scores.ranks(torch.tensor([[2.0, 2.0, 5.0, 2.0]]), torch.tensor([i]))[0]) for i in (0, 1, 3)] == [
        1,
        2,
        3,
    ]


def test_ranks_are_those_of_a_sort() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 17, 49])
    expected = [int(rankdata(-row)[i]) - 1 for row, i in zip(logits.numpy(), targets, strict=True)]
    assert scores.ranks(logits, targets).tolist() == expected


def test_a_logit_that_is_no_number_has_no_rank() -> None:
    with pytest.raises(ModelError, match="not numbers"):
        scores.ranks(torch.tensor([[0.0, NAN]]), torch.tensor([0]))


def test_a_token_that_a_model_never_says_has_a_rank() -> None:
    assert int(scores.ranks(torch.tensor([[0.0, -torch.inf, 1.0]]), torch.tensor([1]))[0]) == 2


def test_top_k_counts_ranks_below_k() -> None:
    assert [scores.top_k_accuracy([0, 1, 2, 3], k) for k in (1, 2, 3)] == [0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="no answers"):
        scores.top_k_accuracy([], 1)


@pytest.mark.parametrize("n_right, n", [(0, 1), (1, 1), (0, 14), (3, 14), (14, 14), (250, 1000)])
def test_the_interval_of_a_share_is_wilsons(n_right: int, n: int) -> None:
    expected = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
    found = share_interval(n_right, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_share_holds_it_and_narrows() -> None:
    few, many, always = share_interval(5, 10), share_interval(500, 1000), share_interval(10, 10)
    assert None not in (few.low, few.high, many.low, many.high, always.low)
    assert few.low < 0.5 < few.high
    assert many.high - many.low < (few.high - few.low) / 5
    assert always.high == pytest.approx(1)
    assert 0.6 < always.low < 0.8  # ten of ten are no proof of always


def test_the_interval_of_a_mean_is_that_of_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).random(40)
    expected = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    # Both are drawn: with 2000 resamples an end strays by .003 (one standard error). At 90 % it would lie .014 further in.
    found = bootstrap_interval(values.tolist())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_the_interval_of_a_mean_holds_it_and_is_the_same_again() -> None:
    values = [0.0, 0.2, 0.4, 1.0, 1.0, 0.6]
    found, point = bootstrap_interval(values), bootstrap_interval([0.5, 0.5])
    assert None not in (found.low, found.high)
    assert found.low < found.mean < found.high
    assert bootstrap_interval(values) == found
    assert (point.low, point.high) == (0.5, 0.5)
