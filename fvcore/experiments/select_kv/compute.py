"""The ON side: each sample's demo is read, spans are chosen, prefixes built, and its query asked under every condition.

1. base and teacher in one pass each; the demo's cache, from which the cached teacher and the attention scores come
2. spans by the select mode, by chance as often as the settings say, and the last tokens; a prefix of each
3. all students, then the same again with fresh caches for every repetition
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fvcore.experiments.select_kv.bench import Bench, Prefixes, without_sink
from fvcore.experiments.select_kv.data import Demo, OnSample
from fvcore.experiments.select_kv.metrics import answer_logprob_gain, kl, log_softmax, rel_kl, top_tokens
from fvcore.experiments.select_kv.prefix import ROTATION_MAX, Prefix
from fvcore.experiments.select_kv.runtime import KV
from fvcore.experiments.select_kv.schemas import (
    Arm,
    Number,
    OnRow,
    PrefixMetaRow,
    Repeat,
    Row,
    SelectionRow,
    SelectionTrial,
    Token,
    Topk,
    finite,
)
from fvcore.experiments.select_kv.selection import Selection, candidates, select
from fvcore.fast.chunks import Advance, silent

FIRST = 4
"""Of how many samples the noise is measured, and the likeliest tokens shown."""

REPEATED = ("full", "select")
"""The arms that a repetition asks again, in a pass of their own, so that both times are the same pass."""


def on_rows(bench: Bench, samples: Sequence[OnSample], advance: Advance = silent) -> list[OnRow]:
    rows = []
    for sample in samples:
        rows.append(on_row(bench, sample))
        advance(bench.runtime.info.n_layers - 1, 1)
    return rows


def on_row(bench: Bench, sample: OnSample) -> OnRow:
    """Everything that is measured of a sample."""
    return _Asked(bench, sample).row()


def rotation_checks(bench: Bench, sample: OnSample) -> dict[str, Number] | None:
    """What gate A holds of moved keys, and how exact the dtype lets them be; None where nothing is rotated."""
    if bench.builder.kv_source != "gather" or bench.builder.positioning_mode != "compact":
        return None
    return {
        "rotation_error": finite(bench.builder.self_test()),
        "rotation_max": ROTATION_MAX.get(bench.runtime.info.dtype, ROTATION_MAX["fp32"]),
        "block_kl": finite(block_kl(bench, sample)),
    }


def block_kl(bench: Bench, sample: OnSample) -> float:
    """KL between the second half of a demo moved to the front, and where it stands, with the query right behind it."""
    demo, half = bench.read(sample), range(len(sample.demo.ids) // 2, len(sample.demo.ids))
    moved, there = (
        without_sink(
            bench.builder.build(demo, sample.demo.ids, half, prefix_len=len(half), positioning_mode=positioning)
        )
        for positioning in ("compact", "absolute")
    )
    logits = bench.runtime.next_logits_of_prefixes(sample.query_ids, [moved, there])
    return float(kl(logits[0], logits[1]))


def selection_scores(
    bench: Bench, sample: OnSample, demo: KV, cached: Tensor
) -> tuple[list[tuple[int, int]], Tensor] | None:
    """Spans that may be chosen, and what hiding each does to the cached teacher (span,); None where it is not asked for."""
    settings = bench.settings.select
    if not (settings.causal_drop.enabled or settings.mode == "causal_drop_span"):
        return None
    spans = candidates(bench.settings, sample.demo)
    dropped = bench.runtime.drop(demo, sample.query_ids, spans)
    if settings.causal_drop.metric == "kl":
        return spans, kl(cached, dropped)
    answer = sorted(sample.answer_ids)
    before, after = log_softmax(cached)[answer].logsumexp(-1), log_softmax(dropped)[:, answer].logsumexp(-1)
    return spans, before - after


@dataclass(frozen=True)
class Chosen:
    """What a pass over a demo gave: its cache, the cached teacher, scores of its tokens and of spans, and the selection."""

    demo: KV
    cached: Tensor
    scores: Tensor
    drops: tuple[list[tuple[int, int]], Tensor] | None
    selection: Selection

    @classmethod
    def of(cls, bench: Bench, sample: OnSample) -> Chosen:
        demo = bench.read(sample)
        cached, scores = bench.scored(sample, demo)
        drops = selection_scores(bench, sample, demo, cached)
        chosen = select(bench.settings, sample.demo, scores, None if drops is None else drops[1], index=sample.index)
        return cls(demo, cached, scores, drops, chosen)

    @property
    def attention_score(self) -> Number:
        """The mean over the chosen spans of the mean attention in each."""
        return _mean([float(self.scores[start:end].double().mean()) for start, end in self.selection.spans])

    @property
    def causal_drop_score(self) -> Number:
        """None where it was not asked for, or a chosen span is no candidate (a delimiter's was moved)."""
        of = {} if self.drops is None else dict(zip(self.drops[0], self.drops[1].tolist(), strict=True))
        return _mean([of.get(span, math.nan) for span in self.selection.spans])


def _mean(values: Sequence[float]) -> Number:
    return finite(sum(values) / len(values)) if values else None


@dataclass(frozen=True)
class _Asked:
    """One sample, asked under every condition once."""

    bench: Bench
    sample: OnSample

    @cached_property
    def chosen(self) -> Chosen:
        return Chosen.of(self.bench, self.sample)

    @cached_property
    def trials(self) -> list[Selection]:
        """As many spans each as the selection really has."""
        settings, budget = self.bench.settings, len(self.chosen.selection.spans)
        return [
            select(settings, self.sample.demo, trial=trial, index=self.sample.index, mode="random_span", budget=budget)
            for trial in range(settings.eval.n_random_trials)
        ]

    @cached_property
    def prefixes(self) -> Prefixes:
        """Of every student; the random trials by `random_<trial>`."""
        bench, demo, chosen = self.bench, self.chosen.demo, self.chosen.selection.indices
        found = bench.stands_on(self.sample, demo, chosen, self.trials[0].indices)
        found["random_0"] = found.pop("random")
        for trial, selection in enumerate(self.trials[1:], start=1):
            found[f"random_{trial}"] = bench.kept(self.sample, demo, selection.indices)
        return found | {"null": bench.builder.null()}

    @cached_property
    def base(self) -> Tensor:
        return self.bench.base(self.sample.query_ids)

    @cached_property
    def teacher(self) -> Tensor:
        return self.bench.teacher(self.sample)

    @cached_property
    def students(self) -> dict[str, Tensor]:
        again = {name: self.prefixes[name] for name in REPEATED}
        once = {name: prefix for name, prefix in self.prefixes.items() if name not in REPEATED}
        return self.bench.answers(self.sample, again) | self.bench.answers(self.sample, once)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        n_demo, query = len(self.sample.demo.ids), self.sample.query_ids
        teacher_ids = self.bench.teacher_ids(self.sample)
        asked: dict[str, tuple[Tensor, int, Sequence[int], Prefix | None]] = {
            "base": (self.base, 0, self.bench.base_ids(query), None),
            "teacher": (self.teacher, n_demo, teacher_ids, None),
            "teacher_cached": (self.chosen.cached, n_demo, teacher_ids, None),
        }
        for name, prefix in self.prefixes.items():
            asked[name] = (self.students[name], len(prefix.selected), query, prefix)
        logits = torch.stack([one[0] for one in asked.values()])
        of_base, of_teacher = kl(logits, self.base).tolist(), kl(logits, self.teacher).tolist()
        relative = rel_kl(logits, self.teacher, self.base).tolist()
        return {
            name: Arm(
                hit=self.bench.is_hit(self.sample, own, ids, prefix),
                kept=kept,
                kl_base=finite(of_base[at]),
                kl_teacher=finite(of_teacher[at]),
                rel_kl=finite(relative[at]),
                gain=finite(answer_logprob_gain(own, self.base, self.sample.answer_ids)),
            )
            for at, (name, (own, kept, ids, prefix)) in enumerate(asked.items())
        }

    def row(self) -> OnRow:
        sample, demo = self.sample, self.sample.demo
        again = [self.bench.base(sample.query_ids)] if sample.index < FIRST else []
        return OnRow(
            **_same(OnRow, sample),
            base_teacher_kl=finite(float(kl(self.base, self.teacher))),
            teacher_base_kl=finite(float(kl(self.teacher, self.base))),
            teacher_cache_kl=finite(float(kl(self.chosen.cached, self.teacher))),
            noise=[finite(float(kl(logits, self.base))) for logits in again],
            arms={name: arm for name, arm in self.arms.items() if not name.startswith("random_")},
            random=self._random_arms(),
            repeats=[self._repeat(run) for run in range(1, self.bench.settings.eval.repro_runs)],
            selection=self._selection_row(),
            prefix=prefix_meta(self.bench, sample, self.prefixes["select"]),
            tokens=texts_of(demo),
            roles=list(demo.roles),
            scores=[finite(score) for score in self.chosen.scores.tolist()],
            topk=self._topk() if sample.index < FIRST and self.bench.settings.reporting.topk_tokens else None,
        )

    def _random_arms(self) -> list[Arm]:
        return [self.arms[f"random_{trial}"] for trial in range(len(self.trials))]

    def _repeat(self, run: int) -> Repeat:
        """Read, chosen, built and asked anew; nothing of the first time is used."""
        bench, sample, again = self.bench, self.sample, Chosen.of(self.bench, self.sample)
        prefixes = {
            "full": bench.builder.full(again.demo, sample.demo.ids),
            "select": bench.kept(sample, again.demo, again.selection.indices),
        }
        logits = bench.answers(sample, prefixes)
        hits = {one: bench.is_hit(sample, logits[one], sample.query_ids, prefixes[one]) for one in REPEATED}
        difference = max(float((logits[name] - self.students[name]).abs().max()) for name in REPEATED)
        return Repeat(
            run=run,
            full_hit=hits["full"],
            select_hit=hits["select"],
            max_abs_logit_diff=finite(difference),
            same_selection=again.selection == self.chosen.selection,
        )

    def _selection_row(self) -> SelectionRow:
        bench, sample, chosen, demo = self.bench, self.sample, self.chosen.selection, self.sample.demo
        ids = [demo.ids[index] for index in chosen.indices]
        drawn = zip(self.trials, self._random_arms(), strict=True)
        return SelectionRow(
            **_same(SelectionRow, sample, chosen) | {"mode": "on"},
            selection_mode=chosen.mode,
            aggregation="mean",
            query_reduce=bench.settings.select.query_reduce,
            layer_ids=list(bench.scoring_layers),
            demo_len=len(demo.ids),
            query_len=len(sample.query_ids),
            span_ranks=list(chosen.ranks),
            span_scores=[finite(score) for score in chosen.scores],
            selected_token_ids=ids,
            selected_token_text=[demo.text[slice(*demo.offsets[index])] for index in chosen.indices],
            selected_token_count=len(ids),
            fewer_spans=chosen.fewer,
            contains_value_token=any(demo.roles[index] == "value" for index in chosen.indices),
            contains_answer_token=not set(ids).isdisjoint(sample.answer_ids),
            attention_score=self.chosen.attention_score,
            causal_drop_score=self.chosen.causal_drop_score,
            random=[
                SelectionTrial(trial=at, hit=arm.hit, **_same(SelectionTrial, one))
                for at, (one, arm) in enumerate(drawn)
            ],
        )

    def _topk(self) -> Topk:
        logits = {"base": self.base, "teacher": self.teacher, "select": self.students["select"]}
        return Topk(**{name: likeliest(self.bench, one) for name, one in logits.items()})


def likeliest(bench: Bench, logits: Tensor) -> list[Token]:
    """The likeliest tokens of a distribution (vocab,), as many as the settings ask for."""
    shares = top_tokens(torch.nan_to_num(logits), bench.settings.reporting.topk_tokens)
    return [(token, bench.runtime.tokenizer.decode([token]), share) for token, share in shares]


def texts_of(demo: Demo) -> list[str]:
    """The text of each token, with what its tokenizer drops before it: together they are the demo."""
    before = [0, *(end for _, end in demo.offsets[:-1])]
    return [demo.text[start:end] for start, (_, end) in zip(before, demo.offsets, strict=True)]


def prefix_meta(bench: Bench, sample: OnSample, prefix: Prefix) -> PrefixMetaRow:
    """Where the slots of a prefix and the tokens of the sample's query stand."""
    n_query = len(sample.query_ids)
    return PrefixMetaRow(
        **_same(PrefixMetaRow, sample, prefix),
        prefix_len=bench.settings.prefix_len,
        effective_prefix_len=len(prefix.selected),
        null_pad_tokens=prefix.null_len,
        cache_len=prefix.n_slots,
        query_position_first=prefix.next_position,
        query_position_last=prefix.next_position + n_query - 1,
        attention_mask_len=prefix.n_slots + n_query,
        attention_mask_sum=sum(prefix.mask) + n_query,
    )


def _same(row: type[Row], *of: Any) -> dict[str, Any]:
    """What a row calls as its sources do."""
    return {name: getattr(one, name) for one in of for name in row.model_fields if hasattr(one, name)}
