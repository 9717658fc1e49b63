"""StepD: the indirect effect of every head, with all its numbers, on one run's sampled trials.

1. Means over the clean prompts, of each q_id by itself.
2. On each corrupted prompt each head is replaced, at the last token, by its mean at the slot that predicts the answer.
3. Nine metrics per trial and head; their means per q_id, and over q_ids.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvcore.experiments.errors import StepError
from fvcore.experiments.folder import Folder
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.cases import Case, Cases
from fvcore.experiments.steps.cases import of as cases_of
from fvcore.experiments.steps.sampled import SampledTrials
from fvcore.experiments.steps.scores import TARGET_COPIES, Row, aie_rows, cie_row, metrics_of
from fvcore.experiments.steps.settings import StepSettings, sizes_of
from fvcore.fast import engines
from fvcore.fast.chunks import Advance, silent
from fvcore.fast.screening import screened_top_heads
from fvcore.model.model import LanguageModel

SHOWN = 10  # heads in the log
TAIL = 30  # characters of a prompt's end


@dataclass(frozen=True, slots=True)
class Swept:
    """One q_id: its means (layer, head, slot, d_head) and for each head a row per trial.

    note: what a screened sweep left out
    """

    q_id: str
    heads: list[tuple[int, int]]
    means: Tensor
    rows: list[list[Row]]
    note: str = ""


def run(
    lm: LanguageModel, sampled: SampledTrials, settings: StepSettings, folder: Folder, advance: Advance = silent
) -> list[Path]:
    """Compute and write every file of StepD; returns the files."""
    cases = cases_of(lm, sampled)
    heads = [(layer, head) for layer in settings.layers_of(lm) for head in settings.heads_of(lm)]
    swept = [_sweep(lm, cases, settings, q_id, heads, advance) for q_id in sampled.q_ids]

    cie = [
        cie_row(one.q_id, *head, rows, float(one.means[*head, cases.slot].norm()))
        for one in swept
        for head, rows in zip(one.heads, one.rows, strict=True)
    ]
    relation = sampled.meta.is_relation
    aie = aie_rows(cie, settings.score_key, relation)
    files = _means(lm, cases, swept) | {layout.CIE: cie, layout.AIE: aie}
    files[layout.TRIAL_METRICS] = [row for one in swept for rows in one.rows for row in rows]
    if not relation:
        meta: dict[str, Any] = {"source": sampled.meta.source, "model": lm.name, "model_spec": lm.spec.name}
        meta |= {"n_trials": len(sampled.trials), "score_key": settings.score_key, "seed": settings.seed}
        files[layout.AIE_JSON] = {"meta": meta, "scores": aie}
    return folder.write(files | {layout.STEP_D_LOG: _log(lm, cases, settings, aie, swept)})


def _sweep(
    lm: LanguageModel, cases: Cases, settings: StepSettings, q_id: str, heads: list[tuple[int, int]], advance: Advance
) -> Swept:
    sampled, own = cases.sampled, [case for case in cases.cases if case.trial.q_id == q_id]
    how = (settings.engine, settings.max_memory)
    means = engines.mean_head_activations(lm, [(case.clean.input_ids, case.clean_slots) for case in own], *how)
    prompts = [(case.corrupted.input_ids, case.trial.target_first_token_id, case.corrupted_slots) for case in own]
    if engines.chosen(lm, settings.engine) == "screened":
        if len(sampled.q_ids) > 1:
            raise StepError(
                f"engine screened screens one q_id at a time, these trials have {len(sampled.q_ids)}; use fast"
            )
        k = min(settings.top_heads, len(heads))
        screening = screened_top_heads(lm, prompts, means, k, heads, settings.max_memory, advance)
        heads, readings, note = screening.computed, screening.readings, f"engine screened: {screening}"
    else:
        readings, note = engines.target_readings(lm, prompts, means, heads, *how, advance), ""
    fixed = [_trial_columns(case, sampled, settings.seed) for case in own]
    rows: list[list[Row]] = [[] for _ in heads]
    for i, (layer, head) in enumerate(heads):
        for case, (first, last), without, replaced in zip(
            own, fixed, readings[:, 0].tolist(), readings[:, 1 + i].tolist(), strict=True
        ):
            metrics = metrics_of(without, replaced)
            copies = {f"{name}_target": metrics[name] for name in TARGET_COPIES}
            key = {"q_id": q_id, "trial_idx": case.trial.trial_idx, "layer": layer, "head": head}
            rows[i].append(key | first | metrics | copies | last)
    return Swept(q_id, heads, means, rows, note)


def _trial_columns(case: Case, sampled: SampledTrials, seed: int) -> tuple[Row, Row]:
    """What a trial's rows say before and after the metrics."""
    trial = case.trial
    clean = [pair.output for pair in trial.demos_clean]
    corrupted = [pair.output for pair in trial.demos_corrupted]
    before = {
        "target_id": trial.target_first_token_id,
        "target_token": trial.target_token,
        "seed_global": seed,
        "shuffle_labels": sampled.meta.source == "dataset_sampled",
        "shuffle_derangement": False,
        "n_icl_examples": len(clean),
        "demo_perm": permutation(clean, corrupted),
        "demo_fixed_points": sum(a == b for a, b in zip(clean, corrupted, strict=True)),
        "demo_outputs_before": clean,
        "demo_outputs_after": corrupted,
    }
    after = {
        "prompt_tail_repr": repr(trial.corrupted_prompt_str[-TAIL:]),
        "prompt_ends_with_space": trial.corrupted_prompt_str.endswith(" "),
        "slot_idx": case.corrupted_slots.query_predictive_slot,
        "seq_token_idx": len(case.corrupted.input_ids) - 1,
        "trial_id": trial.trial_id,
    }
    return before, after


