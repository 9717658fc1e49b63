"""A run that passes both gates, as numbers; a test changes one of them and looks at what the gates say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fvcore.experiments.select_kv.gates import Measured, Thresholds

THRESHOLDS = Thresholds(
    on_gain_min=0.02,
    off_delta_p99_max=0.05,
    delta_on_min=0.01,
    rel_kl_to_teacher_max=1.0,
    repro_acc_tol=0.02,
    teacher_min_divergence=0.02,
    teacher_min_on_acc=0.2,
    alpha_roundtrip=0.5,
    eps_null=1e-3,
    eps_nonzero=1e-2,
    eps_teacher_cache=1e-3,
)

GOOD = Measured(
    thresholds=THRESHOLDS,
    teacher_cache_kl=0.0,
    teacher_divergence=2.0,
    null_kl_on=0.0,
    null_kl_off=0.0,
    full_effect_kl=2.0,
    roundtrip_rel_kl=0.0,
    repro_full_acc_diff=0.0,
    repro_select_acc_diff=0.0,
    acc_base=0.1,
    acc_teacher=0.9,
    acc_select=0.8,
    random_accs=(0.3, 0.4, 0.5, 0.4, 0.4),
    off_delta_p99=0.01,
    delta_on_mean=1.0,
    rel_kl_to_teacher=0.2,
    rotation_error=1e-7,
    block_kl=0.0,
)


def measured(**changes: Any) -> Measured:
    return replace(GOOD, **changes)
