"""What reading the demo of one sample gives: its cache, the scores of its tokens, and what base and teacher answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from fvcore.experiments.select_kv.data import OnSample, sink_ids
from fvcore.experiments.select_kv.metrics import kl
from fvcore.experiments.select_kv.prefix import Prefix, PrefixBuilder
from fvcore.experiments.select_kv.runtime import KV, Runtime
from fvcore.experiments.select_kv.selection import Selection, candidates, select

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2


@dataclass(frozen=True, slots=True)
class Read:
    """One sample, read once."""

    sample: OnSample
    cache: KV  # of sink and demo
    teacher: Tensor  # (vocab,)
    base: Tensor  # (vocab,)
    scores: Tensor  # (token of the demo,)

    @property
    def query(self) -> tuple[int, ...]:
        return self.sample.query_ids


@dataclass(frozen=True)
class Reader:
    """Reads demos and builds prefixes of them as the settings ask, on one model."""

    settings: Phase2
    runtime: Runtime

    @cached_property
    def sink(self) -> tuple[int, ...]:
        return sink_ids(self.settings, self.runtime.tokenizer)

    @cached_property
    def builder(self) -> PrefixBuilder:
        return PrefixBuilder(self.runtime, self.settings, self.sink)

    def read(self, sample: OnSample) -> Read:
        cache = self.runtime.prefill([*self.sink, *sample.demo.ids], sink_len=len(self.sink))
        teacher, scores = self.runtime.read_demo(
            cache, sample.query_ids, scoring_layers(self.settings, self.runtime), self.settings.select.query_reduce
        )
        (base,) = self.runtime.next_logits([[*self.sink, *sample.query_ids]])
        return Read(sample, cache, teacher, base, scores)

    def chosen(self, read: Read) -> Selection:
        """The selection of the run itself."""
        sample = read.sample
        return select(self.settings, sample.demo, read.scores, self._dropped(read), index=sample.index)

    def _dropped(self, read: Read) -> Tensor | None:
        """How far the teacher moves without each candidate, where that is what chooses."""
        if self.settings.select.mode != "causal_drop_span":
            return None
        spans = candidates(self.settings, read.sample.demo)
        return kl(read.teacher, self.runtime.drop(read.cache, read.query, spans))

    def prefix(self, read: Read, kept: Sequence[int], prefix_len: int | None = None) -> Prefix:
        return self.builder.build(read.cache, read.sample.demo.ids, kept, prefix_len=prefix_len)


def scoring_layers(settings: Phase2, runtime: Runtime) -> range:
    """Whose attention scores tokens: all, or the last quarter of the layers, and at least one."""
    n = runtime.info.n_layers
    return range(n - max(1, n // 4), n) if settings.layer_scope.selection == "top25" else range(n)
