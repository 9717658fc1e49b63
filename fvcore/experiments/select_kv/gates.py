"""What must hold of a run: gate A, that states are injected rightly, and gate B, that one helps and disturbs nothing.

Both are required and always judged whole. A rule is one stage of the suite `selectkv`; its checks are numbers beside
thresholds, and a number that is not finite fails whatever the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal, TypeAlias

from fvcore.gates import Finding, Stage, Suite, Verdict

SUITE = "selectkv"
OK = "ok"
NONFINITE = "nonfinite_metric"
ADVISORY = "advisory_select_mode"
ROUNDING = 1e-12
"""Accuracies are sums of shares: the last digits of a difference decide nothing."""

REL_KL_EPS = 1e-6
"""Nats that keep a ratio to KL(base || teacher) finite where the base already says what the teacher says."""

GateName: TypeAlias = Literal["A", "B", "final"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the numbers are held against; the three eps follow from floors, multipliers and the noise of repeated runs."""

    on_gain_min: float
    off_delta_p99_max: float
    delta_on_min: float
    rel_kl_to_teacher_max: float
    repro_acc_tol: float
    teacher_min_divergence: float
    teacher_min_on_acc: float
    alpha_roundtrip: float
    eps_null: float
    eps_nonzero: float
    eps_teacher_cache: float
    rotation_tol: float = 1e-5


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of a run that its gates judge; KLs in nats, NaN where a number was not finite.

    rotation_error, block_kl: None where nothing is rotated     off_delta_p99: under the reduction that the settings name
    advisory: the select mode is one that cannot pass
    """

    thresholds: Thresholds
    teacher_cache_kl: float
    teacher_divergence: float
    null_kl_on: float
    null_kl_off: float
    full_effect_kl: float
    roundtrip_rel_kl: float
    repro_full_acc_diff: float
    repro_select_acc_diff: float
    acc_base: float
    acc_teacher: float
    acc_select: float
    random_accs: tuple[float, ...]
    off_delta_p99: float
    delta_on_mean: float
    rel_kl_to_teacher: float
    rotation_error: float | None = None
    block_kl: float | None = None
    advisory: bool = False

    @property
    def on_gain(self) -> float:
        return self.acc_select - self.acc_base

    @property
    def acc_random_mean(self) -> float:
        """Over trials, of each trial's accuracy."""
        return fmean(self.random_accs)


@dataclass(frozen=True, slots=True)
class Check:
    """A number and what it is held against; `value` may be NaN or infinite."""

    name: str
    value: float
    op: Literal["<=", ">="]
    threshold: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.threshold)

    @property
    def passed(self) -> bool:
        beyond = self.value - self.threshold if self.op == "<=" else self.threshold - self.value
        return self.finite and beyond <= ROUNDING

    def row(self) -> dict[str, float | str | bool | None]:
        """As the report has it; a number that is not finite is null there."""
        value, threshold = (x if math.isfinite(x) else None for x in (self.value, self.threshold))
        return {"name": self.name, "value": value, "op": self.op, "threshold": threshold, "pass": self.passed}

    def finding(self, reason: str) -> Finding:
        shown = f"{self.value:.6g}" if self.finite else "not a finite number"
        message = f"{reason}: {self.name} is {shown}, expected {self.op} {self.threshold:.6g}"
        return Finding(self.name, message, expected=f"{self.op} {self.threshold:.6g}", actual=shown)


@dataclass(frozen=True, slots=True)
class Rule:
    """A stage of a gate. `reason`: what the report calls its failure."""

    gate: GateName
    key: str
    title: str
    reason: str
    checks: Callable[[Measured], Sequence[Check]]

    def failure(self, measured: Measured) -> str | None:
        """The reason, if it fails."""
        failed = [check for check in self.checks(measured) if not check.passed]
        if not failed:
            return None
        return self.reason if all(check.finite for check in failed) else NONFINITE

    def stage(self) -> Stage[Measured]:
        return Stage(self.key, self.title, self._judge)

    def _judge(self, measured: Measured) -> Verdict:
        checks, reason = self.checks(measured), self.failure(measured) or OK
        findings = tuple(check.finding(reason) for check in checks if not check.passed)
        numbers = {check.name: check.value for check in checks if math.isfinite(check.value)}
        return Verdict(findings, len(checks), len(findings), numbers, {"gate": self.gate, "reason": reason})


def _teacher_cache(m: Measured) -> list[Check]:
    return [Check("teacher_cache_kl", m.teacher_cache_kl, "<=", m.thresholds.eps_teacher_cache)]


def _teacher_divergence(m: Measured) -> list[Check]:
    return [Check("teacher_divergence", m.teacher_divergence, ">=", m.thresholds.teacher_min_divergence)]


def _null_effect(m: Measured) -> list[Check]:
    eps = m.thresholds.eps_null
    return [Check("null_kl_on", m.null_kl_on, "<=", eps), Check("null_kl_off", m.null_kl_off, "<=", eps)]


def _nonzero_effect(m: Measured) -> list[Check]:
    return [Check("full_effect_kl", m.full_effect_kl, ">=", m.thresholds.eps_nonzero)]


def _roundtrip(m: Measured) -> list[Check]:
    return [Check("roundtrip_rel_kl", m.roundtrip_rel_kl, "<=", m.thresholds.alpha_roundtrip)]


