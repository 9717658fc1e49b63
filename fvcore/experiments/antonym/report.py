"""What a run of the steps found, as `report.html`: drawn from the run's files, without a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore import page
from fvcore.experiments.folder import Folder
from fvcore.experiments.statistics import Interval, mean_interval, share_interval
from fvcore.experiments.steps import curves, layout
from fvcore.experiments.steps.heatmap import grid_of
from fvcore.experiments.steps.scores import HEAD, Row, read_scores
from fvcore.formats import read_json, read_jsonl
from fvcore.plots import limit

PAGE = "report.html"
READ = (layout.ALL_LAYERS, layout.TOP_HEADS, layout.AIE, layout.SAMPLED)
SHOWN = 20  # heads, and examples


def finding(root: Path) -> str:
    """The finding in a sentence; nothing where the steps have not come to an evaluation of all layers."""
    return str(values_of(Folder(root))["headline"]) if _is_whole(Folder(root)) else ""


def _is_whole(folder: Folder) -> bool:
    return all((folder / name).is_file() for name in READ)


def write(root: Path) -> Path | None:
    """Write the page; None where the steps have not come to an evaluation of all layers."""
    folder = Folder(root)
    if not _is_whole(folder):
        return None
    return page.write(root / PAGE, "fvcore.experiments.antonym", "report.html.j2", values_of(folder))


def values_of(folder: Folder) -> dict[str, Any]:
    summary, chosen = read_json(folder / layout.ALL_LAYERS), read_json(folder / layout.TOP_HEADS)
    heads, metric, best = chosen["heads"], summary["score_key"].removeprefix("mean_"), summary["best_layer"]
    by_layer = [_layer(folder, layer, metric) for layer in summary["completed_layers"]]
    at_best = next(row for row in by_layer if row["layer"] == best)
    grid = grid_of(read_scores(folder / layout.AIE, heads[0]["score_key"]), heads[0]["score_key"])
    return {
        "headline": headline(at_best, len(heads), metric),
        "meta": chosen["meta"],
        "metric": metric,
        "best": best,
        "layers": by_layer,
        "heads": heads[:SHOWN],
        "n_heads": len(heads),
        "n_trials": len(read_json(folder / layout.SAMPLED)["trials"]),
        "examples": at_best["rows"][:SHOWN],
        "effects": curves.effects(grid, limit(grid), list(map(HEAD, heads)), heads[0]["score_key"]),
        "curve": curves.effect_curve([_point(row["layer"], row["effect"]) for row in by_layer], metric),
        "accuracy": curves.accuracy_curve([_point(row["layer"], row["share"]) for row in by_layer], at_best["base"]),
    }


def headline(best: Row, n_heads: int, metric: str) -> str:
    """The finding in a sentence."""
    return (
        f"The vector of {n_heads} heads answers {best['share'].mean:.0%} of {best['share'].n} questions behind layer "
        f"{best['layer']}, against {best['base']:.0%} without ({metric.replace('_', ' ')} {best['effect'].mean:+.2f})"
    )


def _layer(folder: Folder, layer: int, metric: str) -> Row:
    rows = read_jsonl(folder / f"{layout.layer_dir(layer)}/eval_trials.jsonl")
    hits: Sequence[int] = [row["accuracy_with"] for row in rows]
    return {
        "layer": layer,
        "rows": rows,
        "base": sum(row["accuracy_base"] for row in rows) / len(rows),
        "share": share_interval(sum(hits), len(hits)),
        # A question that is drawn twice is one witness.
        "effect": mean_interval([row[metric] for row in rows], [row["prompt"] for row in rows]),
    }


def _point(layer: int, of: Interval) -> Row:
    return {"layer": layer, "mean": of.mean, "low": of.low, "high": of.high}
