"""Confidence intervals, over trials of which several may ask the same query."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` and `high` are None where a single group says nothing of the spread. `n_groups`: how many different queries."""

    mean: float
    low: float | None
    high: float | None
    n: int
    n_groups: int


def mean_interval(values: Sequence[float], groups: Sequence[Hashable], confidence: float) -> Interval:
    """Student's t interval of a mean whose values hang together in groups.

    The standard error adds up what each group deviates in all, times G / (G - 1) for G groups, with G - 1 degrees of
    freedom; where every value is a group of its own, that is the usual s / sqrt(n). A query that is asked five times
    counts as one witness, not as five.
    """
    n, mean = len(values), fmean(values)
    apart: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        apart.setdefault(group, []).append(value - mean)
    g = len(apart)
    if g < 2:
        return Interval(mean, None, None, n, g)
    variance = math.fsum(math.fsum(group) ** 2 for group in apart.values()) / n**2 * g / (g - 1)
    half = _t(confidence, g - 1) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, n, g)


def share_interval(hits: int, n: int, confidence: float) -> Interval:
    """Wilson's interval of a share of independent trials; it has a width where all of them succeed."""
    from scipy.stats import binomtest

    found = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Interval(hits / n, float(found.low), float(found.high), n, n)


@lru_cache
def _t(confidence: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))
