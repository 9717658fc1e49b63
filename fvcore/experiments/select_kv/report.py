"""What a run says, as report.md and report.html: drawn from the run's files, so that it can be drawn again without a model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore import page
from fvcore.experiments.select_kv import files, gates, pictures
from fvcore.experiments.select_kv.points import mean
from fvcore.experiments.select_kv.schemas import number
from fvcore.formats import read_json, read_jsonl

SHOWN = 3  # demos
SIGNS = {"<=": "\u2264", ">=": "\u2265"}
ARMS = ("base", "null", "random", "recent", "select", "full", "teacher")
"""In the order of a table; what else was measured stands behind `select`."""

SAID = {
    "base": "the query alone",
    "null": "a prefix of nothing",
    "random": "as many tokens by chance",
    "recent": "as many last tokens",
    "select": "the chosen tokens",
    "full": "the whole demo as a prefix",
    "teacher": "demo and query in one pass",
    "select_recompute": "the chosen tokens, read anew without the rest",
    "select_gather": "the chosen tokens, out of the whole demo's cache",
}

Row = dict[str, Any]


def write(folder: Path) -> list[Path]:
    """Write both pages of a run that was judged; returns them."""
    values = values_of(folder)
    return [
        page.write(folder / files.MARKDOWN, "fvcore.experiments.select_kv", "select_kv.md.j2", values),
        page.write(folder / files.PAGE, "fvcore.experiments.select_kv", "select_kv.html.j2", values),
    ]


def values_of(folder: Path) -> dict[str, Any]:
    """What the templates are given: all of it from the run's files."""
    report: Row = read_json(folder / files.REPORT)
    on, off = read_jsonl(folder / files.ON_ROWS), read_jsonl(folder / files.OFF_ROWS)
    curves = {name: _curve(folder / path) for name, path in CURVES.items()}
    return {
        "report": report,
        "headline": headline(report),
        "verdict": verdict(report),
        "gates": list(gate_rows(report)),
        "signs": SIGNS,
        "arms": list(arm_rows(report)),
        "sources": list(source_rows(report)),
        "demos": [demo_view(row) for row in shown_demos(on)],
        "pictures": dict(_pictures(report, on, off, curves)),
        "topk": report["topk"],
        "n_missed": sum(not row["arms"]["select"]["hit"] for row in on),
        "layer_finding": layer_finding(curves["layers"]),
        **curves,
    }


CURVES = {"layers": files.LAYER_CURVE, "budgets": files.BUDGET_CURVE, "reuse": files.REUSE}


def _curve(path: Path) -> Row:
    """Empty where it was not asked for."""
    return dict(read_json(path)) if path.is_file() else {}


def headline(report: Row) -> str:
    """The finding in a sentence: what the state brings, and what it costs."""
    on, off = report["on"], report["off"]
    reduction = report["thresholds"]["off_delta_reduction"]
    cost, whole = (number(off[arm][f"p99_{reduction}"]) for arm in ("select", "full"))
    kept, brought = number(on["select"]["kept"]), [number(on[arm]["accuracy"]) for arm in ("select", "base", "teacher")]
    tokens, of = ("token", number(on["teacher"]["kept"])) if kept == 1 else ("tokens", number(on["teacher"]["kept"]))
    ratio = f", {_of(cost / whole)} what the whole demo does" if whole and math.isfinite(cost) else ""
    return (
        f"{kept:.3g} {tokens} of {of:.0f} answer {brought[0]:.0%} of the queries, against {brought[1]:.0%} without and "
        f"{brought[2]:.0%} with the whole demo; unrelated prompts move by {cost:.3g} nats at the 99th percentile{ratio}."
    )


def _of(share: float) -> str:
    return f"{share:.0%} of" if share < 2 else f"{share:,.3g} times"


