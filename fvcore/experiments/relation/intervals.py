"""Intervals over trials: of every head's indirect effect, and of what the vector does at every layer.

The second stands beside the same of random heads, and beside the difference of both, example by example.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from statistics import fmean

from fvcore.experiments.record import Stage
from fvcore.experiments.relation import files
from fvcore.experiments.relation.settings import RelationSettings
from fvcore.experiments.statistics import Interval, mean_interval, share_interval
from fvcore.experiments.steps import layout, sampled
from fvcore.experiments.steps.layout import Folder
from fvcore.experiments.steps.scores import Row
from fvcore.formats import read_text, write_csv

OF_HEADS = ("delta_p", "delta_logit", "delta_logprob")
OF_INJECTION = ("delta_acc", "delta_logit", "delta_logprob", "delta_p")
SHARES = ("accuracy_base", "accuracy_with")
NUMBERS = ("mean", "low", "high")
AIE_COLUMNS = ("layer", "head", "metric", "n_trials", "n_queries", *NUMBERS)
INJECTION_COLUMNS = ("heads", "layer", "metric", "n_eval", "n_queries", *NUMBERS)
TOP, RANDOM, DIFFERENCE = "top", "random", "difference"


def stage(folder: Folder, settings: RelationSettings, n_layers: int) -> Stage:
    rows_of_layers = tuple(f"{layout.layer_dir(layer)}/eval_trials.jsonl" for layer in range(n_layers))
    reads = (layout.SAMPLED, layout.TRIAL_METRICS, files.RANDOM_TRIALS, *rows_of_layers)
    return Stage("intervals", {"confidence": settings.confidence}, reads, lambda _: run(folder, settings.confidence))


def run(folder: Folder, confidence: float) -> list[Path]:
    write_csv(folder / files.AIE_INTERVALS, AIE_COLUMNS, of_heads(folder, confidence))
    write_csv(folder / files.INJECTION_INTERVALS, INJECTION_COLUMNS, of_injection(folder, confidence))
    return [folder / files.AIE_INTERVALS, folder / files.INJECTION_INTERVALS]


def of_heads(folder: Folder, confidence: float) -> list[Row]:
    """A row per head and metric, in order of (layer, head)."""
    trials = sampled.read(folder / layout.SAMPLED).trials
    queries = {trial.trial_idx: trial.query_source_index for trial in trials}
    by_head: dict[tuple[int, int], list[Row]] = {}
    for row in read_rows(folder / layout.TRIAL_METRICS):
        by_head.setdefault((row["layer"], row["head"]), []).append(row)
    found = []
    for (layer, head), rows in sorted(by_head.items()):
        groups = [queries[row["trial_idx"]] for row in rows]
        for metric in OF_HEADS:
            one = mean_interval([row[metric] for row in rows], groups, confidence)
            key = {"layer": layer, "head": head, "metric": metric, "n_trials": one.n, "n_queries": one.n_groups}
            found.append(key | _numbers(one))
    return found


def of_injection(folder: Folder, confidence: float) -> list[Row]:
    """A row per layer, metric and choice of heads."""
    random_rows: dict[int, list[Row]] = {}
    for row in read_rows(folder / files.RANDOM_TRIALS):
        random_rows.setdefault(row["layer"], []).append(row)
    found = []
    for layer, rows in sorted(random_rows.items()):
        top = read_rows(folder / f"{layout.layer_dir(layer)}/eval_trials.jsonl")
        groups = [row["prompt"] for row in top]
        by_draw = _mean_over_draws(rows, len(top))
        for metric in OF_INJECTION:
            own, others = [row[metric] for row in top], by_draw[metric]
            apart = [a - b for a, b in zip(own, others, strict=True)]
            for heads, values in ((TOP, own), (RANDOM, others), (DIFFERENCE, apart)):
                found.append(_row(heads, layer, metric, mean_interval(values, groups, confidence)))
        found += [_row(TOP, layer, name, _share(top, name, groups, confidence)) for name in SHARES]
    return found


def _mean_over_draws(rows: Sequence[Row], n: int) -> dict[str, list[float]]:
    """metric -> what each example gives on average over the draws."""
    by_example: list[list[Row]] = [[] for _ in range(n)]
    for row in rows:
        by_example[row["idx"]].append(row)
    return {metric: [fmean(row[metric] for row in own) for own in by_example] for metric in OF_INJECTION}


def _share(rows: Sequence[Row], name: str, groups: Sequence[Hashable], confidence: float) -> Interval:
    """Each query once: the same prompt gives the same answer."""
    once = dict(zip(groups, (row[name] for row in rows), strict=True))
    return share_interval(sum(once.values()), len(once), confidence)


def _row(heads: str, layer: int, metric: str, one: Interval) -> Row:
    key = {"heads": heads, "layer": layer, "metric": metric, "n_eval": one.n, "n_queries": one.n_groups}
    return key | _numbers(one)


def _numbers(one: Interval) -> Row:
    return {"mean": one.mean, "low": one.low, "high": one.high}


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in read_text(path).splitlines()]
