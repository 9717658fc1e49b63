"""What a run over a relation gave: overview.csv, a row for each q_id, and one HTML file, whole in itself, with pictures."""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from fvcore import page
from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import files, pictures
from fvcore.experiments.relation.gates import QIdStatus
from fvcore.experiments.relation.intervals import DIFFERENCE, RANDOM, SHARES, TOP
from fvcore.experiments.steps import curves, layout
from fvcore.experiments.steps.heatmap import grid_of
from fvcore.experiments.steps.scores import HEAD, Row, read_scores
from fvcore.formats import FormatError, read_csv, read_json, write_csv
from fvcore.plots import limit
from fvcore.provenance import now

COLUMNS = (
    "q_id", "status", "reason", "rows", "n_trials", "n_queries", "topk", "best_head", "aie", "aie_low", "aie_high",
    "requested_n_eval", "n_eval", "acc_base", "best_layer", "acc_with", "metric", "delta", "delta_low", "delta_high",
    "random", "random_low", "random_high", "difference", "difference_low", "difference_high",
)  # fmt: skip
"""`delta` is of `metric`, behind the best layer; `random` is the same of random heads, `difference` what is between."""


def write_overview(root: Path) -> Path:
    """overview.csv: what each q_id gave, a row each, the numbers that its own files hold."""
    write_csv(root / files.OVERVIEW, COLUMNS, rows(root))
    return root / files.OVERVIEW


def rows(root: Path) -> list[Row]:
    """q_ids sorted as strings; one that is not completed, or whose files are not what they were, has no numbers."""
    found = []
    for q_id, one in QIdStatus.all_of(root).items():
        folder = Folder(root / q_id)
        row: Row = {"q_id": q_id, "status": one.status, "reason": one.reason, "rows": one.q_row_count}
        if damaged := one.damage(folder):
            row |= {"status": "damaged", "reason": f"{damaged[0]} is missing or was changed since; run it again"}
        elif one.status == "completed":
            row |= _numbers(folder)
        found.append(row)
    return found


def sentence(row: Row) -> str:
    """What a completed q_id gave, in a sentence; nothing of another one."""
    if "best_layer" not in row:
        return ""
    said = f"{row['q_id']}: best layer {row['best_layer']}, accuracy {row['acc_base']:.2f} -> {row['acc_with']:.2f}"
    if row["difference"] is None:
        return f"{said}; no random heads to compare with"
    # Of a single query there is no interval.
    low, high = row["difference_low"], row["difference_high"]
    interval = "" if low is None else f" ({low:+.2f} to {high:+.2f})"
    return f"{said}, margin over random heads {row['difference']:+.2f}{interval} {row['metric']}"


def top_heads(folder: Folder) -> list[Row]:
    heads: list[Row] = read_json(folder / layout.TOP_HEADS)["heads"]
    return heads


def aie_intervals(folder: Folder, metric: str) -> dict[tuple[int, int], Row]:
    """(layer, head) -> its row; empty for a score that is no mean over trials."""
    _, found = read_csv(folder / files.AIE_INTERVALS)
    return {HEAD(row): row for row in map(numbers, found) if f"mean_{row['metric']}" == metric}


def curve(folder: Folder, heads: str, metric: str) -> list[Row]:
    """Rows of the injection intervals over layers, rising."""
    _, found = read_csv(folder / files.INJECTION_INTERVALS)
    chosen = [numbers(row) for row in found if row["heads"] == heads and row["metric"] == metric]
    return sorted(chosen, key=itemgetter("layer"))


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
    aie = aie_intervals(folder, best["score_key"]).get(HEAD(best), {})
    layer = summary["best_layer"]
    metric = key.removeprefix("mean_")
    at = {heads: curve(folder, heads, metric)[layer] for heads in (TOP, RANDOM, DIFFERENCE)}
    accuracy = {name: curve(folder, TOP, name)[layer]["mean"] for name in SHARES}
    return {
        "n_trials": best["n_trials"],
        "n_queries": aie.get("n_queries"),
        "topk": len(heads),
        "best_head": f"{best['layer']}.{best['head']}",
        "aie": best["rank_score"],
        "aie_low": aie.get("low"),
        "aie_high": aie.get("high"),
        "requested_n_eval": read_json(folder / f"{layout.layer_dir(layer)}/eval_meta.json")["requested_n_eval"],
        "n_eval": at[TOP]["n_eval"],
        "acc_base": accuracy["accuracy_base"],
        "best_layer": layer,
        "acc_with": accuracy["accuracy_with"],
        "metric": metric,
        **_three("delta", at[TOP]),
        **_three("random", at[RANDOM]),
        **_three("difference", at[DIFFERENCE]),
    }


