"""M7: what holds on the antonyms holds on every q_id of a relation run.

Two suites a q_id. `parity` compares the candidate with the reference, on the trials that the run froze, by the six check
keys; it needs a golden of those trials. `transfer` compares the files that the run wrote with what the stations give.
"""

from __future__ import annotations

SUITE = "transfer"

TITLES = {
    "qid_status": "Status, every required file, and the model",
    "sampled_trials": "Frozen trials",
    "mean_activations": "StepD's means and the stations'",
    "stepd_scores": "StepD's scores and the stations' effects",
    "stepe_heads": "StepE's heads and the stations'",
    "stepe_vector": "StepE's vector and the stations'",
    "step6_summary": "Step6 at every layer",
}
KEYS = tuple(TITLES)
