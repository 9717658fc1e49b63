"""How many tokens it takes: ON accuracy, distance to the teacher and OFF change for 1 kept token up to the whole demo.

Every method keeps the same number of tokens. Spans lie as close as they must to fill it: their distance is 0 here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from torch import Tensor

from fvcore.experiments.select_kv.bench import Bench
from fvcore.experiments.select_kv.compute import Chosen
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.data import OffSample, OnSample
from fvcore.experiments.select_kv.metrics import kl, p99, rel_kl
from fvcore.experiments.select_kv.points import clusters, mean, share
from fvcore.experiments.select_kv.prefix import Prefix
from fvcore.experiments.select_kv.selection import recent, select
from fvcore.fast.chunks import Advance, silent

WHOLE = 0
"""The budget that is the whole demo, however long."""

OFF_STATES = 16
"""States that are asked an OFF prompt, the first ones: such a prompt costs as much as ten queries."""

METHODS = ("attention_diversity_span", "delimiter_span", "random_span", "recent")


def budgets(shortest: int) -> list[int]:
    """1, 2, 4, ... below the length of the shortest demo, and the whole."""
    powers = [2**n for n in range(shortest.bit_length()) if 2**n < shortest]
    return [*powers, WHOLE]


@dataclass
class _Gathered:
    """What one method gave at one budget, sample by sample."""

    kept: list[int] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    rel: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)

    def point(self, budget: int, groups: Sequence[str]) -> dict[str, Any]:
        off = p99(self.off) if self.off else None
        found = {"accuracy": share(self.hits, groups), "rel_kl": mean(self.rel, groups), "off_p99": off}
        return {"budget": budget, "kept": sum(self.kept) / len(self.kept), **found}


def curve(
    bench: Bench,
    samples: Sequence[OnSample],
    off: Sequence[OffSample] = (),
    advance: Advance = silent,
) -> dict[str, Any]:
    """Points of every method over the budgets; each state is asked its own query, the first ones an OFF prompt of another group."""
    asked = budgets(min(len(sample.demo.ids) for sample in samples))
    tried = {budget: with_budget(bench.settings, budget) for budget in asked if budget != WHOLE}
    found = {(method, budget): _Gathered() for method in METHODS for budget in asked}
    for at, sample in enumerate(samples):
        chosen, ids = Chosen.of(bench, sample), sample.demo.ids
        kept = dict(_kept(tried, sample, chosen.scores))
        built = [bench.builder.build(chosen.demo, ids, some, prefix_len=len(some)) for some in kept.values()]
        # The whole demo is the same state whatever chose it.
        prefixes = [*built, bench.builder.full(chosen.demo, ids)]
        _gather(found, [*kept], bench, sample, chosen.cached, prefixes)
        others = [one for one in off if not one.group or one.group != sample.group]
        if others and at < OFF_STATES:
            _disturb(found, [*kept], bench, others[at % len(others)], prefixes)
        advance(0, 1)
    groups = clusters(samples)
    methods = {method: [found[method, budget].point(budget, groups) for budget in asked] for method in METHODS}
    return {"n": len(samples), "n_off": len(found[METHODS[0], WHOLE].off), "methods": methods}


Key = tuple[str, int]


def _kept(tried: Mapping[int, Phase2], sample: OnSample, scores: Tensor) -> Iterator[tuple[Key, tuple[int, ...]]]:
    """(method, budget) -> the tokens that it keeps."""
    for budget, settings in tried.items():
        for method in METHODS[:-1]:
            yield (
                (method, budget),
                select(settings, sample.demo, scores, trial=0, index=sample.index, mode=method).indices,
            )
        yield ("recent", budget), recent(sample.demo, budget).indices


def with_budget(settings: Phase2, budget: int) -> Phase2:
    """Spans of the run's length, as many as fill the budget, side by side if need be."""
    length = min(settings.select.span_len, budget)
    changed = {"select.span_len": length, "select.span_budget": ceil(budget / length), "select.min_span_distance": 0}
    return settings.changed({**changed, "prefix_len": budget})


def _rows(keys: Sequence[Key]) -> list[tuple[Key, int]]:
    """Which prefix is read for which point: its own, and the last, of the whole demo, for every method."""
    return [*((key, at) for at, key in enumerate(keys)), *(((method, WHOLE), len(keys)) for method in METHODS)]


def _gather(
    found: Mapping[Key, _Gathered],
    keys: Sequence[Key],
    bench: Bench,
    sample: OnSample,
    teacher: Tensor,
    prefixes: Sequence[Prefix],
) -> None:
    logits = bench.runtime.next_logits_of_prefixes(sample.query_ids, prefixes)
    far = rel_kl(logits, teacher, bench.base(sample.query_ids)).tolist()
    for key, at in _rows(keys):
        found[key].kept.append(len(prefixes[at].selected))
        found[key].hits.append(bench.is_hit(sample, logits[at], sample.query_ids, prefixes[at]))
        found[key].rel.append(far[at])


def _disturb(
    found: Mapping[Key, _Gathered], keys: Sequence[Key], bench: Bench, prompt: OffSample, prefixes: Sequence[Prefix]
) -> None:
    moved = kl(bench.runtime.next_logits_of_prefixes(prompt.ids, prefixes), bench.base(prompt.ids)).tolist()
    for key, at in _rows(keys):
        found[key].off.append(moved[at])
