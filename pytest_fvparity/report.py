"""From stage results to the report: one value per trials file that everything else is a rendering of.

The field names are those of the milestone plans' diff report; the schema is published as `docs/report.schema.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from fvcore.gates import Finding, StageResult, Status
from pytest_fvparity.implementation import CHECK_KEYS

SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Mismatch(_Model):
    """One located disagreement. `coordinate` names the axes: layer, head, slot, dim, trial, position."""

    where: str
    json_pointer: str
    message: str
    expected: Any = None
    got: Any = None
    abs_diff: float | None = None
    rel_diff: float | None = None
    coordinate: dict[str, int | str] = {}


class Check(_Model):
    """One check key. `fault` says of a failed key whether it fails on golden inputs too (own) or not (inherited)."""

    key: str
    status: str
    n_compared: int = 0
    mismatch_count: int = 0
    max_abs_diff: float | str | None = None
    measurements: dict[str, float | str] = {}
    fault: str | None = None
    blocked_by: str | None = None
    message: str = ""
    golden_path: str | None = None
    candidate_path: str | None = None
    first_mismatch: Mismatch | None = None
    details: list[Mismatch] = []
    warnings: list[Mismatch] = []
    duration_sec: float = 0.0
    repro_command: str = ""


class Divergence(_Model):
    """The earliest disagreement of the run: stage, file, key, trial, coordinate, both values."""

    check_key: str
    status: str
    artifact: str | None
    leaf: str | None
    json_pointer: str | None
    trial_id: int | None
    trial_idx: int | None
    coordinate: dict[str, int | str]
    expected: Any
    got: Any
    abs_diff: float | None
    rel_diff: float | None
    message: str


class Report(_Model):
    """One trials file's parity run."""

    schema_version: int = SCHEMA_VERSION
    created_at: str
    overall_status: str
    headline: str
    dataset: str
    fixed_trials_id: str
    model: str
    reference_profile: str | None
    mode: str = "chained"
    n_trials: int | None
    n_compared_trials: int | None
    profile: dict[str, Any] | None
    golden_profile: dict[str, Any] | None
    golden_path: str | None
    reference: dict[str, Any] | None
    conditions: dict[str, list[Any]]
    first_divergence: Divergence | None
    checks: list[Check]
    repro_command: str | None
    trials: list[dict[str, Any]]
    heads: dict[str, Any]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def assemble(
    trials_file: str, planned: Sequence[str], rows: Mapping[str, Mapping[str, Any]], keep_going: bool = False
) -> Report:
    """Build the report of one trials file.

    `planned` are the selected check keys, `rows` what came back, by key. A planned key without a row never reported:
    it crashed. A key that passed behind one that did not is not trusted: it ran beside a failure it did not know of.
    """
    keys = [key for key in CHECK_KEYS if key in planned]
    results = {key: StageResult.from_dict(rows[key]["result"]) if key in rows else _crashed(key) for key in keys}
    results = results if keep_going else _blocked_behind_failure(results)
    context: dict[str, Any] = {}
    for row in rows.values():
        context |= row["context"]
    checks = [_check(results[key], rows.get(key, {}), context) for key in keys]
    failed = next((check for check in checks if check.status != Status.PASS), None)
    result = results[failed.key] if failed else None
    divergence = _divergence(failed, result) if failed and result else None
    stem = trials_file.rpartition("/")[2].removesuffix(".json")
    return Report(
        created_at=now(),
        overall_status="FAIL" if failed else "PASS",
        headline=_headline(checks, divergence, context),
        dataset=context.get("dataset", "unknown"),
        fixed_trials_id=context.get("fixed_trials_id", stem),
        model=context.get("model", "unknown"),
        reference_profile=(context.get("profile") or {}).get("identity", {}).get("reference_profile"),
        n_trials=context.get("n_trials"),
        n_compared_trials=context.get("n_compared_trials"),
        profile=context.get("profile"),
        golden_profile=context.get("golden"),
        golden_path=context.get("golden_path"),
        reference=context.get("reference"),
        conditions=context.get("conditions", {}),
        first_divergence=divergence,
        checks=checks,
        repro_command=failed.repro_command if failed else None,
        trials=_details(results, "injection_output").get("trials", []),
        heads={k: v for k, v in _details(results, "top_heads").items() if k != "fault"},
    )


def _crashed(key: str) -> StageResult:
    return StageResult("parity", key, Status.CRASHED, message="planned, and never reported a verdict")


