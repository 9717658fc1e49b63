"""StepE: the heads with the largest score, and the function vector they make.

The vector is the sum over heads of what each writes to the residual stream (`fvcore.vectors`), kept in fp32.
`fv_by_layer` is something else: the heads' raw means side by side, in head space. It is written for its readers, and
`stepE_eval.json`, which adds it to the residual stream all the same, says so.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fvcore.experiments.errors import NotFinite, StepError
from fvcore.experiments.folder import Folder
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.sampled import SampledTrials
from fvcore.experiments.steps.scores import HEAD, Row, population_std, ranked, read_scores
from fvcore.experiments.steps.settings import StepSettings, sizes_of
from fvcore.fast.chunks import Advance
from fvcore.formats import FormatError, read_json, read_pt
from fvcore.injection import inject_readings
from fvcore.model.model import LanguageModel
from fvcore.prompts import prompt_at_boundary
from fvcore.trials.draws import of_trial
from fvcore.vectors import sum_of_terms

N_EVAL_TRIALS = 20
TOKEN_RULE = "t_idx = seq_len - 1 (last token of prefix)"
SCORE_FILES = ("artifacts/stepD_aie_scores.csv", layout.AIE)
MEAN_FILES = (layout.GLOBAL_MEAN, layout.MEANS, "artifacts/clean_mean.pt")


def run(
    lm: LanguageModel, sampled: SampledTrials, settings: StepSettings, folder: Folder, run_id: str, advance: Advance
) -> list[Path]:
    """Choose heads from StepD's scores, make the vector and write every file of StepE; returns the files."""
    mean = read_clean_mean(folder, lm)
    rows = read_scores(_first(folder, SCORE_FILES), settings.score_key)
    chosen = ranked(rows, settings.score_key, settings.top_heads)
    key, n_trials = settings.score_key, len(sampled.trials)
    heads = [
        {"layer": row["layer"], "head": row["head"], "score_key": key, "rank_score": row[key]}
        | {name: row.get(name) for name in ("mean_delta_logprob", "mean_delta_p")}
        | {"n_trials": int(row.get("n_trials", n_trials))}
        for row in chosen
    ]
    meta = {
        "source_run_id": run_id,
        "stepd_artifacts_dir": "artifacts",
        "k": settings.top_heads,
        "model": lm.name,
        "model_spec": lm.spec.name,
        "score_key": settings.score_key,
    }
    vector = global_vector(lm, mean, map(HEAD, chosen))
    by_layer = heads_by_layer(lm, mean, heads, sorted({row["layer"] for row in rows}))
    sizes = sizes_of(lm)
    chosen_with = {"selected_k": settings.top_heads, "alpha_default": settings.alpha, "model_spec": lm.spec.name}
    of_q = sampled.q_ids[0] if sampled.meta.is_relation and len(sampled.q_ids) == 1 else None
    fv_meta = {
        "spec_name": lm.spec.name,
        "model": lm.name,
        "run_id_stepD": run_id,
        "heads": heads,
        "token_position_rule": TOKEN_RULE,
        "fv_type": "qid" if of_q else "global",
        "fv_source_qid": of_q,
    }
    asked = {"space": "head", "n_eval_trials": N_EVAL_TRIALS, "seed": settings.seed, "alpha": settings.alpha}
    of_eval = asked | {"seq_token_idx": -1, "measure": "logit[target_id]"}
    files = {
        layout.TOP_HEADS: {"meta": meta, "heads": heads},
        layout.FV_BY_LAYER: sizes | chosen_with | {"fv_by_layer": by_layer},
        layout.FV: {"fv_global_resid": vector} | sizes,
        layout.FV_META: fv_meta,
        layout.STEP_E_EVAL: {"meta": meta | of_eval} | _eval(lm, sampled, settings, by_layer, advance),
    }
    return folder.write(files)


