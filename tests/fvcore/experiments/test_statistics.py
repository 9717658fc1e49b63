"""Intervals against scipy's own, against values worked out by hand, and against what they promise."""

from __future__ import annotations

import math
from random import Random

import pytest
from scipy import stats

from fvcore.experiments.statistics import (
    adjusted,
    bootstrap_interval,
    fisher,
    mean_interval,
    percentile,
    share_interval,
)

VALUES = [0.3, -0.1, 0.25, 0.4, 0.05, 0.2, -0.3]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_with_every_query_once_the_interval_is_students(confidence: float) -> None:
    found = mean_interval(VALUES, range(len(VALUES)), confidence)
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval(confidence)

    assert found.mean == pytest.approx(sum(VALUES) / 7, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert (found.n, found.n_groups) == (7, 7)


def test_queries_that_are_asked_equally_often_count_once_each() -> None:
    thrice, groups = VALUES * 3, list(range(7)) * 3

    found, once = mean_interval(thrice, groups, 0.95), mean_interval(VALUES, range(7), 0.95)

    assert (found.low, found.high) == pytest.approx((once.low, once.high), rel=1e-12)
    assert (found.n, found.n_groups) == (21, 7)
    as_if_apart = mean_interval(thrice, range(21), 0.95)
    assert as_if_apart.high is not None
    assert once.high is not None
    assert as_if_apart.high - as_if_apart.mean < 0.6 * (once.high - once.mean)


def test_groups_of_unequal_size_by_hand() -> None:
    """Mean 1; the groups deviate by -1 + 0 = -1 and by 1: variance (1 + 1) / 9 * 2 / 1, one degree of freedom."""
    found = mean_interval([0.0, 1.0, 2.0], ["a", "a", "b"], 0.5)

    assert found.mean == 1.0
    assert found.high == pytest.approx(1.0 + 1.0 * math.sqrt(4 / 9), rel=1e-12)  # t at 75 % with one degree is 1
    assert found.low == pytest.approx(1.0 - math.sqrt(4 / 9), rel=1e-12)


def test_one_query_says_nothing_of_the_spread() -> None:
    found = mean_interval([0.1, 0.2, 0.3], ["a"] * 3, 0.95)

    assert (found.low, found.high, found.n_groups) == (None, None, 1)
    assert found.mean == pytest.approx(0.2)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Trials of the same query agree in part, as they do in a run: 25 trials over 12 queries."""
    rng, hits, naive_hits, n_runs = Random(0), 0, 0, 600
    for _ in range(n_runs):
        of_query = [rng.gauss(0, 1) for _ in range(12)]
        groups = [rng.randrange(12) for _ in range(25)]
        values = [of_query[group] + rng.gauss(0, 0.3) for group in groups]
        found, naive = mean_interval(values, groups, 0.9), mean_interval(values, range(25), 0.9)
        hits += found.low is not None and found.high is not None and found.low <= 0 <= found.high
        naive_hits += naive.low is not None and naive.high is not None and naive.low <= 0 <= naive.high

    assert hits / n_runs > 0.84
    assert naive_hits / n_runs < 0.78  # what a trial for a witness would claim


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 14)])
def test_a_share_has_wilsons_interval(hits: int, n: int) -> None:
    z = stats.norm.ppf(0.975)
    centre = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(hits * (n - hits) / n + z**2 / 4)

    found = share_interval(hits, n, 0.95)

    assert found.mean == hits / n
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.2


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([4, 1, 3, 2], 50, 2),
        ([4, 1, 3, 2], 51, 3),
        ([4, 1, 3, 2], 0, 1),
        ([4, 1, 3, 2], 100, 4),
        (range(1, 1001), 99.9, 999),
    ],
)
def test_the_nearest_rank_is_one_of_the_values(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)


def test_discoveries_are_those_of_benjamini_and_hochbergs_step_up() -> None:
    p_values = [0.041, 0.005, 0.9, 0.03, 0.012]
    found = adjusted(p_values)

    # By hand: p * n / rank, then the smallest from the right.
    assert found == pytest.approx([0.05125, 0.025, 0.9, 0.05, 0.03])
    assert adjusted([]) == []


def test_fishers_p_is_the_hypergeometric_tail() -> None:
    """All three of three against none of three: 2 of the 20 tables with these margins are as extreme."""
    assert fisher(3, 0, 0, 3) == pytest.approx(2 / 20)


def test_the_bootstrap_of_equal_values_is_a_point_and_else_holds_the_mean() -> None:
    assert (bootstrap_interval([0.5] * 4).low, bootstrap_interval([0.5] * 4).high) == (0.5, 0.5)
    found = bootstrap_interval(VALUES)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    assert bootstrap_interval(VALUES) == found
