"""What a run came to, as its files say it: `report_phase2.json`, and the records of `metrics.jsonl` by the plan's names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fvcore.exits import in_one_line
from fvcore.experiments.select_kv import files, gates
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.schemas import (
    ErrorReport,
    MetricRecord,
    Number,
    OffArm,
    OffRow,
    OnRow,
    Report,
    finite,
)
from fvcore.experiments.select_kv.summary import Summary

ALL, RUN = "all", "run"
ARTIFACTS = (
    files.METRICS, files.CONFIG, files.SELECTION, files.PREFIX_META, files.RUNTIME_META, files.OFF_STRESS,
    files.ON_ROWS, files.OFF_ROWS,
)  # fmt: skip
"""What every report points to, relative to the run's folder."""


@dataclass(frozen=True)
class Verdict:
    """A run that is judged. runtime: what `hf_runtime_meta.json` holds     began: the time of every record"""

    run_id: str
    summary: Summary
    runtime: Mapping[str, Any]
    began: str

    @cached_property
    def measured(self) -> gates.Measured:
        return self.summary.measured()

    @cached_property
    def judged(self) -> gates.Judged:
        return gates.Judged.of(self.measured)

    @property
    def settings(self) -> Phase2:
        """As resolved, with what `auto` came to."""
        return self.summary.settings

    def report(self, times: Mapping[str, float], curves: Sequence[str]) -> Report:
        """times: seconds of each stage     curves: files of those that were asked for"""
        summary, settings, runtime, judged = self.summary, self.settings, self.runtime, self.judged
        return Report(
            run_id=self.run_id,
            plan_version=settings.plan_version,
            status="pass" if judged.passed else "fail",
            final_pass=judged.passed,
            failure_reason=judged.failure_reason,
            gateA_pass=judged.gates["A"].passed,
            gateB_pass=judged.gates["B"].passed,
            device=runtime["device"],
            dtype=runtime["dtype"],
            model_id=runtime["model_id"],
            model_revision=runtime["revision"],
            decoding=settings.eval.decoding,
            answer_scoring=settings.eval.answer_scoring,
            positioning_mode=settings.injection.positioning_mode,
            padding_mode=settings.prefix.padding_mode,
            kv_source=settings.injection.kv_source,
            select=settings.select.model_dump(mode="json"),
            layer_scope=settings.layer_scope.model_dump(mode="json"),
            prefix_len=settings.prefix_len,
            sink_len=summary.on[0].prefix.sink_len,
            thresholds=self._thresholds(),
            gates=self._gates(),
            metrics={name: finite(value) for name, value in summary.metrics().items()},
            intervals=summary.intervals(),
            on=summary.on_table(),
            off=summary.off_table(),
            reproducibility=summary.reproducibility(),
            sample_counts=self._counts(),
            topk={"on": _topk(summary.on), "off_worst": _topk(summary.off)},
            memory=self._memory(),
            timings_s=dict(times),
            warnings=[*summary.warnings(), *runtime["warnings"]],
            artifacts={name.rpartition("/")[2].partition(".")[0]: name for name in (*ARTIFACTS, *curves)},
        )

    def _thresholds(self) -> dict[str, Any]:
        """As the settings have them, and the eps that were derived."""
        derived = asdict(self.measured.thresholds)
        return self.settings.thresholds.model_dump(mode="json") | {name: finite(x) for name, x in derived.items()}

    def _gates(self) -> dict[str, dict[str, Any]]:
        """What else the plan asks of each stands behind its checks."""
        measured, b = self.measured, self.judged.gates["B"]
        of_b = {
            "on_eval_valid": "on_eval_invalid" not in b.failed_checks,
            "acc_base": measured.acc_base,
            "acc_select": measured.acc_select,
            "acc_random_mean": measured.acc_random_mean,
            "random_accs": list(measured.random_accs),
            "advisory_select_mode": measured.advisory,
        }
        return {
            "A": _gate(self.judged.gates["A"]) | {"eps_noise": finite(self.summary.eps_noise)},
            "B": _gate(b) | of_b,
        }

    def _memory(self) -> dict[str, int | None]:
        """What bounds the OFF side: rows of a pass, the bytes they may take, and what of them is held at once."""
        asked, vocab = self.settings.eval, self.runtime["vocab"]
        held = asked.off_held(vocab, self.summary.n_off_unique) * vocab * 4
        return {"off_batch_size": asked.off_batch_size, "max_memory": asked.max_memory, "base_logits_bytes": held}

    def _counts(self) -> dict[str, int]:
        on, off, limit = self.summary.on, self.summary.off, self.settings.eval.off_state_limit
        return {
            "on": len(on),
            "off": len(off),
            "total": len(on) + len(off),
            "off_unique": self.summary.n_off_unique,
            "off_asked": sum(row.n_states > 0 for row in off),
            "states": len(on[:limit]),
            "boundary_retokenization_mismatch": sum(row.boundary_mismatch for row in on),
        }

    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`: each metric of the run, then those of every sample; a run's name no sample."""
        found = [*self._of_run(), *self._of_on(), *self._of_off()]
        return [one.model_dump(exclude={"sample_id"} if one.sample_id is None else None) for one in found]

    def _of_run(self) -> Iterator[MetricRecord]:
        about = {"record_type": "run", "split": ALL, "mode": ALL, "prompt_len": 0, "episode_id": RUN}
        for step, (metric, value) in enumerate(self.summary.metrics().items(), start=1):
            yield self._record(**about, step=step, metric=metric, value=finite(value))

    def _of_on(self) -> Iterator[MetricRecord]:
        for row in self.summary.on:
            yield from self._of_sample(row, "on", row.episode_id, row.selection.query_len, on_metrics(row))

    def _of_off(self) -> Iterator[MetricRecord]:
        """Of prompts that were asked on a state, under the episode that they count by."""
        how, episodes = (
            self.settings.thresholds.off_delta_reduction,
            {row.sample_id: row.episode_id for row in self.summary.on},
        )
        for row in self.summary.off:
            if select := row.arms.get("select"):
                episode = episodes[getattr(select, f"{how}_state")]
                yield from self._of_sample(row, "off", episode, row.query_len, off_metrics(select, how))

    def _of_sample(
        self, row: OnRow | OffRow, mode: str, episode_id: str, prompt_len: int, values: Mapping[str, Number]
    ) -> Iterator[MetricRecord]:
        about = {"record_type": "sample", "step": row.index, "split": "eval", "mode": mode, "sample_id": row.sample_id}
        for metric, value in values.items():
            yield self._record(**about, metric=metric, value=value, prompt_len=prompt_len, episode_id=episode_id)

    def _record(self, **values: Any) -> MetricRecord:
        """With what every record of a run repeats."""
        settings, model_id = self.settings, self.runtime["model_id"]
        same = {"run_id": self.run_id, "seed": settings.seed, "timestamp": self.began, "model_id": model_id}
        return MetricRecord(**same, prefix_len=settings.prefix_len, **values)


def error_report(run_id: str, settings: Phase2, error: Exception) -> ErrorReport:
    """Of a run that could not be judged."""
    about: dict[str, Any] = {"error_type": type(error).__name__, "error": in_one_line(error)}
    return ErrorReport(run_id=run_id, plan_version=settings.plan_version, **about)


def _gate(gate: gates.Gate) -> dict[str, Any]:
    return {
        "required": True,
        "pass": gate.passed,
        "failure_reason": gate.failure_reason,
        "failed_checks": list(gate.failed_checks),
        "checks": [check.row() for check in gate.checks],
        **{check.name: finite(check.value) for check in gate.checks},
    }


def _topk(rows: Sequence[OnRow | OffRow]) -> list[dict[str, Any]]:
    """Of the first ON samples, and of the OFF prompt that the 99th percentile stands on."""
    return [{"sample_id": row.sample_id} | row.topk.model_dump(mode="json") for row in rows if row.topk]


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
