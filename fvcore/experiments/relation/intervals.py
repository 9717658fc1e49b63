"""Intervals over a run's trials: of every head's indirect effect, and of what the vector does at every layer.

The latter beside the same of random heads (`control`) and the difference of both, example by example.
"""

from collections.abc import Hashable, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean

from fvcore.experiments.folder import Folder
from fvcore.experiments.record import Stage
from fvcore.experiments.relation import files
from fvcore.experiments.statistics import Interval, mean_interval, share_interval
from fvcore.experiments.steps import layout, sampled
from fvcore.experiments.steps.scores import HEAD, Row, grouped
from fvcore.formats import read_jsonl

OF_HEADS = ("delta_p", "delta_logit", "delta_logprob")
OF_INJECTION = ("delta_acc", "delta_logit", "delta_logprob", "delta_p")
SHARES = ("accuracy_base", "accuracy_with")
TOP, RANDOM, DIFFERENCE = "top", "random", "difference"


def stage(folder: Folder, n_layers: int, confidence: float) -> Stage:
    """The last of a q_id, behind the control."""
    rows_of_layers = (f"{layout.layer_dir(layer)}/eval_trials.jsonl" for layer in range(n_layers))
    trials = (layout.SAMPLED, layout.TRIAL_METRICS, files.RANDOM_TRIALS, *rows_of_layers)
    return Stage("intervals", {"confidence": confidence}, trials, lambda _: intervals(folder, confidence))


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
        # What each example gives on average over the draws.
        by_example = grouped(rows, itemgetter("idx")).values()
        for metric in OF_INJECTION:
            key = {"layer": layer, "metric": metric}
            own = [row[metric] for row in top]
            others = [fmean(row[metric] for row in draws) for draws in by_example]
            apart = [a - b for a, b in zip(own, others, strict=True)]
            for heads, values in ((TOP, own), (RANDOM, others), (DIFFERENCE, apart)):
                found.append(_row({"heads": heads} | key, "n_eval", mean_interval(values, groups, confidence)))
        for name in SHARES:
            key = {"heads": TOP, "layer": layer, "metric": name}
            found.append(_row(key, "n_eval", _share(top, name, groups, confidence)))
    return found


def _share(rows: Sequence[Row], name: str, groups: Sequence[Hashable], confidence: float) -> Interval:
    """Each query once: the same prompt gives the same answer."""
    once = dict(zip(groups, (row[name] for row in rows), strict=True))
    return share_interval(sum(once.values()), len(once), confidence)


def _row(key: Row, n: str, one: Interval) -> Row:
    return key | {n: one.n, "n_queries": one.n_groups, "mean": one.mean, "low": one.low, "high": one.high}