def _blocked_behind_failure(results: Mapping[str, StageResult]) -> dict[str, StageResult]:
    judged: dict[str, StageResult] = {}
    earliest: str | None = None
    for key, result in results.items():
        if earliest is not None and result.status in {Status.PASS, Status.CRASHED}:
            result = StageResult(result.suite, key, Status.BLOCKED, blocked_by=earliest)
        elif earliest is None and result.status is not Status.PASS:
            earliest = key
        judged[key] = result
    return judged


def _details(results: Mapping[str, StageResult], key: str) -> dict[str, Any]:
    return dict(results[key].verdict.details) if key in results else {}


def _number(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity: they are written as words."""
    return value if value is None or math.isfinite(value) else str(value)


def _check(result: StageResult, row: Mapping[str, Any], context: Mapping[str, Any]) -> Check:
    verdict = result.verdict
    blocking = [_mismatch(f) for f in verdict.findings if f.blocking]
    golden = context.get("golden_path")
    return Check(
        key=result.key,
        status=str(result.status),
        n_compared=verdict.compared,
        mismatch_count=verdict.mismatch_count,
        max_abs_diff=_number(verdict.measurements.get("max_abs_diff")),
        measurements={k: _number(v) for k, v in verdict.measurements.items() if k != "max_abs_diff"},  # type: ignore[misc]
        fault=verdict.details.get("fault"),
        blocked_by=result.blocked_by,
        message=result.message,
        golden_path=f"{golden}/{result.key}.json" if golden else None,
        candidate_path=context.get("candidate"),
        first_mismatch=blocking[0] if blocking else None,
        details=blocking,
        warnings=[_mismatch(f) for f in verdict.findings if not f.blocking],
        duration_sec=result.duration_s,
        repro_command=row.get("reproduce", ""),
    )


def _mismatch(finding: Finding) -> Mismatch:
    leaf, _, rest = finding.where.partition("[")
    position = (
        [v for k, v in finding.coordinate.items() if k not in {"trial_id", "trial_idx", "slot_label"}] if rest else []
    )
    escaped = leaf.replace("~", "~0").replace("/", "~1")
    return Mismatch(
        where=finding.where,
        json_pointer="/" + "/".join([escaped, *map(str, position)]),
        message=finding.message,
        expected=finding.expected,
        got=finding.actual,
        abs_diff=finding.abs_diff,
        rel_diff=finding.rel_diff,
        coordinate=dict(finding.coordinate),
    )


def _divergence(check: Check, result: StageResult) -> Divergence:
    first = check.first_mismatch
    coordinate = first.coordinate if first else {}
    of_tensor = result.verdict.first_mismatch is not None and result.verdict.first_mismatch.abs_diff is not None
    artifact = check.golden_path
    scalar = first is not None and "[" not in first.where
    if artifact and of_tensor and not scalar:
        artifact = artifact.removesuffix(".json") + ".safetensors"
    trial = {k: coordinate.get(k) for k in ("trial_id", "trial_idx")}
    return Divergence(
        check_key=check.key,
        status=check.status,
        artifact=artifact,
        leaf=first.where if first else None,
        json_pointer=first.json_pointer if first else None,
        trial_id=trial["trial_id"] if isinstance(trial["trial_id"], int) else None,
        trial_idx=trial["trial_idx"] if isinstance(trial["trial_idx"], int) else None,
        coordinate=coordinate,
        expected=first.expected if first else None,
        got=first.got if first else None,
        abs_diff=first.abs_diff if first else None,
        rel_diff=first.rel_diff if first else None,
        message=first.message if first else (check.message.strip().splitlines() or [check.status])[-1],
    )


def _headline(checks: Sequence[Check], divergence: Divergence | None, context: Mapping[str, Any]) -> str:
    """Verdict and earliest divergence in one sentence."""
    if divergence is None:
        largest = [check.max_abs_diff for check in checks if isinstance(check.max_abs_diff, float)]
        scope = (
            "all 6 check keys agree"
            if len(checks) == len(CHECK_KEYS)
            else f"{len(checks)} of 6 check keys compared, all agree"
        )
        return f"PASS: {scope} with the reference" + (f"; largest difference {max(largest):.3g}" if largest else "")
    if divergence.leaf is None:
        return f"{divergence.status}: nothing could be judged at {divergence.check_key}: {divergence.message}"
    trial = f", trial {divergence.trial_id}:{divergence.trial_idx}" if divergence.trial_id is not None else ""
    return (
        f"FAIL: earliest divergence at stage {divergence.check_key}, file {divergence.artifact}, key {divergence.leaf}{trial}: "
        f"{divergence.message}; expected {_short(divergence.expected)}, got {_short(divergence.got)}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
