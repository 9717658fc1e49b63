"""Which file of a relation run lies where; the steps' own files are those of `fvcore.experiments.steps.layout`."""

from pathlib import Path

LAYOUTS = {"own": Path("reports", "relation"), "plan": Path("results_fv", "relation_qwise")}

# In a q_id's folder.
STATUS = "artifacts/qid_status.json"
RANDOM_HEADS = "artifacts/random_heads.json"
RANDOM_FV = "artifacts/fv_random_heads.pt"
RANDOM_TRIALS = "artifacts/step6/random_heads_trials.jsonl"
AIE_INTERVALS = "artifacts/aie_intervals.csv"
INJECTION_INTERVALS = "artifacts/step6/injection_intervals.csv"
FAILURE_LOG = "logs/failure.log"

# In the folder of the whole run.
RUN_META = "_status/run_meta.json"
RUN_SUMMARY = "_status/run_summary.json"
FAILURES = "_status/failure_report.json"
LOG = "_status/qwise_orchestrator.log"
OVERVIEW = "overview.csv"
REPORT = "report.html"
