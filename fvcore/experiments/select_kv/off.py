"""The OFF side: every unrelated prompt on the states of all episodes, beside the base.

States are taken one after the other, so that the cost is linear in prompts x states and the memory that of one state;
prompts are asked in batches, and the logits of as many are held at once as `eval.max_memory` has room for. A prompt with
a group is asked on the states of other groups alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fvcore.experiments.select_kv.bench import Bench, Prefixes
from fvcore.experiments.select_kv.compute import FIRST, likeliest
from fvcore.experiments.select_kv.data import OffSample, OnSample
from fvcore.experiments.select_kv.errors import OnTaskInvalid
from fvcore.experiments.select_kv.metrics import is_hit, kl, p99
from fvcore.experiments.select_kv.prefix import Prefix
from fvcore.experiments.select_kv.schemas import OffArm, OffRow, OnRow, Token, Topk, finite, number
from fvcore.fast.chunks import Advance, silent


class Answered(NamedTuple):
    """A prompt on one state. hit: None where the prompt has no answer"""

    state: str
    delta: float
    hit: bool | None


@dataclass
class _Asked:
    """A prompt, as often as it stands among those of the run, and what it was answered.

    hit, top: without a state     null: KL on a prefix of nothing     on: arm -> on each state
    """

    prompt: OffSample
    hit: bool | None = None
    top: list[Token] = field(default_factory=list)
    null: float = math.nan
    on: dict[str, list[Answered]] = field(default_factory=dict)

    def is_hit(self, logits: Tensor) -> bool | None:
        return is_hit(logits, self.prompt.answer_ids) if self.prompt.answer_ids else None


States: TypeAlias = Sequence[tuple[OnSample, OnRow]]


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
    states = list(zip(samples, rows, strict=True))[: bench.settings.eval.off_state_limit]
    asked = {_key(one): _Asked(one) for one in prompts}
    distinct = list(asked.values())
    held = bench.settings.eval.off_held(bench.runtime.info.vocab, len(distinct))
    for start in range(0, len(distinct), held):
        _ask(bench, states, distinct[start : start + held], advance)
    if not any(one.on for one in distinct):
        raise OnTaskInvalid("no OFF prompt is of another group than any state; take other prompts, or more samples")
    found = [_row(bench, prompt, asked[_key(prompt)]) for prompt in prompts]
    return _with_topk(bench, states, found, [asked[_key(prompt)] for prompt in prompts])


def state_prefixes(bench: Bench, sample: OnSample, row: OnRow) -> Prefixes:
    """A state as the ON side built it, from what its row says was kept; the demo is read anew."""
    demo = bench.read(sample)
    return bench.stands_on(sample, demo, row.selection.indices, row.selection.random[0].indices)


def _key(prompt: OffSample) -> tuple[tuple[int, ...], str]:
    """Prompts that read the same are asked once."""
    return prompt.ids, prompt.group


def _ask(bench: Bench, states: States, block: Sequence[_Asked], advance: Advance) -> None:
    """Some prompts, whose logits are held at once, without a state, on nothing, and on every state in turn."""
    base = _logits(bench, block, None)
    null = _moved(bench, _logits(bench, block, bench.builder.null()), base)
    for one, logits, moved in zip(block, base, null, strict=True):
        one.hit, one.top, one.null = one.is_hit(logits), likeliest(bench, logits), moved
    for sample, row in states:
        which = [at for at, one in enumerate(block) if not one.prompt.group or one.prompt.group != sample.group]
        some = [block[at] for at in which]
        for arm, prefix in (state_prefixes(bench, sample, row) if some else {}).items():
            answers = _logits(bench, some, prefix)
            for one, logits, moved in zip(some, answers, _moved(bench, answers, base[which]), strict=True):
                one.on.setdefault(arm, []).append(Answered(sample.sample_id, moved, one.is_hit(logits)))
            advance(bench.runtime.info.n_layers - 1, len(some))


def _logits(bench: Bench, some: Sequence[_Asked], prefix: Prefix | None) -> Tensor:
    """(prompt, vocab)"""
    sink = bench.sink if prefix is None else ()
    return bench.runtime.next_logits([[*sink, *one.prompt.ids] for one in some], prefix)


def _moved(bench: Bench, logits: Tensor, base: Tensor) -> list[float]:
    """KL of each prompt from its base; what that takes in between is of one batch."""
    n = bench.settings.eval.off_batch_size
    return [
        moved for pair in zip(torch.split(logits, n), torch.split(base, n), strict=True) for moved in kl(*pair).tolist()
    ]


def _row(bench: Bench, prompt: OffSample, asked: _Asked) -> OffRow:
    # Of one pass repeated: in another batch the same numbers are added in another order.
    again = [kl(bench.base(prompt.ids), bench.base(prompt.ids))] if prompt.index < FIRST else []
    return OffRow(
        index=prompt.index,
        sample_id=prompt.sample_id,
        group=prompt.group,
        text=prompt.text,
        query_len=len(prompt.ids),
        n_states=len(asked.on.get("select", ())),
        base_hit=asked.hit,
        noise=[finite(float(one)) for one in again],
        null_kl=finite(asked.null),
        arms={arm: _arm(found, prompt.index) for arm, found in asked.on.items()},
    )


def _with_topk(bench: Bench, states: States, rows: list[OffRow], asked: Sequence[_Asked]) -> list[OffRow]:
    """The likeliest tokens of the prompt that the 99th percentile of the gate stands on, on the state that it counts by."""
    how = bench.settings.thresholds.off_delta_reduction
    moved = {at: number(getattr(row.arms["select"], how)) for at, row in enumerate(rows) if row.arms}
    if not bench.settings.reporting.topk_tokens or not all(map(math.isfinite, moved.values())):
        return rows
    worst = p99(list(moved.values()))
    at = next(at for at, value in moved.items() if value == worst)
    state = next(one for one in states if one[0].sample_id == getattr(rows[at].arms["select"], f"{how}_state"))
    select = _logits(bench, [asked[at]], state_prefixes(bench, *state)["select"])[0]
    shown = Topk(base=asked[at].top, select=likeliest(bench, select))
    return [*rows[:at], rows[at].model_copy(update={"topk": shown}), *rows[at + 1 :]]


def _arm(found: Sequence[Answered], index: int) -> OffArm:
    """Of one prompt's answers on its states: the worst, the one that its index falls to, and the mean.

    One that is not finite is the worst there is.
    """
    worst = max(found, key=lambda one: math.inf if math.isnan(one.delta) else one.delta)
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
