"""What must hold of a run: gate A, that states are injected rightly, and gate B, that one helps and disturbs nothing.

Both are required and always judged whole. A rule is one stage of the suite `selectkv`; its checks are numbers beside
thresholds, and a number that is not finite fails whatever the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
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

ROTATION_MAX = 1e-5
"""Of fp32."""

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
    rotation_max: float = ROTATION_MAX
    advisory_max: float = 0.0


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
class Limit:
    """A number of `Measured` by its name, and the threshold that it is held against; `said`: what reports call it."""

    number: str
    op: Literal["<=", ">="]
    threshold: str
    said: str = ""

    def check(self, measured: Measured) -> Check | None:
        """None for a number that there is nothing to measure of."""
        value, threshold = attrgetter(self.number, self.threshold)(measured)
        return None if value is None else Check(self.said or self.number, float(value), self.op, threshold)


@dataclass(frozen=True, slots=True)
class Rule:
    """A stage of a gate. `reason`: what the report calls its failure."""

    gate: GateName
    key: str
    title: str
    reason: str
    limits: tuple[Limit, ...]

    def checks(self, measured: Measured) -> list[Check]:
        return [check for limit in self.limits if (check := limit.check(measured))]

    def failure(self, measured: Measured) -> str | None:
        """The reason, if it fails."""
        failed = [check for check in self.checks(measured) if not check.passed]
        if not failed:
            return None
        return self.reason if all(check.finite for check in failed) else NONFINITE

    def judge(self, measured: Measured) -> Verdict:
        checks, reason = self.checks(measured), self.failure(measured) or OK
        findings = tuple(check.finding(reason) for check in checks if not check.passed)
        numbers = {check.name: check.value for check in checks if math.isfinite(check.value)}
        return Verdict(findings, len(checks), len(findings), numbers, {"gate": self.gate, "reason": reason})


_TEACHER_CACHE = Limit("teacher_cache_kl", "<=", "thresholds.eps_teacher_cache")
_DIVERGENCE = Limit("teacher_divergence", ">=", "thresholds.teacher_min_divergence")
_NULL = (Limit("null_kl_on", "<=", "thresholds.eps_null"), Limit("null_kl_off", "<=", "thresholds.eps_null"))
_FULL = Limit("full_effect_kl", ">=", "thresholds.eps_nonzero")
_ROUNDTRIP = Limit("roundtrip_rel_kl", "<=", "thresholds.alpha_roundtrip")
_REPRO = (
    Limit("repro_full_acc_diff", "<=", "thresholds.repro_acc_tol"),
    Limit("repro_select_acc_diff", "<=", "thresholds.repro_acc_tol"),
)
_ROTATION = (
    Limit("rotation_error", "<=", "thresholds.rotation_max"),
    Limit("block_kl", "<=", "thresholds.eps_teacher_cache"),
)
_VALID = Limit("acc_teacher", ">=", "thresholds.teacher_min_on_acc")
_ON_GAIN = Limit("on_gain", ">=", "thresholds.on_gain_min")
_OFF_DELTA = Limit("off_delta_p99", "<=", "thresholds.off_delta_p99_max", "off_delta_p99_select")
_DELTA_ON = Limit("delta_on_mean", ">=", "thresholds.delta_on_min", "delta_on_mean_select")
_REL_KL = Limit("rel_kl_to_teacher", "<=", "thresholds.rel_kl_to_teacher_max", "rel_kl_to_teacher_select")
_RANDOM = Limit("acc_select", ">=", "acc_random_mean", "acc_select_vs_random_mean")
_ADVISORY = Limit("advisory", "<=", "thresholds.advisory_max", ADVISORY)

RULES = (
    Rule("A", "a0_teacher_cache", "the cached teacher is the teacher", "teacher_cache_kl_above_max", (_TEACHER_CACHE,)),
    Rule("A", "a0b_teacher_divergence", "the demo moves the model", "teacher_divergence_below_min", (_DIVERGENCE,)),
    Rule("A", "a1_null_effect", "a prefix of nothing changes nothing", "null_effect_above_max", _NULL),
    Rule("A", "a2_nonzero_effect", "the whole demo as a prefix moves the model", "full_effect_below_min", (_FULL,)),
    Rule("A", "a3_roundtrip", "the whole demo as a prefix is the teacher", "roundtrip_above_max", (_ROUNDTRIP,)),
    Rule("A", "a4_repro", "a repeated run answers the same", "repro_above_tol", _REPRO),
    Rule("A", "a5_rotation", "moved keys are the keys of their new place", "rotation_above_max", _ROTATION),
    Rule("B", "b_valid", "the teacher knows the answers", "on_eval_invalid", (_VALID,)),
    Rule("B", "b_on_gain", "the state brings answers", "on_gain_below_min", (_ON_GAIN,)),
    Rule("B", "b_off_delta", "unrelated prompts hardly change", "off_delta_p99_above_max", (_OFF_DELTA,)),
    Rule("B", "b_delta_on", "the state moves what it is for", "delta_on_below_min", (_DELTA_ON,)),
    Rule("B", "b_rel_kl", "the state says what the teacher says", "rel_kl_to_teacher_above_max", (_REL_KL,)),
    Rule("B", "b_random", "chosen tokens answer no worse than random ones", "select_below_random_mean", (_RANDOM,)),
    Rule("final", "eligible", "the select mode may pass", ADVISORY, (_ADVISORY,)),
)

STAGES: tuple[Stage[Measured], ...] = tuple(Stage(rule.key, rule.title, rule.judge) for rule in RULES)


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

    gates: dict[GateName, Gate]

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
    checks = tuple(check for rule in rules for check in rule.checks(measured))
    return Gate(checks, tuple(dict.fromkeys(sorted(failures, key=NONFINITE.__ne__))))