def _three(name: str, row: Row) -> Row:
    return {name: row["mean"], f"{name}_low": row["low"], f"{name}_high": row["high"]}


SHOWN = 20  # heads of a q_id in its table
NAMED = 4  # q_ids in the headline


def headline(table: Sequence[Row]) -> str:
    """The finding in a sentence: how many relations have a vector, which, and what became of the others."""
    done = [row for row in table if row["status"] == "completed"]
    found = sorted((row for row in done if has_vector(row)), key=lambda row: -row["difference"])
    if not done:
        return f"None of {len(table)} relations could be completed"
    named = [f"{row['q_id']} {row['delta']:+.2g} behind layer {row['best_layer']}" for row in found[:NAMED]]
    named += [f"{len(found) - NAMED} more"] if len(found) > NAMED else []
    said = f"{len(found) or 'None'} of {len(done)} relations {'has' if len(found) == 1 else 'have'} a vector"
    said += (
        f": {', '.join(named)} ({done[0]['metric'].replace('_', ' ')})"
        if named
        else " that does more than random heads"
    )
    return said + (f"; {len(table) - len(done)} not completed" if len(table) > len(done) else "")


def has_vector(row: Row) -> bool:
    """Whether it does more than random heads behind its best layer, and the whole interval says so."""
    return row["difference_low"] is not None and row["difference_low"] > 0


def write(root: Path) -> Path:
    """Write `report.html` from the run's files; no model is needed. Raises FormatError where there is no run."""
    statuses, table = QIdStatus.all_of(root), rows(root)
    if not statuses:
        raise FormatError(f"{root}: holds no q_id of a run; `fvcore relation run` makes them")
    done = [row for row in table if row["status"] == "completed"]
    heads = {row["q_id"]: frozenset(map(HEAD, top_heads(Folder(root / row["q_id"])))) for row in done}
    meta = read_json(root / files.RUN_META) if (root / files.RUN_META).is_file() else None
    grids = {row["q_id"]: _effects(Folder(root / row["q_id"]), meta) for row in done}
    # One scale for all maps: what is pale in one is small beside the others.
    scale = limit(np.concatenate([grid.ravel() for grid in grids.values()])) if grids else 1.0
    values = {
        "headline": headline(table),
        "has_vector": has_vector,
        "name": root.name if meta is None else meta["relation_name"],
        "meta": meta,
        "rows": table,
        "done": done,
        "others": [row for row in table if row["status"] != "completed"],
        "failed": [(q_id, one) for q_id, one in statuses.items() if one.status == "failed"],
        "bars": pictures.bars(done) if done else None,
        "overlap": pictures.overlap(heads) if len(done) > 1 else None,
        "sections": [_section(root, row, grids[row["q_id"]], scale) for row in done],
        "generated_at": now(),
    }
    return page.write(root / files.REPORT, "fvcore.experiments.relation", "report.html.j2", values)


def _effects(folder: Folder, meta: Row | None) -> Any:
    """(layer, head): the effects by which the heads were chosen."""
    metric = top_heads(folder)[0]["score_key"]
    size = (meta["n_layers"], meta["n_heads"]) if meta else (None, None)
    return grid_of(read_scores(folder / layout.AIE, metric), metric, *size)


def _section(root: Path, row: Row, grid: Any, scale: float) -> dict[str, Any]:
    folder, metric = Folder(root / row["q_id"]), row["metric"]
    heads = top_heads(folder)
    bounds = aie_intervals(folder, heads[0]["score_key"])
    top, random = (curve(folder, which, metric) for which in (TOP, RANDOM))
    accuracy = curve(folder, TOP, "accuracy_with")
    queries = [trial["query"] for trial in read_json(folder / layout.SAMPLED)["trials"]]
    return {
        "row": row,
        "score_key": heads[0]["score_key"],
        "heads": [head | bounds.get(HEAD(head), {}) for head in heads[:SHOWN]],
        "n_more": max(0, len(heads) - SHOWN),
        "effects": curves.effects(grid, scale, [HEAD(head) for head in heads], heads[0]["score_key"]),
        "curve": curves.effect_curve(top, metric, random),
        "accuracy": curves.accuracy_curve(accuracy, row["acc_base"]),
        "random": read_json(folder / files.RANDOM_HEADS)["meta"],
        # The first pairs that the trials show, so that a reader sees which relation this is.
        "examples": list(dict.fromkeys(f"{query['input']} \u2192 {query['output']}" for query in queries))[:3],
    }
