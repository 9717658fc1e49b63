"""Step6: the function vector added behind one layer, or behind each, and what that does to the right answer.

Scores are taken in fp32: logit, logprob = logit - logsumexp, p = exp(logprob). The vector is added at the last token of
a block's output. All layers are computed in one go; each has a folder of its own.
"""

import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean

from torch import Tensor

from fvcore.experiments.errors import NotFinite, StepError, TargetError
from fvcore.experiments.folder import Folder
from fvcore.experiments.plan_files import vector_in
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.plan import chosen_examples
from fvcore.experiments.steps.scores import Row, grouped, population_std
from fvcore.experiments.steps.settings import StepSettings, sizes_of
from fvcore.experiments.steps.zeroshot import Example
from fvcore.fast import engines
from fvcore.fast.chunks import Advance, silent
from fvcore.formats import read_json, read_pt, write_json
from fvcore.injection import InjectedReadings, inject_readings
from fvcore.model.model import LanguageModel
from fvcore.prompts import BoundaryError, Prompt
from fvcore.provenance import now

TAIL = 16  # ids of a tail
CHARACTERS = 30
SLOT_RULE = "last token of the prompt (seq_len - 1)"
GLOBAL = "__global__"
DEBUG = "artifacts/step6/step6_target_id_debug_{}.json"


def run(lm: LanguageModel, settings: StepSettings, folder: Folder, advance: Advance = silent) -> list[Path]:
    """Evaluate at every layer asked for and write its folder; returns the files.

    Raises StepError, after writing `step6_target_id_debug_<i>.json`, where a stored target is not what the tokenizer gives.
    """
    for stale in folder.names(DEBUG.format("*")):
        (folder / stale).unlink()
    (vector, meta), chosen = read_vector(folder, lm), chosen_examples(folder, settings)
    prompts = [_checked(lm, folder, i, example) for i, example in enumerate(chosen)]
    layers = settings.edit_layers(lm)
    ids = [prompt.input_ids for prompt in prompts]
    targets = [example.target_first_token_id for example in chosen]
    how = (settings.alpha, settings.engine, settings.max_memory)
    found = inject_readings(lm, ids, targets, vector, layers, *how, advance)
    files = []
    for i, layer in enumerate(layers):
        rows = [_row(lm, idx, example, found, i) for idx, example in enumerate(chosen)]
        files += _write_layer(lm, settings, folder, layer, vector, meta, rows)
    return files


def read_vector(folder: Folder, lm: LanguageModel) -> tuple[Tensor, Row]:
    """The function vector (d_model,) in fp32, and what its meta file says of it.

    Raises StepError when the vector is not one for this model.
    """
    vector = vector_in(read_pt(folder / layout.FV), folder / layout.FV)
    if not isinstance(vector, Tensor) or tuple(vector.shape) != (lm.d_model,):
        found = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise StepError(f"{folder / layout.FV}: expected a vector of {lm.d_model} numbers for {lm.name}, found {found}")
    if not bool(vector.isfinite().all()):
        raise NotFinite(f"{folder / layout.FV}: the vector is not finite")
    meta = read_json(folder / layout.FV_META)
    if not isinstance(meta, dict):
        raise StepError(f"{folder / layout.FV_META}: expected an object, found {type(meta).__name__}")
    return vector.float(), meta


def _checked(lm: LanguageModel, folder: Folder, i: int, example: Example) -> Prompt:
    name = DEBUG.format(i)
    key = f"example {i} (q_id {example.q_id}, trial {example.trial_id}:{example.trial_idx})"
    prompt = None
    try:
        prompt = example.prompt(lm.tokenizer)
        if prompt.target_id == example.target_first_token_id:
            return prompt
        reason = f"target_first_token_id is {example.target_first_token_id}, the tokenizer gives {prompt.target_id}"
    except BoundaryError as error:
        reason = str(error)
    write_json(folder / name, _debug(lm, example, reason, prompt))
    raise TargetError(f"{key}: {reason}; see {folder / name}")