def verdict(report: Row) -> str:
    """Both gates in a clause; of a run that fails, the first rule and its numbers."""
    if report["final_pass"]:
        return "Both gates pass."
    failed = next((row for row in gate_rows(report) if not row["pass"]), None)
    if failed is None:
        return f"No pass: {report['failure_reason']}."
    value = "not finite" if failed["value"] is None else f"{failed['value']:.3g}"
    limit = "not finite" if failed["threshold"] is None else f"{failed['threshold']:.3g}"
    return f"Gate {failed['gate']} fails: {failed['name']} is {value}, allowed is {SIGNS[failed['op']]} {limit}."


def gate_rows(report: Row) -> Iterator[Row]:
    """Every check with its gate and what it asks."""
    for gate, of_gate in report["gates"].items():
        yield from ({"gate": gate, "title": TITLES.get(row["name"], ""), **row} for row in of_gate["checks"])


TITLES = {limit.said or limit.number: rule.title for rule in gates.RULES for limit in rule.limits}
"""Check -> what its rule asks."""


def arm_rows(report: Row) -> Iterator[Row]:
    """A row a condition, ON beside OFF."""
    on, off, intervals = report["on"], report["off"], report["intervals"]
    extra = [arm for arm in on if arm.startswith("select_")]
    at = ARMS.index("select") + 1
    for arm in (*ARMS[:at], *extra, *ARMS[at:]):
        if arm in on:
            yield {
                "arm": arm,
                "said": SAID.get(arm, ""),
                "interval": intervals.get(f"acc_{arm}"),
                "off": off.get(arm),
                **on[arm],
            }


def source_rows(report: Row) -> Iterator[Row]:
    """The chosen source of keys and values beside the other one, each held to the gate's thresholds; none with one source."""
    on, off, limits = report["on"], report["off"], report["thresholds"]
    others = [arm for arm in on if arm.startswith("select_")]
    reduction = limits["off_delta_reduction"]
    for arm, source in [("select", report["kv_source"]), *((arm, arm.removeprefix("select_")) for arm in others)]:
        if others:
            row = {"source": source, "accuracy": number(on[arm]["accuracy"]), "rel_kl": number(on[arm]["rel_kl"])}
            row |= {"kl_base": number(on[arm]["kl_base"]), "off": number(off[arm][f"p99_{reduction}"])}
            yield row | {"fails": list(_fails(row, on, limits))}


def _fails(row: Row, on: Row, limits: Row) -> Iterator[str]:
    """The rules of gate B that these numbers do not meet."""
    gain = row["accuracy"] - number(on["base"]["accuracy"])
    holds = {
        "on_gain": gain >= limits["on_gain_min"],
        "off_delta_p99": row["off"] <= limits["off_delta_p99_max"],
        "delta_on": row["kl_base"] >= limits["delta_on_min"],
        "rel_kl_to_teacher": row["rel_kl"] <= limits["rel_kl_to_teacher_max"],
        "random mean": row["accuracy"] >= number(on["random"]["accuracy"]),
    }
    yield from (name for name, held in holds.items() if not held)


def shown_demos(on: Sequence[Row]) -> list[Row]:
    """The first samples, each of another group if there are some, and the first one that the state does not answer."""
    first = list({row["group"] or row["sample_id"]: row for row in reversed(on)}.values())[::-1][:SHOWN]
    missed = [row for row in on if not row["arms"]["select"]["hit"] and row not in first]
    return [*first, *missed[:1]]


def demo_view(row: Row) -> Row:
    """A demo as pieces: a chosen span, or what stands between; each token with its share of the highest score."""
    top = max((number(score) for score in row["scores"]), default=0.0) or 1.0
    kept, spans = set(row["selection"]["indices"]), row["selection"]["spans"]
    ranks = dict(zip(map(tuple, spans), row["selection"]["span_ranks"], strict=True))
    tokens = [
        {
            "text": text,
            "role": role,
            "index": index,
            "score": number(score),
            "share": round(math.sqrt(max(0.0, number(score)) / top), 3),
            "kept": index in kept,
        }
        for index, (text, role, score) in enumerate(zip(row["tokens"], row["roles"], row["scores"], strict=True))
    ]
    return {
        "row": row,
        "pieces": list(_pieces(tokens, ranks)),
        "kept": "".join(token["text"] for token in tokens if token["kept"]),
    }


