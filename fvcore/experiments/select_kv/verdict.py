"""`report_phase2.json`: what a run was, what its gates said, and every number that they said it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fvcore.exits import in_one_line
from fvcore.experiments.select_kv import files, gates
from fvcore.experiments.select_kv.schemas import ErrorReport, OffRow, OnRow, Report, Topk, finite
from fvcore.experiments.select_kv.summary import Summary

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2

PHASE: int = 2
DELTA = "KL(student || base), nats, full vocabulary, float64"
OFF_EVAL = {
    "stress": "an OFF prompt counts by the state that moves it most, of all that it is asked on",
    "typical": "an OFF prompt counts by the state that its index falls to",
    "p99": "nearest rank over OFF prompts",
    "accuracy": "share of states on which a prompt with an answer is answered rightly, mean over prompts",
}


def report(
    run_id: str,
    settings: Phase2,
    summary: Summary,
    runtime: Mapping[str, Any],
    times: Mapping[str, float],
    artifacts: Sequence[str],
) -> Report:
    """settings: as resolved, with what `auto` came to     runtime: what `hf_runtime_meta.json` holds"""
    measured = summary.measured()
    judged = gates.Judged.of(measured)
    return Report(
        run_id=run_id,
        phase=2,
        plan_version=settings.plan_version,
        status="pass" if judged.passed else "fail",
        final_pass=judged.passed,
        failure_reason=judged.failure_reason,
        gateA_pass=judged.gates["A"].passed,
        gateB_pass=judged.gates["B"].passed,
        backend="hf",
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
        delta_definition=DELTA,
        off_eval_definitions=OFF_EVAL,
        thresholds=_thresholds(settings, measured.thresholds),
        gates=_gates(judged, measured, summary),
        metrics={name: finite(value) for name, value in summary.metrics().items()},
        intervals=summary.intervals(),
        on=summary.on_table(),
        off=summary.off_table(),
        reproducibility=summary.reproducibility(),
        sample_counts=_counts(settings, summary),
        topk=_topk(summary.on, summary.off),
        memory=_memory(settings, summary, runtime["vocab"]),
        timings_s=dict(times),
        warnings=[*summary.warnings(), *runtime["warnings"]],
        artifacts={name.rpartition("/")[2].partition(".")[0]: name for name in artifacts},
    )


def error_report(run_id: str, settings: Phase2, error: Exception) -> ErrorReport:
    return ErrorReport(
        run_id=run_id,
        phase=2,
        plan_version=settings.plan_version,
        status="error",
        error_type=type(error).__name__,
        error=in_one_line(error),
        gateA_pass=False,
        gateB_pass=False,
    )


def _thresholds(settings: Phase2, derived: gates.Thresholds) -> dict[str, Any]:
    """As the settings have them, and the eps that were derived."""
    return settings.thresholds.model_dump(mode="json") | {name: finite(x) for name, x in asdict(derived).items()}


def _gate(gate: gates.Gate) -> dict[str, Any]:
    return {
        "required": True,
        "pass": gate.passed,
        "failure_reason": gate.failure_reason,
        "failed_checks": list(gate.failed_checks),
        "checks": [check.row() for check in gate.checks],
        **{check.name: finite(check.value) for check in gate.checks},
    }


def _gates(judged: gates.Judged, measured: gates.Measured, summary: Summary) -> dict[str, dict[str, Any]]:
    """What else the plan asks of each stands behind its checks."""
    a, b = judged.gates["A"], judged.gates["B"]
    of_b = {
        "on_eval_valid": "on_eval_invalid" not in b.failed_checks,
        "acc_base": measured.acc_base,
        "acc_select": measured.acc_select,
        "acc_random_mean": measured.acc_random_mean,
        "random_accs": list(measured.random_accs),
        "advisory_select_mode": measured.advisory,
    }
    return {"A": _gate(a) | {"eps_noise": finite(summary.eps_noise)}, "B": _gate(b) | of_b}


def _memory(settings: Phase2, summary: Summary, vocab: int) -> dict[str, int | None]:
    """What bounds the OFF side: rows of a pass, the bytes they may take, and what of them is held at once."""
    held = settings.eval.off_held(vocab, len({(row.text, row.group) for row in summary.off})) * vocab * 4
    bounds = {"off_batch_size": settings.eval.off_batch_size, "max_memory": settings.eval.max_memory}
    return {**bounds, "base_logits_bytes": held}


def _counts(settings: Phase2, summary: Summary) -> dict[str, int]:
    on, off, limit = len(summary.on), len(summary.off), settings.eval.off_state_limit
    return {
        "on": on,
        "off": off,
        "total": on + off,
        "off_unique": len({(row.text, row.group) for row in summary.off}),
        "off_asked": sum(row.n_states > 0 for row in summary.off),
        "states": on if limit is None else min(on, limit),
        "boundary_retokenization_mismatch": sum(row.boundary_mismatch for row in summary.on),
    }


def _topk(on: Sequence[OnRow], off: Sequence[OffRow]) -> dict[str, list[Any]]:
    """Of the first ON samples, and of the OFF prompt that the 99th percentile stands on."""
    return {
        "on": [_shown(row.sample_id, row.topk) for row in on if row.topk],
        "off_worst": [_shown(row.sample_id, row.topk) for row in off if row.topk],
    }


def _shown(sample_id: str, topk: Topk) -> dict[str, Any]:
    return {"sample_id": sample_id} | topk.model_dump(mode="json")


ARTIFACTS = (
    files.METRICS, files.CONFIG, files.SELECTION, files.PREFIX_META, files.RUNTIME_META, files.OFF_STRESS,
    files.ON_ROWS, files.OFF_ROWS,
)  # fmt: skip
"""What every report points to, relative to the run's folder."""