def _debug(lm: LanguageModel, example: Example, error: str, prompt: Prompt | None) -> Row:
    full = lm.tokenizer(example.corrupted_prompt_str + example.target_str).input_ids
    prefix = lm.tokenizer(example.corrupted_prompt_str).input_ids if prompt is None else list(prompt.input_ids)
    return {
        "error": error,
        "q_id": example.q_id,
        "trial_id": example.trial_id,
        "trial_idx": example.trial_idx,
        "stored_target_id": example.target_first_token_id,
        "stored_target_token": _token(lm, example.target_first_token_id),
        "recomputed_target_id": None if prompt is None else prompt.target_id,
        "recomputed_answer_ids": None if prompt is None else list(prompt.answer_ids),
        "prefix_ids_tail": list(prefix[-TAIL:]),
        "prefix_tail": lm.tokenizer.decode(prefix[-TAIL:]),
        "full_ids_tail": list(full[-TAIL:]),
        "full_tail": lm.tokenizer.decode(full[-TAIL:]),
        "boundary_prefix": example.corrupted_prompt_str[-CHARACTERS:],
        "boundary_answer": example.target_str,
    }


def _token(lm: LanguageModel, token_id: int) -> str | None:
    return lm.tokenizer.decode([token_id]) if 0 <= token_id < lm.vocab_size else None


def _row(lm: LanguageModel, idx: int, example: Example, found: InjectedReadings, layer: int) -> Row:
    target = example.target_first_token_id
    base_id, with_id = int(found.base_ids[idx]), int(found.injected_ids[idx, layer])
    row = {
        "idx": idx,
        "q_id": example.q_id,
        "prompt": example.corrupted_prompt_str,
        "answer": example.target_str,
        "target_id": target,
        "target_token": _token(lm, target),
        "leading_space": example.target_str.startswith(" "),
        "used_id": target,
        "used_token": _token(lm, target),
        "pred_id_base": base_id,
        "pred_id_with": with_id,
        **effect_of(found, idx, layer, target),
        "trial_id": example.trial_id,
        "trial_idx": example.trial_idx,
    }
    if not all(math.isfinite(value) for value in row.values() if isinstance(value, float)):
        raise NotFinite(f"example {idx}: a score is not a finite number: {row}")
    return row


def effect_of(found: InjectedReadings, idx: int, layer: int, target: int) -> Row:
    """Accuracy, logit, logprob and p of one example, without and with the vector, and their differences."""
    base, injected = (int(ids == target) for ids in (found.base_ids[idx], found.injected_ids[idx, layer]))
    row: Row = {"accuracy_base": base, "accuracy_with": injected, "delta_acc": injected - base}
    (_, *before), (_, *after) = found.base[idx].tolist(), found.injected[idx, layer].tolist()
    readings = {"logit": (before[0], after[0]), "logprob": (before[1], after[1])}
    readings["p"] = (math.exp(before[1]), math.exp(after[1]))
    for name, (without, given) in readings.items():
        row |= {f"{name}_base": without, f"{name}_with": given, f"delta_{name}": given - without}
    return row


def summary_of(rows: Sequence[Row]) -> Row:
    """Means over examples; standard deviations are of the population."""

    def mean(name: str) -> float:
        return fmean(row[name] for row in rows)

    found = {"acc_base": mean("accuracy_base"), "acc_with": mean("accuracy_with"), "delta_acc": mean("delta_acc")}
    for name in ("logit", "logprob", "p"):
        found |= {f"mean_{name}_base": mean(f"{name}_base"), f"mean_{name}_with": mean(f"{name}_with")}
        found |= {f"mean_delta_{name}": mean(f"delta_{name}")}
        found |= {f"std_delta_{name}": population_std([row[f"delta_{name}"] for row in rows])}
    return found


def _of_q(rows: Sequence[Row]) -> dict[str, Row]:
    kept = ("acc_base", "acc_with", "delta_acc", "mean_delta_logit", "mean_delta_logprob", "mean_delta_p")
    stds = ("std_delta_logit", "std_delta_logprob", "std_delta_p")
    found = {}
    for q_id, own in grouped(rows, itemgetter("q_id")).items():
        summary = summary_of(own)
        found[q_id] = {"n_eval": len(own)} | {name: summary[name] for name in (*kept, *stds)}
    return found


