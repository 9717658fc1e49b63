"""`metrics.jsonl`: a record for each metric of the run, then for each of every sample, under the plan's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fvcore.experiments.select_kv.schemas import MetricRecord, Number, OffArm, OffRow, OnRow, finite
from fvcore.experiments.select_kv.summary import Summary

ALL, RUN = "all", "run"


@dataclass(frozen=True, slots=True)
class Header:
    """What every record of a run repeats. timestamp: when the run began"""

    run_id: str
    seed: int
    timestamp: str
    model_id: str
    prefix_len: int

    def record(self, **values: Any) -> MetricRecord:
        return MetricRecord(
            run_id=self.run_id,
            seed=self.seed,
            timestamp=self.timestamp,
            model_id=self.model_id,
            prefix_len=self.prefix_len,
            **values,
        )


def records(header: Header, summary: Summary) -> Iterator[MetricRecord]:
    for step, (metric, value) in enumerate(summary.metrics().items(), start=1):
        yield header.record(
            record_type="run",
            step=step,
            split=ALL,
            mode=ALL,
            metric=metric,
            value=finite(value),
            prompt_len=0,
            episode_id=RUN,
        )
    yield from _sample_records(header, summary.on, summary.off, summary.settings.thresholds.off_delta_reduction)


def rows(found: Iterator[MetricRecord]) -> list[dict[str, Any]]:
    """As lines of the file; a run's records name no sample."""
    return [one.model_dump(exclude={"sample_id"} if one.sample_id is None else None) for one in found]


def _sample_records(
    header: Header, on: Sequence[OnRow], off: Sequence[OffRow], reduction: str
) -> Iterator[MetricRecord]:
    """ON samples first; `step` is a sample's index."""
    for row in on:
        yield from _of_sample(header, row, "on", row.episode_id, row.selection.query_len, on_metrics(row))
    episodes = {row.sample_id: row.episode_id for row in on}
    for one in off:
        if select := one.arms.get("select"):
            episode = episodes[getattr(select, f"{reduction}_state")]
            yield from _of_sample(header, one, "off", episode, one.query_len, off_metrics(select, reduction))


def _of_sample(
    header: Header, row: OnRow | OffRow, mode: str, episode_id: str, prompt_len: int, values: dict[str, Number]
) -> Iterator[MetricRecord]:
    for metric, value in values.items():
        yield header.record(
            record_type="sample",
            step=row.index,
            split="eval",
            mode=mode,
            metric=metric,
            value=value,
            prompt_len=prompt_len,
            episode_id=episode_id,
            sample_id=row.sample_id,
        )


def on_metrics(row: OnRow) -> dict[str, Number]:
    select, scores = row.arms["select"], row.selection
    found = {
        "phase2_delta_on_select": select.kl_base,
        "phase2_answer_logprob_gain": select.gain,
        "phase2_selection_score_attention": scores.attention_score,
        "phase2_selection_score_causal_drop": scores.causal_drop_score,
        "phase2_rel_kl_to_teacher_select": select.rel_kl,
        **{f"phase2_hit_{arm}": float(row.arms[arm].hit) for arm in ("base", "teacher", "select")},
    }
    unmeasured = {"phase2_selection_score_attention", "phase2_selection_score_causal_drop"}
    return {name: value for name, value in found.items() if value is not None or name not in unmeasured}


def off_metrics(select: OffArm, reduction: str) -> dict[str, Number]:
    """Of a prompt that was asked on a state; `phase2_delta_off_select` is what the gate counts."""
    return {
        "phase2_delta_off_select": getattr(select, reduction),
        "phase2_delta_off_stress_select": select.stress,
        "phase2_delta_off_typical_select": select.typical,
    }
