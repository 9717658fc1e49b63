"""Scores of every head: what each trial gives, its mean per q_id (CIE), the mean over q_ids (AIE), and the CSV files."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from fvcore.experiments.errors import NotFinite, StepError
from fvcore.formats import FormatError, read_csv
from fvcore.heads import best

METRICS = (
    "p_base", "p_patch", "delta_p", "logit_base", "logit_patch", "delta_logit", "logprob_base", "logprob_patch",
    "delta_logprob",
)  # fmt: skip
TARGET_COPIES = ("p_base", "p_patch", "delta_p")
"""Written once more as `*_target`, as the format has it."""

SCORES = (
    "mean_delta_p", "std_delta_p", "mean_abs_delta_p", "mean_p_base", "std_p_base", "mean_p_patch", "std_p_patch",
    "mean_p_base_target", "mean_p_patch_target", "mean_delta_p_target", "mean_delta_logit", "std_delta_logit",
    "mean_abs_delta_logit", "mean_logit_base", "mean_logit_patch", "mean_delta_logprob", "std_delta_logprob",
    "mean_abs_delta_logprob", "mean_logprob_base", "mean_logprob_patch", "any_nonzero", "mean_act_norm",
    "clean_mean_norm",
)  # fmt: skip
CIE_COLUMNS = ("q_id", "layer", "head", "n_trials", *SCORES)
AIE_COLUMNS = ("layer", "head", "n_trials", *SCORES)
AIE_COLUMNS_OF_RELATIONS = ("layer", "head", "n_qid", *SCORES, "n_trials")

NONZERO = 1e-12

Row = dict[str, Any]
Item = TypeVar("Item")
HEAD = itemgetter("layer", "head")
"""The key of a row that is a head's."""


def population_std(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = fmean(values)
    return math.sqrt(fmean([(value - mean) ** 2 for value in values]))


def grouped(rows: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Keys rising, each with its rows in their order."""
    return {of: list(own) for of, own in groupby(sorted(rows, key=key), key)}


def metrics_of(base: Sequence[float], patch: Sequence[float]) -> Row:
    """The nine metrics of one trial and head from (p, logit, logprob) without and with the head replaced."""
    row: Row = {}
    for name, before, after in zip(("p", "logit", "logprob"), base, patch, strict=True):
        row |= {f"{name}_base": before, f"{name}_patch": after, f"delta_{name}": after - before}
    if not all(map(math.isfinite, row.values())):
        raise NotFinite(f"not a finite number: {row}; is the model loaded in a dtype that it can compute in?")
    return row


def cie_row(q_id: str, layer: int, head: int, trials: Sequence[Mapping[str, float]], norm: float) -> Row:
    """One head's scores over the trials of one q_id. `norm` is that of the vector that replaces it."""
    values = {name: [trial[name] for trial in trials] for name in METRICS}
    row: Row = {"q_id": q_id, "layer": layer, "head": head, "n_trials": len(trials)}
    for name in METRICS:
        row[f"mean_{name}"] = fmean(values[name])
        row[f"std_{name}"] = population_std(values[name])
        row[f"mean_abs_{name}"] = fmean(map(abs, values[name]))
    row |= {f"mean_{name}_target": row[f"mean_{name}"] for name in TARGET_COPIES}
    row["any_nonzero"] = any(abs(delta) > NONZERO for delta in values["delta_p"])
    row["mean_act_norm"] = row["clean_mean_norm"] = norm
    return {name: row[name] for name in CIE_COLUMNS}


def aie_rows(cie: Iterable[Row], score_key: str, of_relations: bool) -> list[Row]:
    """Unweighted means over q_ids, largest score first; equal ones by (layer, head).

    Trials of no relation form one q_id, so their scores are the CIE's own.
    """
    found = []
    for (layer, head), rows in grouped(cie, HEAD).items():
        row = {"layer": layer, "head": head, "n_trials": sum(r["n_trials"] for r in rows)}
        if of_relations:
            row |= {"n_qid": len(rows)} | {name: fmean([float(r[name]) for r in rows]) for name in SCORES}
        else:
            row |= {name: rows[0][name] for name in SCORES}
        found.append({name: row[name] for name in (AIE_COLUMNS_OF_RELATIONS if of_relations else AIE_COLUMNS)})
    return sorted(found, key=lambda row: -float(row[score_key]))


def read_scores(path: Path, *needed: str) -> list[Row]:
    """Rows of a score file, in its order: layer and head as integers, other cells where they are numbers.

    Raises FormatError for a column that is missing or holds no numbers, naming those that there are.
    """
    columns, rows = read_csv(path)
    for name in ("layer", "head", *needed):
        numeric = [c for c in columns if c not in {"layer", "head"} and rows and _number(rows[0][c]) is not None]
        if name not in columns or (rows and _number(rows[0][name]) is None):
            raise FormatError(f"{path}: no numeric column {name!r}; available: {', '.join(numeric) or 'none'}")
    if not rows:
        raise FormatError(f"{path}: holds no scores; run StepD again")
    found = []
    for number, row in enumerate(rows, start=1):
        values = {name: value for name, cell in row.items() if (value := _number(cell)) is not None}
        if missing := [name for name in ("layer", "head", *needed) if name not in values]:
            raise FormatError(f"{path}: row {number}, column {missing[0]!r}: {row[missing[0]]!r} is no number")
        found.append(values | {"layer": int(row["layer"]), "head": int(row["head"])})
    return found


def _number(cell: str) -> float | None:
    try:
        value = float({"True": "1", "False": "0"}.get(cell, cell))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def ranked(rows: Sequence[Row], score_key: str, k: int) -> list[Row]:
    """The k best by (-score, layer, head); raises StepError where fewer are scored."""
    try:
        return best(rows, k, lambda row: (row[score_key], row["layer"], row["head"]))
    except ValueError as error:
        raise StepError(f"{error} (--top-heads)") from None
