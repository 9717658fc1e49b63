"""The OFF side: every unrelated prompt on the states of all episodes, beside the base.

States are taken one after the other, so that the cost is linear in prompts x states and the memory that of one state;
prompts are asked in batches. A prompt with a group is asked on the states of other groups alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from fvcore.experiments.select_kv.bench import Bench, Prefixes
from fvcore.experiments.select_kv.compute import FIRST, topk
from fvcore.experiments.select_kv.errors import OnTaskInvalid
from fvcore.experiments.select_kv.metrics import is_hit, kl, p99
from fvcore.experiments.select_kv.schemas import Number, OffArm, OffRow, OnRow, finite, number
from fvcore.fast.chunks import Advance, silent

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.data import OffSample, OnSample
    from fvcore.experiments.select_kv.prefix import Prefix


class Answered(NamedTuple):
    """A prompt on one state. hit: None where the prompt has no answer"""

    state: str
    delta: float
    hit: bool | None


def off_rows(
    bench: Bench,
    samples: Sequence[OnSample],
    rows: Sequence[OnRow],
    prompts: Sequence[OffSample],
    advance: Advance = silent,
) -> list[OffRow]:
    """rows: of the samples, in the same order; they say what was selected.

    Raises OnTaskInvalid where no prompt may be asked on any state.
    """
    return _Off(bench, samples, rows, prompts, advance).rows()


def state_prefixes(bench: Bench, sample: OnSample, row: OnRow) -> Prefixes:
    """A state as the ON side built it, from what its row says was kept; the demo is read anew."""
    demo = bench.read(sample)
    return bench.stands_on(sample, demo, row.selection.indices, row.selection.random[0].indices)


def n_states(bench: Bench, n_on: int) -> int:
    limit = bench.settings.eval.off_state_limit
    return n_on if limit is None else min(n_on, limit)


@dataclass
class _Off:
    """Prompts that read the same are asked once; `alike` says which of the distinct ones each prompt is."""

    bench: Bench
    samples: Sequence[OnSample]
    on: Sequence[OnRow]
    prompts: Sequence[OffSample]
    advance: Advance
    answered: dict[str, dict[int, list[Answered]]] = field(default_factory=dict)

    @cached_property
    def distinct(self) -> list[OffSample]:
        """The first of each."""
        return list({(one.ids, one.group): one for one in self.prompts}.values())

    @cached_property
    def alike(self) -> dict[tuple[tuple[int, ...], str], int]:
        return {(one.ids, one.group): at for at, one in enumerate(self.distinct)}

    @cached_property
    def base(self) -> Tensor:
        """(distinct prompt, vocab)"""
        return self._asked(range(len(self.distinct)), None)

    @cached_property
    def null(self) -> list[float]:
        """KL of each distinct prompt on a prefix of nothing."""
        prefix = self.bench.builder.null()
        return kl(self._asked(range(len(self.distinct)), prefix), self.base).tolist()

    def _asked(self, which: Sequence[int], prefix: Prefix | None) -> Tensor:
        """(prompt, vocab) of some of the distinct prompts."""
        sink = self.bench.sink if prefix is None else ()
        return self.bench.runtime.next_logits([[*sink, *self.distinct[at].ids] for at in which], prefix)

    def rows(self) -> list[OffRow]:
        for sample, row in list(zip(self.samples, self.on, strict=True))[: n_states(self.bench, len(self.on))]:
            which = [at for at, one in enumerate(self.distinct) if _unrelated(one, sample)]
            if which:
                self._ask_on(sample, row, which)
        if not self.answered:
            raise OnTaskInvalid("no OFF prompt is of another group than any state; take other prompts, or more samples")
        return self._with_topk([self._row(prompt) for prompt in self.prompts])

    def _ask_on(self, sample: OnSample, row: OnRow, which: Sequence[int]) -> None:
        for arm, prefix in state_prefixes(self.bench, sample, row).items():
            logits = self._asked(which, prefix)
            deltas = kl(logits, self.base[list(which)]).tolist()
            of_arm = self.answered.setdefault(arm, {})
            for at, one, delta in zip(which, logits, deltas, strict=True):
                hit = is_hit(one, self.distinct[at].answer_ids) if self.distinct[at].answer_ids else None
                of_arm.setdefault(at, []).append(Answered(sample.sample_id, delta, hit))
            self.advance(self.bench.runtime.info.n_layers - 1, len(which))

    def _row(self, prompt: OffSample) -> OffRow:
        at = self.alike[prompt.ids, prompt.group]
        arms = {arm: _arm(found[at], prompt.index) for arm, found in self.answered.items() if at in found}
        return OffRow(
            index=prompt.index,
            sample_id=prompt.sample_id,
            group=prompt.group,
            text=prompt.text,
            query_len=len(prompt.ids),
            n_states=len(self.answered["select"].get(at, ())),
            base_hit=is_hit(self.base[at], prompt.answer_ids) if prompt.answer_ids else None,
            noise=[self._noise(prompt)] if prompt.index < FIRST else [],
            null_kl=finite(self.null[at]),
            arms=arms,
        )

    def _noise(self, prompt: OffSample) -> Number:
        """Of one pass repeated: in another batch the same numbers are added in another order."""
        return finite(float(kl(self.bench.base(prompt.ids), self.bench.base(prompt.ids))))

    def _with_topk(self, rows: list[OffRow]) -> list[OffRow]:
        """The likeliest tokens of the prompt whose worst state is the 99th percentile, which the gate looks at."""
        stress = {row.index: number(row.arms["select"].stress) for row in rows if "select" in row.arms}
        if not self.bench.settings.reporting.topk_tokens or not all(map(math.isfinite, stress.values())):
            return rows
        worst = p99(list(stress.values()))
        shown = next(index for index, value in stress.items() if value == worst)
        return [self._shown(row) if row.index == shown else row for row in rows]

    def _shown(self, row: OffRow) -> OffRow:
        prompt = next(one for one in self.prompts if one.index == row.index)
        states = {sample.sample_id: (sample, of) for sample, of in zip(self.samples, self.on, strict=True)}
        prefix = state_prefixes(self.bench, *states[row.arms["select"].stress_state])["select"]
        select = self.bench.runtime.next_logits([prompt.ids], prefix)[0]
        base = self.base[self.alike[prompt.ids, prompt.group]]
        return row.model_copy(update={"topk": topk(self.bench, {"base": base, "select": select})})


def _unrelated(prompt: OffSample, sample: OnSample) -> bool:
    return not prompt.group or prompt.group != sample.group


def _arm(found: Sequence[Answered], index: int) -> OffArm:
    """Of one prompt's answers on its states: the worst, the one that its index falls to, and the mean.

    One that is not finite is the worst there is.
    """
    worst = max(found, key=_badness)
    typical = found[index % len(found)]
    deltas, hits = [one.delta for one in found], [one.hit for one in found if one.hit is not None]
    return OffArm(
        stress=finite(worst.delta),
        stress_state=worst.state,
        typical=finite(typical.delta),
        typical_state=typical.state,
        mean=finite(math.fsum(deltas) / len(deltas)),
        accuracy=fmean(hits) if hits else None,
    )


def _badness(one: Answered) -> float:
    return math.inf if math.isnan(one.delta) else one.delta
