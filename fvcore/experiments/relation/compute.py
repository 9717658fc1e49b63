"""What a relation run computes beyond the steps: the control of each function vector, and intervals over trials.

The control are vectors of as many heads, chosen at random, added where the function vector is added: what the chosen heads
do counts for as much as it exceeds this. The heads are drawn from those that were scored and not chosen, or, where too few
are left, from all that were scored; the file says which. Intervals are of every head's indirect effect, and of what the
vector does at every layer, beside the same of random heads and the difference of both, example by example.
"""

import random
from collections.abc import Hashable, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean

import torch

from fvcore.experiments.folder import Folder
from fvcore.experiments.record import Stage
from fvcore.experiments.relation import files
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.statistics import Interval, mean_interval, share_interval
from fvcore.experiments.steps import layout, sampled, stepe, zeroshot
from fvcore.experiments.steps.plan import chosen_examples
from fvcore.experiments.steps.scores import HEAD, Row, grouped, read_scores
from fvcore.experiments.steps.settings import settings_of
from fvcore.experiments.steps.step6 import effect_of
from fvcore.fast.chunks import Advance
from fvcore.formats import read_json, read_jsonl
from fvcore.injection import inject_readings
from fvcore.model.model import LanguageModel

Heads = tuple[tuple[int, int], ...]

OF_HEADS = ("delta_p", "delta_logit", "delta_logprob")
OF_INJECTION = ("delta_acc", "delta_logit", "delta_logprob", "delta_p")
SHARES = ("accuracy_base", "accuracy_with")
TOP, RANDOM, DIFFERENCE = "top", "random", "difference"


def stages(lm: LanguageModel, folder: Folder, settings: RelationSettings) -> list[Stage]:
    """After the steps, in the same record."""
    chosen = settings_of("step6", settings, lm) | {"topk": settings.top_heads, "n_random": settings.n_random}
    reads = (layout.ZERO_SHOT, layout.TOP_HEADS, layout.AIE, layout.GLOBAL_MEAN)
    rows_of_layers = tuple(f"{layout.layer_dir(layer)}/eval_trials.jsonl" for layer in range(lm.n_layers))
    trials = (layout.SAMPLED, layout.TRIAL_METRICS, files.RANDOM_TRIALS, *rows_of_layers)
    confidence = settings.confidence
    return [
        Stage("random_heads", chosen, reads, lambda advance: control(lm, folder, settings, advance)),
        Stage("intervals", {"confidence": confidence}, trials, lambda _: intervals(folder, confidence)),
    ]


def random_sets(
    scored: Sequence[tuple[int, int]], top: Sequence[tuple[int, int]], n_sets: int, seed: str
) -> tuple[list[Heads], str]:
    """`n_sets` draws of as many heads as `top` has, each sorted, and where they were drawn from."""
    others = [head for head in sorted(scored) if head not in set(top)]
    pool, source = (others, "heads that were not chosen") if len(others) >= len(top) else (sorted(scored), "all heads")
    rng = random.Random(seed)
    return [tuple(sorted(rng.sample(pool, len(top)))) for _ in range(n_sets)], source


