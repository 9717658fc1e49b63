"""One HTML file of a run over a relation, whole in itself: what each q_id gave, its heat map, its curve over layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.experiments import page
from fvcore.experiments.clock import now
from fvcore.experiments.pictures import data_uri
from fvcore.experiments.relation import files, overview, pictures, status
from fvcore.experiments.relation.intervals import RANDOM, TOP
from fvcore.experiments.relation.status import Status
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.layout import Folder
from fvcore.experiments.steps.scores import Row
from fvcore.formats import FormatError, read_bytes, read_json

SHOWN = 20  # heads of a q_id in its table


def write(root: Path) -> Path:
    """Write `report.html` from the run's files; no model is needed. Raises FormatError where there is no run."""
    statuses, rows = status.all_of(root), overview.rows(root)
    if not statuses:
        raise FormatError(f"{root}: holds no q_id of a run; `fvcore relation run` makes them")
    done = [row for row in rows if row["status"] == "completed"]
    heads = {row["q_id"]: frozenset(_pairs(Folder(root / row["q_id"]))) for row in done}
    meta = read_json(root / files.RUN_META) if (root / files.RUN_META).is_file() else None
    values = {
        "name": root.name if meta is None else meta["relation_name"],
        "meta": meta,
        "rows": rows,
        "done": done,
        "others": [row for row in rows if row["status"] != "completed"],
        "failed": [(q_id, one) for q_id, one in statuses.items() if one.status == "failed"],
        "bars": data_uri(pictures.bars(done)) if done else None,
        "overlap": data_uri(pictures.overlap(heads)) if len(done) > 1 else None,
        "sections": [_section(root, row, statuses[row["q_id"]]) for row in done],
        "generated_at": now(),
    }
    return page.write(root / files.REPORT, "fvcore.experiments.relation", "report.html.j2", values)


def _section(root: Path, row: Row, one: Status) -> dict[str, Any]:
    folder, metric = Folder(root / row["q_id"]), row["metric"]
    heads = overview.top_heads(folder)
    bounds = overview.aie_intervals(folder, heads[0]["score_key"])
    deltas = {which: overview.curve(folder, which, metric) for which in (TOP, RANDOM)}
    accuracy = overview.curve(folder, TOP, "accuracy_with")
    picture = folder / layout.heatmap(row["q_id"])
    return {
        "row": row,
        "score_key": heads[0]["score_key"],
        "heads": [head | bounds.get((head["layer"], head["head"]), {}) for head in heads[:SHOWN]],
        "n_more": max(0, len(heads) - SHOWN),
        "heatmap": data_uri(read_bytes(picture)) if picture.is_file() else None,
        "curve": data_uri(pictures.injection_curve(deltas, accuracy, row["acc_base"], metric)),
        "random": read_json(folder / files.RANDOM_HEADS)["meta"],
        "examples": _examples(folder),
    }


def _examples(folder: Folder, n: int = 3) -> list[str]:
    """The first pairs that the trials show, so that a reader sees which relation this is."""
    trials: Sequence[Row] = read_json(folder / layout.SAMPLED)["trials"]
    seen = dict.fromkeys(f"{t['query']['input']} \u2192 {t['query']['output']}" for t in trials)
    return list(seen)[:n]


def _pairs(folder: Folder) -> list[tuple[int, int]]:
    return [(head["layer"], head["head"]) for head in overview.top_heads(folder)]