def _repro(m: Measured) -> list[Check]:
    most = m.thresholds.repro_acc_tol
    return [
        Check("repro_full_acc_diff", m.repro_full_acc_diff, "<=", most),
        Check("repro_select_acc_diff", m.repro_select_acc_diff, "<=", most),
    ]


def _rotation(m: Measured) -> list[Check]:
    """Nothing to hold where nothing is rotated."""
    limits = (
        ("rotation_error", m.rotation_error, m.thresholds.rotation_tol),
        ("block_kl", m.block_kl, m.thresholds.eps_teacher_cache),
    )
    return [Check(name, value, "<=", limit) for name, value, limit in limits if value is not None]


def _teacher_answers(m: Measured) -> list[Check]:
    return [Check("acc_teacher", m.acc_teacher, ">=", m.thresholds.teacher_min_on_acc)]


def _on_gain(m: Measured) -> list[Check]:
    return [Check("on_gain", m.on_gain, ">=", m.thresholds.on_gain_min)]


def _off_delta(m: Measured) -> list[Check]:
    return [Check("off_delta_p99_select", m.off_delta_p99, "<=", m.thresholds.off_delta_p99_max)]


def _delta_on(m: Measured) -> list[Check]:
    return [Check("delta_on_mean_select", m.delta_on_mean, ">=", m.thresholds.delta_on_min)]


def _rel_kl(m: Measured) -> list[Check]:
    return [Check("rel_kl_to_teacher_select", m.rel_kl_to_teacher, "<=", m.thresholds.rel_kl_to_teacher_max)]


def _random_mean(m: Measured) -> list[Check]:
    return [Check("acc_select_vs_random_mean", m.acc_select, ">=", m.acc_random_mean)]


def _eligible(m: Measured) -> list[Check]:
    return [Check("advisory_select_mode", float(m.advisory), "<=", 0.0)]


RULES = (
    Rule("A", "a0_teacher_cache", "the cached teacher is the teacher", "teacher_cache_kl_above_max", _teacher_cache),
    Rule("A", "a0b_teacher_divergence", "the demo moves the model", "teacher_divergence_below_min", _teacher_divergence),
    Rule("A", "a1_null_effect", "a prefix of nothing changes nothing", "null_effect_above_max", _null_effect),
    Rule("A", "a2_nonzero_effect", "the whole demo as a prefix moves the model", "full_effect_below_min", _nonzero_effect),
    Rule("A", "a3_roundtrip", "the whole demo as a prefix is the teacher", "roundtrip_above_max", _roundtrip),
    Rule("A", "a4_repro", "a repeated run answers the same", "repro_above_tol", _repro),
    Rule("A", "a5_rotation", "moved keys are the keys of their new place", "rotation_above_max", _rotation),
    Rule("B", "b_valid", "the teacher knows the answers", "on_eval_invalid", _teacher_answers),
    Rule("B", "b_on_gain", "the state brings answers", "on_gain_below_min", _on_gain),
    Rule("B", "b_off_delta", "unrelated prompts hardly change", "off_delta_p99_above_max", _off_delta),
    Rule("B", "b_delta_on", "the state moves what it is for", "delta_on_below_min", _delta_on),
    Rule("B", "b_rel_kl", "the state says what the teacher says", "rel_kl_to_teacher_above_max", _rel_kl),
    Rule("B", "b_random", "chosen tokens answer no worse than random ones", "select_below_random_mean", _random_mean),
    Rule("final", "eligible", "the select mode may pass", ADVISORY, _eligible),
)  # fmt: skip

STAGES: tuple[Stage[Measured], ...] = tuple(rule.stage() for rule in RULES)


def suite(subject: Callable[..., Measured]) -> Suite[Measured]:
    """Every rule is judged, whatever became of those before."""
    return Suite(SUITE, STAGES, subject, keep_going=True)


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate's checks in order, and the reasons of the rules that failed; a number that is not finite comes first."""

    checks: tuple[Check, ...]
    failed_checks: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failed_checks

    @property
    def failure_reason(self) -> str:
        return self.failed_checks[0] if self.failed_checks else OK


@dataclass(frozen=True, slots=True)
class Judged:
    """Both gates, and whether the run passes: a select mode that is only advisory does not, whatever the gates say."""

    gates: dict[GateName, Gate] = field(default_factory=dict)

    @classmethod
    def of(cls, measured: Measured) -> Judged:
        names: tuple[GateName, ...] = ("A", "B", "final")
        return cls({name: _gate(name, measured) for name in names})

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates.values())

    @property
    def failure_reason(self) -> str:
        """The first failing rule in order, or ok."""
        return next((gate.failure_reason for gate in self.gates.values() if not gate.passed), OK)


def _gate(name: GateName, measured: Measured) -> Gate:
    rules = [rule for rule in RULES if rule.gate == name]
    failures = [failure for rule in rules if (failure := rule.failure(measured))]
    return Gate(tuple(_checks(rules, measured)), tuple(dict.fromkeys(sorted(failures, key=NONFINITE.__ne__))))


def _checks(rules: Sequence[Rule], measured: Measured) -> Iterator[Check]:
    for rule in rules:
        yield from rule.checks(measured)
