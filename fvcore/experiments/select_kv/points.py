"""A point of a curve: how many answers were right, or how far something moved, with its interval, as plain JSON values."""

from collections.abc import Sequence
from typing import TypeAlias

from fvcore.experiments.select_kv.data import OnSample
from fvcore.experiments.statistics import Interval, mean_interval, share_interval

Point: TypeAlias = dict[str, float | int | None]


def share(hits: Sequence[bool], groups: Sequence[str]) -> Point:
    """Of samples that hang together in groups; Wilson's interval where each is a group of its own, or all are alike."""
    if len(set(groups)) in (1, len(groups)) or len(set(hits)) == 1:
        return _point(share_interval(sum(hits), len(hits)))
    found = mean_interval([float(hit) for hit in hits], groups)
    low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (found.low, found.high))
    return _point(Interval(found.mean, low, high, found.n, found.n_groups))


def mean(values: Sequence[float], groups: Sequence[str]) -> Point:
    """Student's t over groups; over the values where there is one group or none."""
    own = list(map(str, range(len(values)))) if len(set(groups)) == 1 else groups
    return _point(mean_interval(values, own))


def clusters(samples: Sequence[OnSample]) -> list[str]:
    """What samples hang together by: their relation, or nothing."""
    return [sample.relation or sample.sample_id for sample in samples]


def _point(found: Interval) -> Point:
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