def _pieces(tokens: Sequence[Row], ranks: Mapping[tuple[Any, ...], int]) -> Iterator[Row]:
    at = 0
    for start, end in [*sorted(ranks), (len(tokens), len(tokens))]:
        if at < start:
            yield {"rank": None, "tokens": tokens[at:start]}
        if start < end:
            yield {"rank": ranks[start, end] + 1, "tokens": tokens[start:end]}
        at = end


def _pictures(
    report: Row, on: Sequence[Row], off: Sequence[Row], curves: Mapping[str, Row]
) -> Iterator[tuple[str, bytes]]:
    """Name -> the picture; those for which there are numbers."""
    gains = {arm: [row["arms"][arm]["gain"] for row in on] for arm in ("select", "recent", "full")}
    gains["random"] = [row["random"][0]["gain"] for row in on]
    if all(_finite(values) for values in gains.values()):
        means = {arm: _mean(values) for arm, values in gains.items()}
        yield "gain", pictures.spread(gains, means, "gain of the answer's log-probability, nats")
    reduction, limits = report["thresholds"]["off_delta_reduction"], report["thresholds"]
    deltas = {arm: [row["arms"][arm][reduction] for row in off if arm in row["arms"]] for arm in report["off"]}
    if all(_finite(values) for values in deltas.values()):
        each = {arm: _mean(values) for arm, values in deltas.items()}
        marks = {arm: number(report["off"][arm][f"p99_{reduction}"]) for arm in deltas}
        limit = limits["off_delta_p99_max"]
        how = {"marks": marks, "limit": limit, "logarithmic": True}
        yield "off", pictures.spread(deltas, each, f"OFF delta ({reduction}), nats", **how)
    if budgets := curves["budgets"]:
        ends = [number(report["on"][arm]["accuracy"]) for arm in ("base", "teacher")]
        yield "budget_on", pictures.budget_accuracy(budgets["methods"], *ends)
        if budgets["n_off"]:
            yield "budget_off", pictures.budget_off(budgets["methods"], limits["off_delta_p99_max"])
    if layers := curves["layers"]:
        yield "layers", pictures.layer_accuracy(layers["scopes"], layers["n_layers"])
        if layers["vector"]:
            yield "vector", pictures.vector_accuracy(layers["vector"])


def _mean(values: Sequence[float]) -> Row:
    return mean(values, [str(at) for at in range(len(values))])


def _finite(values: Sequence[float | None]) -> bool:
    return bool(values) and all(value is not None and math.isfinite(value) for value in values)


def layer_finding(layers: Row) -> Row | None:
    """The best one layer and the best two neighbours for the state, and the layers with most of the vector's heads."""
    if not layers:
        return None
    by = {tuple(one["layers"]): one["accuracy"]["mean"] for one in layers["scopes"]}
    every = tuple(range(layers["n_layers"]))
    best = {n: max((scope for scope in by if len(scope) == n), key=by.__getitem__, default=every) for n in (1, 2)}
    vector = layers["vector"]
    return {
        "all": by[every],
        "none": by[()],
        "one": {"layer": best[1][0], "accuracy": by[best[1]]},
        "two": {"layers": list(best[2]), "accuracy": by[best[2]]},
        "vector": _vector_finding(vector, best[2]) if vector else None,
    }


def _vector_finding(vector: Row, pair: Sequence[int]) -> Row:
    points = [point["mean"] for point in vector["layers"]]
    best = max(range(len(points)), key=points.__getitem__)
    share = sum(vector["heads"][layer] for layer in pair) / sum(vector["heads"])
    return {"layer": best, "accuracy": points[best], "base": vector["base"]["mean"], "share": share}
