"""A model with the settings of a run: how base, teacher and every student are asked, and which prefixes they stand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.data import OnSample, sink_ids
from fvcore.experiments.select_kv.errors import SelectKVRuntimeError
from fvcore.experiments.select_kv.metrics import is_hit
from fvcore.experiments.select_kv.prefix import Prefix, PrefixBuilder, last_quarter
from fvcore.experiments.select_kv.runtime import KV, Runtime
from fvcore.experiments.select_kv.selection import recent

Prefixes: TypeAlias = dict[str, Prefix]
"""By the arm that stands on them."""

KV_SOURCES = ("gather", "recompute")


@dataclass(frozen=True, slots=True)
class Bench:
    """sink: what stands before every condition, () or the BOS"""

    runtime: Runtime
    settings: Phase2
    builder: PrefixBuilder
    sink: tuple[int, ...]

    @classmethod
    def of(cls, runtime: Runtime, settings: Phase2) -> Bench:
        """Raises UnsupportedPositioning where the model's keys cannot be carried as the settings ask."""
        sink = sink_ids(settings, runtime.tokenizer)
        return cls(runtime, settings, PrefixBuilder(runtime, settings, sink), sink)

    @property
    def scoring_layers(self) -> tuple[int, ...]:
        """top25: the last quarter, one layer at least."""
        n_layers = self.runtime.info.n_layers
        return tuple(range(n_layers)) if self.settings.layer_scope.selection == "all" else last_quarter(n_layers)

    @property
    def other_source(self) -> str:
        """The source of keys and values that the settings did not choose."""
        return next(source for source in KV_SOURCES if source != self.builder.kv_source)

    def base(self, query: Sequence[int]) -> Tensor:
        """(vocab,)"""
        return self.runtime.next_logits([self.base_ids(query)])[0]

    def teacher(self, sample: OnSample) -> Tensor:
        """(vocab,): sink, demo and query in one pass."""
        return self.runtime.next_logits([self.teacher_ids(sample)])[0]

    def base_ids(self, query: Sequence[int]) -> list[int]:
        return [*self.sink, *query]

    def teacher_ids(self, sample: OnSample) -> list[int]:
        """Demo and query side by side, each tokenized for itself."""
        return [*self.sink, *sample.demo.ids, *sample.query_ids]

    def require_room(self, samples: Sequence[OnSample]) -> None:
        """Raise SelectKVRuntimeError, before anything is asked, where the model has too few positions for a teacher."""
        info, needs = self.runtime.info, {one.sample_id: len(self.teacher_ids(one)) for one in samples}
        longest = max(needs, key=lambda sample_id: needs[sample_id])
        if 0 < info.max_positions < needs[longest]:
            raise SelectKVRuntimeError(
                f"{longest}: demo and query are {needs[longest]} tokens, and {info.model_id} has {info.max_positions} "
                "positions; take shorter demos (data.synthetic.num_pairs, data.on.n_shots) or a model of longer texts"
            )

    def read(self, sample: OnSample) -> KV:
        """Keys and values of sink and demo, computed afresh."""
        return self.runtime.prefill([*self.sink, *sample.demo.ids], sink_len=len(self.sink))

    def scored(self, sample: OnSample, demo: KV) -> tuple[Tensor, Tensor]:
        """The cached teacher's logits (vocab,), and the attention that each token of the demo gets (token,)."""
        reduce = self.settings.select.query_reduce
        return self.runtime.read_demo(demo, sample.query_ids, self.scoring_layers, reduce)

    def kept(self, sample: OnSample, demo: KV, indices: Sequence[int], kv_source: str | None = None) -> Prefix:
        """The prefix of some tokens of a demo, given in the order of positions."""
        return self.builder.build(demo, sample.demo.ids, indices, kv_source=kv_source)

    def stands_on(self, sample: OnSample, demo: KV, chosen: Sequence[int], trial: Sequence[int]) -> Prefixes:
        """The prefixes of one sample that both its own query and OFF prompts are asked on.

        chosen: what was selected     trial: what the first random trial drew
        """
        last = recent(sample.demo, len(chosen)).indices
        prefixes = {
            "select": self.kept(sample, demo, chosen),
            "recent": self.kept(sample, demo, last),
            "random": self.kept(sample, demo, trial),
            "full": self.builder.full(demo, sample.demo.ids),
        }
        if self.settings.reporting.compare_kv_sources:
            prefixes[f"select_{self.other_source}"] = self.kept(sample, demo, chosen, self.other_source)
        return prefixes

    def answers(self, sample: OnSample, prefixes: Mapping[str, Prefix]) -> dict[str, Tensor]:
        """Arm -> logits (vocab,) of the sample's query, all arms in one pass."""
        logits = self.runtime.next_logits_of_prefixes(sample.query_ids, list(prefixes.values()))
        return dict(zip(prefixes, logits, strict=True))

    def is_hit(self, sample: OnSample, logits: Tensor, ids: Sequence[int], prefix: Prefix | None) -> bool:
        """Whether the answer is given: its first token, or all of it as the settings say.

        ids: what is decoded behind, the query alone where it stands on a prefix
        """
        if self.settings.eval.answer_scoring == "first_token":
            return is_hit(logits, sample.answer_ids)
        said = self.runtime.greedy(ids, prefix, len(sample.full_answer_ids))
        return self.runtime.tokenizer.decode(list(said)).strip() == sample.answer


def without_sink(prefix: Prefix) -> Prefix:
    """The selected slots alone, where they are: the sink keeps its distance to none of two prefixes that are compared."""
    hidden = prefix.sink_len + prefix.null_len
    layers = tuple((keys[:, :, hidden:], values[:, :, hidden:]) for keys, values in prefix.layers)
    return replace(prefix, layers=layers, mask=prefix.mask[hidden:], sink_len=0, null_len=0)