def read_clean_mean(folder: Folder, lm: LanguageModel) -> Tensor:
    """Means at the slot that predicts the answer, (layer, head, d_head), from whichever of StepD's files is there.

    A rank-4 `mean_activations.pt` (layer, head, slot, d_head) is cut at its meta's `slot_query_pred`. Raises StepError
    when the sizes are not the model's.
    """
    path = _first(folder, MEAN_FILES)
    value = read_pt(path)
    mean = value.get("clean_mean") if isinstance(value, dict) else value
    if not isinstance(mean, Tensor) or mean.ndim not in (3, 4):
        found = f"a tensor of shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
        raise StepError(f"{path}: expected means of rank 3, or of rank 4 with every slot, found {found}")
    if mean.ndim == 4:
        mean = mean[:, :, _slot(folder, mean.shape[2])]
    expected = (lm.n_layers, lm.n_heads, lm.d_head)
    if tuple(mean.shape) != expected:
        raise StepError(
            f"{path}: means of (layers, heads, head width) {tuple(mean.shape)}, {lm.name} has {expected}; "
            "they are another model's"
        )
    if isinstance(value, dict) and value.get("resid_dim", lm.d_model) != lm.d_model:
        raise StepError(
            f"{path}: resid_dim is {value['resid_dim']}, {lm.name} has {lm.d_model}; they are another model's"
        )
    if not bool(mean.isfinite().all()):
        raise NotFinite(f"{path}: means are not finite")
    return mean.float()


def _slot(folder: Folder, n_slots: int) -> int:
    path = folder / layout.MEANS_META
    meta = read_json(path)
    slot = meta.get("slot_query_pred") if isinstance(meta, dict) else None
    if not isinstance(slot, int) or not 0 <= slot < n_slots:
        raise StepError(f"{path}: slot_query_pred is {slot!r}; expected one of the {n_slots} slots of the means")
    return slot


def _first(folder: Folder, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FormatError(f"{folder.root}: none of {', '.join(names)} is there; run StepD first")


def global_vector(lm: LanguageModel, mean: Tensor, heads: Iterable[Sequence[int]]) -> Tensor:
    """The function vector (d_model,) in fp32 on the CPU; cast to the model's dtype it is `vectors.function_vector`."""
    return sum_of_terms(lm, mean, heads).cpu()


def heads_by_layer(lm: LanguageModel, mean: Tensor, heads: Sequence[Row], layers: Sequence[int]) -> dict[int, Tensor]:
    """layer -> (n_heads * d_head,), zero but for the chosen heads of the layer; head space, not the residual stream."""
    found = {layer: torch.zeros(lm.n_heads, lm.d_heads[layer]) for layer in layers}
    for row in heads:
        found[row["layer"]][row["head"]] = mean[row["layer"], row["head"], : lm.d_heads[row["layer"]]]
    return {layer: heads_.flatten() for layer, heads_ in found.items()}


def _eval(
    lm: LanguageModel, sampled: SampledTrials, settings: StepSettings, by_layer: dict[int, Tensor], advance: Advance
) -> Row:
    if other := sorted({lm.n_heads * width for width in lm.d_heads} - {lm.d_model}):
        note = f"head space is {other[-1]} wide, the residual stream {lm.d_model}: nothing can be added"
        return {"per_layer": {}, "overall": None, "note": note}
    chosen = [of_trial(settings.seed, i).choice(sampled.trials) for i in range(N_EVAL_TRIALS)]
    # The same trial drawn twice is computed once.
    distinct = {trial.trial_idx: trial for trial in chosen}
    prompts = [
        prompt_at_boundary(lm.tokenizer, trial.corrupted_prompt_str, trial.target_str).input_ids
        for trial in distinct.values()
    ]
    targets = [trial.target_first_token_id for trial in distinct.values()]
    at = {idx: row for row, idx in enumerate(distinct)}
    deltas: dict[int, list[float]] = {}
    how = (settings.alpha, settings.engine, settings.max_memory)
    for layer, vector in by_layer.items():
        if bool(vector.any()):
            found = inject_readings(lm, prompts, targets, vector, [layer], *how, advance)
            moved = (found.injected[:, 0, 1].double() - found.base[:, 1].double()).tolist()
            deltas[layer] = [moved[at[trial.trial_idx]] for trial in chosen]
        else:
            deltas[layer] = [0.0] * len(chosen)
    every = [delta for values in deltas.values() for delta in values]
    return {"per_layer": {str(layer): _spread(values) for layer, values in deltas.items()}, "overall": _spread(every)}


def _spread(deltas: Sequence[float]) -> dict[str, Any]:
    return {
        "mean_delta_logit": fmean(deltas),
        "std_delta_logit": population_std(deltas),
        "any_nonzero": any(deltas),
        "n": len(deltas),
    }
