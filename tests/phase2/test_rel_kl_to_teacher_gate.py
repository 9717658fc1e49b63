"""How far the selected state is from the teacher, as a share of what lies between base and teacher; at most the whole."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fvcore.experiments.select_kv.gates import NONFINITE, RULES, STAGES, Judged, suite
from fvcore.gates import Status, run_suite
from tests.late import RUNNING
from tests.phase2.measured import GOOD, THRESHOLDS, measured

if RUNNING:
    import torch

    from fvcore.experiments.select_kv.metrics import kl, rel_kl


def logits_of(*shares: float) -> torch.Tensor:
    return torch.tensor(shares).log()


class TestRatio:
    def test_it_is_the_plans_formula_on_hand_logits(self) -> None:
        student, teacher, base = logits_of(0.5, 0.5), logits_of(0.25, 0.75), logits_of(0.9, 0.1)
        to_teacher = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
        between = 0.9 * math.log(0.9 / 0.25) + 0.1 * math.log(0.1 / 0.75)

        assert float(rel_kl(student, teacher, base)) == pytest.approx(to_teacher / (between + 1e-6), rel=1e-6)

    def test_a_student_that_is_the_teacher_is_at_zero(self) -> None:
        teacher, base = logits_of(0.25, 0.75), logits_of(0.9, 0.1)

        assert float(rel_kl(teacher, teacher, base)) == 0.0

    def test_a_student_that_is_the_base_is_at_one(self) -> None:
        teacher, base = logits_of(0.25, 0.75), logits_of(0.9, 0.1)

        assert float(rel_kl(base, teacher, base)) == pytest.approx(1.0, abs=1e-5)

    def test_where_base_and_teacher_agree_the_ratio_is_finite(self) -> None:
        same, other = logits_of(0.5, 0.5), logits_of(0.4, 0.6)

        assert float(rel_kl(other, same, same)) == pytest.approx(float(kl(other, same)) / 1e-6)


class TestGate:
    @pytest.mark.parametrize("value, passes", [(0.8, True), (1.0, True), (1.4, False)])
    def test_it_decides_alone_with_all_else_good(self, value: float, passes: bool) -> None:
        judged = Judged.of(measured(rel_kl_to_teacher=value))

        assert judged.passed is passes
        assert judged.gates["A"].passed
        assert judged.failure_reason == ("ok" if passes else "rel_kl_to_teacher_above_max")

    def test_a_number_that_is_not_finite_fails_whatever_the_threshold(self) -> None:
        for value in (math.nan, math.inf):
            judged = Judged.of(measured(rel_kl_to_teacher=value))

            assert judged.gates["B"].failed_checks == (NONFINITE,)


WRONG: dict[str, dict[str, Any]] = {
    "teacher_cache_kl_above_max": {"teacher_cache_kl": 2e-3},
    "teacher_divergence_below_min": {"teacher_divergence": 0.01},
    "null_effect_above_max": {"null_kl_off": 2e-3},
    "full_effect_below_min": {"full_effect_kl": 5e-3},
    "roundtrip_above_max": {"roundtrip_rel_kl": 0.6},
    "repro_above_tol": {"repro_select_acc_diff": 0.03},
    "rotation_above_max": {"rotation_error": 1e-3},
    "on_eval_invalid": {"acc_teacher": 0.1},
    "on_gain_below_min": {"acc_base": 0.79},
    "off_delta_p99_above_max": {"off_delta_p99": 0.051},
    "delta_on_below_min": {"delta_on_mean": 0.009},
    "rel_kl_to_teacher_above_max": {"rel_kl_to_teacher": 1.01},
    "select_below_random_mean": {"random_accs": (0.9,) * 5},
    "advisory_select_mode": {"advisory": True},
}


class TestEveryRule:
    def test_each_has_a_reason_of_its_own(self) -> None:
        assert {rule.reason for rule in RULES} == set(WRONG)

    @pytest.mark.parametrize("reason", WRONG)
    def test_it_fails_alone_and_is_named(self, reason: str) -> None:
        judged = Judged.of(measured(**WRONG[reason]))

        assert not judged.passed
        assert [one for gate in judged.gates.values() for one in gate.failed_checks] == [reason]
        assert judged.failure_reason == reason

    def test_all_failing_rules_are_told_and_the_first_is_the_reason(self) -> None:
        judged = Judged.of(measured(acc_teacher=0.1, off_delta_p99=1.0, rel_kl_to_teacher=2.0))

        assert judged.gates["B"].failed_checks == (
            "on_eval_invalid", "off_delta_p99_above_max", "rel_kl_to_teacher_above_max",
        )  # fmt: skip
        assert judged.gates["B"].failure_reason == judged.failure_reason == "on_eval_invalid"

    def test_a_prefix_of_nothing_is_held_on_both_sides(self) -> None:
        for side in ("null_kl_on", "null_kl_off"):
            assert Judged.of(measured(**{side: 1.0})).failure_reason == "null_effect_above_max"

    def test_where_nothing_is_rotated_nothing_is_held_of_rotation(self) -> None:
        judged = Judged.of(measured(rotation_error=None, block_kl=None))

        assert judged.passed
        assert "rotation_error" not in [check.name for check in judged.gates["A"].checks]

    def test_rounding_of_accuracies_decides_nothing(self) -> None:
        assert THRESHOLDS.on_gain_min > 0.3 - 0.28  # in binary
        assert Judged.of(measured(acc_select=0.3, acc_base=0.28, random_accs=(0.3, 0.3))).passed

    def test_as_a_suite_every_stage_is_judged_and_says_its_number(self) -> None:
        bad = measured(teacher_cache_kl=1.0, off_delta_p99=math.nan)
        results = {result.key: result for result in run_suite(suite(lambda: bad))}

        assert list(results) == [stage.key for stage in STAGES]
        failed = {key for key, result in results.items() if result.status != Status.PASS}
        assert failed == {"a0_teacher_cache", "b_off_delta"}
        first = results["a0_teacher_cache"].verdict.first_mismatch
        assert first is not None
        assert first.message == "teacher_cache_kl_above_max: teacher_cache_kl is 1, expected <= 0.001"
        assert "not a finite number" in results["b_off_delta"].verdict.findings[0].message

    def test_the_good_run_passes(self) -> None:
        assert Judged.of(GOOD).passed
        assert Judged.of(GOOD).failure_reason == "ok"