def permutation(before: Sequence[str], after: Sequence[str]) -> list[int]:
    """Where each word of `after` stood in `before`; of equal words the first that is left.

    >>> permutation(["a", "b", "a"], ["b", "a", "a"])
    [1, 0, 2]
    """
    left = list(range(len(before)))
    found = []
    for word in after:
        at = next(i for i in left if before[i] == word)
        left.remove(at)
        found.append(at)
    return found


def _means(lm: LanguageModel, cases: Cases, swept: Sequence[Swept]) -> dict[str, Any]:
    """The files of means."""
    sampled, slot = cases.sampled, cases.slot
    sizes = {"slot_q": slot} | sizes_of(lm)
    clean = {one.q_id: one.means[:, :, slot].contiguous() for one in swept}
    average = torch.stack(list(clean.values())).mean(dim=0)
    meta = {
        "n_mean_trials": len(sampled.trials),
        "n_icl_examples": sampled.meta.n_shots,
        "seed": sampled.meta.seed,
        "layers": list(range(lm.n_layers)),
        "n_layers": lm.n_layers,
        **sizes_of(lm),
        "dummy_labels": list(cases.labels),
        "slot_index_map": {"QUERY_PRED": slot, "query_predictive_token": slot},
        "slot_query_pred": slot,
    }
    return {
        **{layout.q_mean(q_id): {"clean_mean": mean} | sizes for q_id, mean in clean.items()},
        layout.GLOBAL_MEAN: {"clean_mean": average} | sizes,
        # All slots on the antonym path, the last one in the relation path, under one name.
        layout.MEANS: average if sampled.meta.is_relation else swept[0].means,
        layout.MEANS_META: meta,
    }


def _log(lm: LanguageModel, cases: Cases, settings: StepSettings, aie: Sequence[Row], swept: Sequence[Swept]) -> str:
    sampled, slot, engine = cases.sampled, cases.slot, engines.chosen(lm, settings.engine)
    meta, n = sampled.meta, len(sampled.trials)
    targets = [trial.target_first_token_id for trial in sampled.trials]
    lines = [
        f"StepD: {n} trials of {meta.n_shots} shots, source {meta.source}, seed {meta.seed}",
        f"model {lm.name} (spec {lm.spec.name}): {lm.n_layers} layers x {lm.n_heads} heads x {lm.d_head}, "
        f"d_model {lm.d_model}, {lm.dtype} on {lm.device.type}, engine {engine}",
        f"layers {settings.layers_of(lm)}, heads {settings.heads_of(lm)}",
    ]
    if settings.engine != engine:
        lines.append(f"engine {settings.engine} does not hold for this model: {engines.why_not_fast(lm)}")
    lines += [one.note for one in swept if one.note]
    if meta.source == "fixed_trials_override":
        lines.append(f"fixed trials set n_shots {meta.n_shots} and n_trials {n}; labels are shuffled in the file")
    lines += [
        f"checks: prompts of {n} trials written again, equal to the stored ones; target ids {json.dumps(targets)} found "
        f"again on the {meta.target_regime} prompt; last token {cases.labels[slot]}, slot {slot} in all of them",
        f"q_ids: {json.dumps(sampled.q_ids)}",
        f"heads with the largest {settings.score_key}:",
        *(f"  layer {row['layer']} head {row['head']}: {row[settings.score_key]!r}" for row in aie[:SHOWN]),
    ]
    return "\n".join(lines) + "\n"