def control(lm: LanguageModel, folder: Folder, settings: RelationSettings, advance: Advance) -> list[Path]:
    """Every random vector behind every layer, on the examples that Step6 evaluates."""
    mean = stepe.read_clean_mean(folder, lm)
    chosen = chosen_examples(zeroshot.read(folder / layout.ZERO_SHOT), settings)
    prompts = [example.prompt(lm.tokenizer).input_ids for example in chosen]
    targets = [example.target_first_token_id for example in chosen]
    scored, top = map(HEAD, read_scores(folder / layout.AIE)), map(HEAD, read_json(folder / layout.TOP_HEADS)["heads"])
    seed = f"{settings.seed}/{chosen[0].q_id}"
    sets, source = random_sets(list(scored), list(top), settings.n_random, seed)

    layers, how = list(range(lm.n_layers)), (settings.alpha, settings.engine, settings.max_memory)
    vectors = [stepe.global_vector(lm, mean, heads) for heads in sets]
    rows: list[Row] = []
    for draw, vector in enumerate(vectors):
        found = inject_readings(lm, prompts, targets, vector, layers, *how, advance)
        for layer in layers:
            for idx, example in enumerate(chosen):
                key = {"draw": draw, "layer": layer, "idx": idx}
                trial = {"trial_id": example.trial_id, "trial_idx": example.trial_idx}
                rows.append(key | trial | effect_of(found, idx, layer, targets[idx]))
    meta = {
        "k": settings.top_heads,
        "n_random": settings.n_random,
        "seed": seed,
        "drawn_from": source,
        "model": lm.name,
    }
    draws = [
        {"draw": draw, "heads": [list(head) for head in heads], "norm": float(vector.norm())}
        for draw, (heads, vector) in enumerate(zip(sets, vectors, strict=True))
    ]
    written = {
        files.RANDOM_HEADS: {"meta": meta, "draws": draws},
        files.RANDOM_FV: {"fv_random_heads": torch.stack(vectors), "resid_dim": lm.d_model},
        files.RANDOM_TRIALS: rows,
    }
    return folder.write(written)


def intervals(folder: Folder, confidence: float) -> list[Path]:
    heads, injection = of_heads(folder, confidence), of_injection(folder, confidence)
    return folder.write({files.AIE_INTERVALS: heads, files.INJECTION_INTERVALS: injection})


def of_heads(folder: Folder, confidence: float) -> list[Row]:
    """A row per head and metric, in order of (layer, head)."""
    trials = sampled.read(folder / layout.SAMPLED).trials
    queries = {trial.trial_idx: trial.query_source_index for trial in trials}
    found = []
    for (layer, head), rows in grouped(read_jsonl(folder / layout.TRIAL_METRICS), HEAD).items():
        groups = [queries[row["trial_idx"]] for row in rows]
        for metric in OF_HEADS:
            key = {"layer": layer, "head": head, "metric": metric}
            found.append(_row(key, "n_trials", mean_interval([row[metric] for row in rows], groups, confidence)))
    return found


def of_injection(folder: Folder, confidence: float) -> list[Row]:
    """A row per layer, metric and choice of heads."""
    found = []
    for layer, rows in grouped(read_jsonl(folder / files.RANDOM_TRIALS), itemgetter("layer")).items():
        top = read_jsonl(folder / f"{layout.layer_dir(layer)}/eval_trials.jsonl")
        groups = [row["prompt"] for row in top]
        by_draw = _mean_over_draws(rows)
        for metric in OF_INJECTION:
            key = {"layer": layer, "metric": metric}
            own, others = [row[metric] for row in top], by_draw[metric]
            apart = [a - b for a, b in zip(own, others, strict=True)]
            for heads, values in ((TOP, own), (RANDOM, others), (DIFFERENCE, apart)):
                found.append(_row({"heads": heads} | key, "n_eval", mean_interval(values, groups, confidence)))
        for name in SHARES:
            key = {"heads": TOP, "layer": layer, "metric": name}
            found.append(_row(key, "n_eval", _share(top, name, groups, confidence)))
    return found


def _mean_over_draws(rows: Sequence[Row]) -> dict[str, list[float]]:
    """metric -> what each example gives on average over the draws."""
    by_example = grouped(rows, itemgetter("idx")).values()
    return {metric: [fmean(row[metric] for row in own) for own in by_example] for metric in OF_INJECTION}


def _share(rows: Sequence[Row], name: str, groups: Sequence[Hashable], confidence: float) -> Interval:
    """Each query once: the same prompt gives the same answer."""
    once = dict(zip(groups, (row[name] for row in rows), strict=True))
    return share_interval(sum(once.values()), len(once), confidence)


def _row(key: Row, n: str, one: Interval) -> Row:
    return key | {n: one.n, "n_queries": one.n_groups, "mean": one.mean, "low": one.low, "high": one.high}
