"""What each q_id gave, a row each: the numbers that its own files hold, side by side."""

from __future__ import annotations

from pathlib import Path

from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import compute, files
from fvcore.experiments.relation.status import QIdStatus
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.scores import Row
from fvcore.formats import read_csv, read_json, write_csv

COLUMNS = (
    "q_id", "status", "reason", "rows", "n_trials", "n_queries", "topk", "best_head", "aie", "aie_low", "aie_high",
    "requested_n_eval", "n_eval", "acc_base", "best_layer", "acc_with", "metric", "delta", "delta_low", "delta_high",
    "random", "random_low", "random_high", "difference", "difference_low", "difference_high",
)  # fmt: skip
"""`delta` is of `metric`, behind the best layer; `random` is the same of random heads, `difference` what is between."""


def write(root: Path) -> Path:
    write_csv(root / files.OVERVIEW, COLUMNS, rows(root))
    return root / files.OVERVIEW


def rows(root: Path) -> list[Row]:
    """q_ids sorted as strings; one that is not completed, or whose files are not what they were, has no numbers."""
    found = []
    for q_id, one in QIdStatus.all_of(root).items():
        folder, row = Folder(root / q_id), {"q_id": q_id, "status": one.status, "reason": one.reason}
        damaged = one.damage(folder) if one.status == "completed" else []
        if damaged:
            row |= {"status": "damaged", "reason": f"{damaged[0]} is missing or was changed since; run it again"}
        numbers_of = _numbers(folder) if one.status == "completed" and not damaged else {}
        found.append({**row, "rows": one.q_row_count, **numbers_of})
    return found


def top_heads(folder: Folder) -> list[Row]:
    heads: list[Row] = read_json(folder / layout.TOP_HEADS)["heads"]
    return heads


def aie_intervals(folder: Folder, metric: str) -> dict[tuple[int, int], Row]:
    """(layer, head) -> its row; empty for a score that is no mean over trials."""
    _, found = read_csv(folder / files.AIE_INTERVALS)
    return {(int(r["layer"]), int(r["head"])): numbers(r) for r in found if f"mean_{r['metric']}" == metric}


def curve(folder: Folder, heads: str, metric: str) -> list[Row]:
    """Rows of the injection intervals over layers, rising."""
    _, found = read_csv(folder / files.INJECTION_INTERVALS)
    chosen = [numbers(row) for row in found if row["heads"] == heads and row["metric"] == metric]
    return sorted(chosen, key=lambda row: int(row["layer"]))


def numbers(row: dict[str, str]) -> Row:
    """Cells that hold numbers, as numbers; an empty one is None."""
    counts, texts = {"layer", "head", "n_trials", "n_queries", "n_eval"}, {"heads", "metric"}
    return {
        name: cell if name in texts else int(cell) if name in counts else float(cell) if cell else None
        for name, cell in row.items()
    }


def _numbers(folder: Folder) -> Row:
    heads, summary = top_heads(folder), read_json(folder / layout.ALL_LAYERS)
    best, key = heads[0], summary["score_key"]
    aie = aie_intervals(folder, best["score_key"]).get((best["layer"], best["head"]), {})
    layer = summary["best_layer"]
    metric = key.removeprefix("mean_")
    at = {heads: curve(folder, heads, metric)[layer] for heads in (compute.TOP, compute.RANDOM, compute.DIFFERENCE)}
    accuracy = {name: curve(folder, compute.TOP, name)[layer]["mean"] for name in compute.SHARES}
    return {
        "n_trials": best["n_trials"],
        "n_queries": aie.get("n_queries"),
        "topk": len(heads),
        "best_head": f"{best['layer']}.{best['head']}",
        "aie": best["rank_score"],
        "aie_low": aie.get("low"),
        "aie_high": aie.get("high"),
        "requested_n_eval": read_json(folder / f"{layout.layer_dir(layer)}/eval_meta.json")["requested_n_eval"],
        "n_eval": at[compute.TOP]["n_eval"],
        "acc_base": accuracy["accuracy_base"],
        "best_layer": layer,
        "acc_with": accuracy["accuracy_with"],
        "metric": metric,
        **_three("delta", at[compute.TOP]),
        **_three("random", at[compute.RANDOM]),
        **_three("difference", at[compute.DIFFERENCE]),
    }


def _three(name: str, row: Row) -> Row:
    return {name: row["mean"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
