"""A small Select-KV run of the shipped model, which passes both gates: read by the tests of its page and of its suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2

SMALL = {
    "model.id": "tiny-llama",
    "data.on.source": "relation",
    "data.off.source": "relation",
    "data.on.n_shots": 4,
    "data.off.n_shots": 2,
    "runtime.torch_dtype": "float32",
    "runtime.device": "cpu",
    "eval.on_samples": 36,
    "eval.off_samples": 24,
    "eval.off_state_limit": 4,
    "prefix_len": 4,
    "select.span_len": 2,
    "select.span_budget": 1,
    "select.query_reduce": "last",
    "layer_scope.selection": "all",
    "thresholds.off_delta_p99_max": 2.0,
    "reporting.compare_kv_sources": True,
    "reporting.save_states": True,
    "reporting.layer_curve": True,
    "reporting.budget_curve": True,
}
RUN_ID = "small"


def small_settings(root: Path) -> Phase2:
    from fvcore.experiments.select_kv.config import Phase2

    return Phase2().changed(SMALL | {"runtime.output_root": str(root)})


def make_select_kv_run(root: Path) -> None:
    from fvcore.experiments.select_kv import report
    from fvcore.experiments.select_kv.run import run_phase2

    result = run_phase2(small_settings(root), run_id=RUN_ID)
    assert result.final_pass, result.report
    report.write(result.folder)
