"""Which file of a Select-KV run lies where. The plan's names are kept, flat under `artifacts/`."""

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
REPORT = "report_phase2.json"
SELECTION = "artifacts/phase2_selection.json"
PREFIX_META = "artifacts/phase2_prefix_meta.json"
RUNTIME_META = "artifacts/hf_runtime_meta.json"
OFF_STRESS = "artifacts/phase2_off_stress_top.json"

PLAN = (REPORT, METRICS, CONFIG, SELECTION, PREFIX_META, RUNTIME_META)
"""The files that the plan asks of every run."""

# What the stages wrote: metrics, gates and reports are drawn from these again, without a model.
ON_ROWS = "artifacts/on_rows.jsonl"
OFF_ROWS = "artifacts/off_rows.jsonl"

RECORD = "artifacts/run_record.json"
TIMES = "artifacts/timings.json"
"""Seconds of each stage: of this machine and this moment, and so outside of every digest."""

LAYER_CURVE = "artifacts/layer_curve.json"
BUDGET_CURVE = "artifacts/budget_curve.json"
REUSE = "artifacts/reuse.json"
"""Each {} where it has nothing to say; not there where it was not asked for."""

STATES = "artifacts/states"
MARKDOWN = "report.md"
PAGE = "report.html"

AT_TOP = (CONFIG, METRICS, REPORT, MARKDOWN, PAGE)
"""All else lies in `artifacts/`."""


def state(sample_id: str) -> str:
    return f"{STATES}/{sample_id}.safetensors"
