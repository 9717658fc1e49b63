"""The folder of one run: which file lies where, under the names people already use."""

from fvcore import names
from fvcore.experiments import plan_files

SAMPLED = "artifacts/sampled_trials.json"
ZERO_SHOT = "artifacts/sampled_trials_zeroshot.json"
CIE = "artifacts/cie_scores.csv"
AIE = "artifacts/aie_scores.csv"
AIE_JSON = "artifacts/aie_scores.json"
TRIAL_METRICS = "artifacts/trial_metrics.jsonl"
MEANS = f"artifacts/{plan_files.MEANS}"
MEANS_META = "artifacts/mean_activations_meta.json"
GLOBAL_MEAN = "artifacts/stepD_mean_acts/global_clean_mean.pt"
TOP_HEADS = f"artifacts/{plan_files.TOP_HEADS}"
FV = f"artifacts/{plan_files.VECTOR}"
FV_META = "artifacts/fv_global_resid_meta.json"
FV_BY_LAYER = "artifacts/fv_by_layer.pt"
STEP_E_EVAL = "artifacts/stepE_eval.json"
ALL_LAYERS = "artifacts/step6/step6_all_layers_summary.json"
RUN_META = "artifacts/run_meta.json"
STEP_D_LOG = "logs/stepD_aie.log"


def q_mean(q_id: str) -> str:
    return f"artifacts/stepD_mean_acts/qid_{names.of_model(q_id)}_clean_mean.pt"


def heatmap(name: str) -> str:
    return f"artifacts/aie_heatmap_{name}.png"


def heads_by_layer(metric: str) -> str:
    return f"artifacts/aie_top_heads_by_layer_{metric}.png"


OF_LAYER = ("eval_summary.json", "eval_trials.jsonl", "eval_meta.json")
"""In each layer's folder, beside Step6's results and its log."""


def step6_results(model: str, layer: int, n: int | str) -> str:
    return f"step6_results_{names.of_model(model)}_layer{layer}_n{n}.json"


def layer_dir(layer: int) -> str:
    return f"artifacts/step6/layer_{layer}"
