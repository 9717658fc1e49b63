"""What numbers of trials say beyond their mean: intervals, tests of many at once, percentiles.

Every interval is two-sided at `confidence`. scipy computes where it has the method; it is imported when it is used.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from statistics import fmean

CONFIDENCE = 0.95
N_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` and `high` are None where a single group says nothing of the spread. `n_groups`: how many different queries."""

    mean: float
    low: float | None
    high: float | None
    n: int
    n_groups: int


def mean_interval(values: Sequence[float], groups: Sequence[Hashable], confidence: float = CONFIDENCE) -> Interval:
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


@lru_cache
def _t(confidence: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))


def share_interval(hits: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval of a share of independent trials: inside 0 and 1, and of some width also where all succeed."""
    from scipy.stats import binomtest

    ends = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Interval(hits / n, float(ends.low), float(ends.high), n, n)


def bootstrap_interval(values: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean; of equal values it is a point."""
    import numpy as np
    from scipy.stats import bootstrap

    mean, n = fmean(values), len(values)
    if len(set(values)) == 1:
        return Interval(mean, values[0], values[0], n, n)
    ends = bootstrap(
        (values,), np.mean, n_resamples=N_RESAMPLES, confidence_level=confidence, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(mean, float(ends.low), float(ends.high), n, n)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values, in the order given; those at most q are discoveries at the rate q."""
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values, method="bh")] if p_values else []


def fisher(both: int, first: int, second: int, neither: int) -> float:
    """Fisher's exact p-value, two-sided, of the table [[both, first], [second, neither]] of counts."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[both, first], [second, neither]]).pvalue)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `percent` of all values do not exceed.

    >>> percentile([4, 1, 3, 2], 50)
    2
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(
            f"percentile {percent} of {len(values)} values; expected one from 0 to 100, of at least one value"
        )
    # As it is written: 99.9 in binary is a little more, and would ask for one rank more.
    rank = math.ceil(Fraction(str(percent)) * len(values) / 100)
    return sorted(values)[max(rank, 1) - 1]