def _write_layer(
    lm: LanguageModel, settings: StepSettings, folder: Folder, layer: int, vector: Tensor, fv_meta: Row, rows: list[Row]
) -> list[Path]:
    n, engine, key = len(rows), engines.chosen(lm, settings.engine), settings.step6_score_key
    summary, of_q = summary_of(rows), _of_q(rows)
    facts, source = {"shape": list(vector.shape), "norm": float(vector.norm())}, fv_meta.get("fv_source_qid")
    where = {"model": lm.name, "model_spec": lm.spec.name, "edit_layer": layer}
    asked = {"seed": settings.seed, "n_eval": n, "requested_n_eval": settings.n_eval}
    how = {"dtype": lm.dtype, "device": lm.device.type, "batch_size": n if engine == "fast" else 1}
    first = {"fv_source": layout.FV, **asked, "answer_first_token": True, "alpha": settings.alpha}
    results = {
        "config": where | first | how | {"score_key": key},
        "fv": facts,
        "summary": summary,
        "per_qid": of_q,
        "matrix": {source or GLOBAL: {q_id: one["mean_delta_logprob"] for q_id, one in of_q.items()}},
        "metadata": {"with_replacement": settings.with_replacement, "engine": engine},
        "results": rows,
    }
    # `pre` is the plans' word; the vector is added to what leaves the block.
    hook = {"hook_type": "pre", "reshape": "resid_to_heads", "hook_target": lm.spec.block_path(layer)}
    kind = str(fv_meta.get("fv_type") or "global")
    of_vector = {
        "fv_source": layout.FV,
        "fv_type": kind,
        "fv_source_qid": source,
        "eval_scope": "in_domain" if kind == "qid" else "all_qids",
        "eval_qids": list(of_q),
        "config": sizes_of(lm) | hook | how,
        "fv": facts,
        "fv_meta": fv_meta,
        "timestamp": now(),
    }
    slot = {"injection_point": "residual", "slot": "query_predictive", "slot_name": "query_predictive"}
    scored = {"score_key": key, "heads": fv_meta.get("heads"), **asked, "alpha": settings.alpha}
    rules = {"slot_index_rule": SLOT_RULE, "token_rule": fv_meta.get("token_position_rule")}
    meta = where | slot | rules | scored | of_vector
    log = (
        f"Step6: {n} examples ({settings.n_eval} asked for), layer {layer} ({lm.spec.block_path(layer)}, its output), "
        f"alpha {settings.alpha}, engine {engine}\n"
        f"target ids of {n} examples found again at their boundary\n"
        f"batch 0: rows without the vector {n}, rows with it {n}; it changed the logits of the targets\n"
        f"{key}: {summary[key]!r}\n"
    )
    names = (*layout.OF_LAYER, "step6.log", layout.step6_results(lm.name, layer, n))
    paths = [f"{layout.layer_dir(layer)}/{name}" for name in names]
    return folder.write(dict(zip(paths, (summary, rows, meta, log, results), strict=True)))


def write_all_layers(folder: Folder, q_id: str, expected: Sequence[int], score_key: str) -> list[Path]:
    """One score per layer, those that are missing, and the best; the first of equal ones."""
    layers: dict[str, Row] = {}
    for layer in expected:
        directory = layout.layer_dir(layer)
        results = folder.names(f"{directory}/step6_results_*.json")
        summary = folder / directory / "eval_summary.json" if results else None
        if summary is None or not summary.is_file():
            continue
        layers[str(layer)] = {
            "layer_dir": directory,
            "results_path": results[-1],
            "eval_summary_path": f"{directory}/eval_summary.json",
            "score_key": score_key,
            "score_value": read_json(summary)[score_key],
        }
    best = max(layers, key=lambda layer: float(layers[layer]["score_value"]), default=None)
    value = {
        "q_id": q_id,
        "score_key": score_key,
        "expected_layers": list(expected),
        "completed_layers": [int(layer) for layer in layers],
        "missing_layers": [layer for layer in expected if str(layer) not in layers],
        "best_layer": None if best is None else int(best),
        "best_score": None if best is None else layers[best]["score_value"],
        "per_layer": layers,
        "generated_at": now(),
    }
    return folder.write({layout.ALL_LAYERS: value})
