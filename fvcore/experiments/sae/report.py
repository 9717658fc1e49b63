"""What a run says, as report.md and report.html with the graph as a picture: drawn from the run's files, without a model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fvcore import page
from fvcore.experiments.folder import Folder
from fvcore.experiments.sae import drawing
from fvcore.experiments.sae.audit import VALIDATION
from fvcore.experiments.sae.contexts import CONTEXTS
from fvcore.experiments.sae.features import FEATURES
from fvcore.experiments.sae.heads import HEADS, HeadSplit
from fvcore.experiments.sae.missed import MISSED, MissedRow
from fvcore.experiments.sae.pathways import PATHWAYS, Pathway, ValidatedPathways
from fvcore.experiments.sae.steps import INTEGRATED, PROTOTYPE, TOKENS
from fvcore.formats import read_json, read_jsonl, validated

PACKAGE = "fvcore.experiments.sae"
GRAPH = "results/integrated/pathway_graph.svg"
REPORTS = {"md": "results/integrated/report.md", "html": "results/integrated/report.html"}
SHOWN = {"pathways": 20, "chains": 12, "tokens": 12}
"""Rows of a table; the files hold all."""

STATUS = {
    "validated": "differs from both nulls, is large enough, and of one sign",
    "not_specific": "no larger than random directions, or than random active features, of the same length",
    "small_effect": "specific, and less than the smallest effect that counts",
    "unstable_sign": "up in some contexts and down in others",
    "mode_disagreement": "ablation and amplification move the target the same way",
    "source_inactive": "the source is active in too few contexts",
    "target_inactive": "the target is active in no context",
    "numeric_error": "a number is not finite, or replaying the same value changed it",
}

LEAST = 0.1
"""Share of an effect that is named."""

Row = dict[str, Any]
Kind = TypeVar("Kind", HeadSplit, MissedRow)


def write(root: Path, kinds: Sequence[str]) -> list[Path]:
    """Write the picture and the reports of the `kinds` md and html below a run's folder; returns them.

    Raises FormatError where the pathways are not there.
    """
    values = values_of(Folder(root))
    made = [page.write(root / GRAPH, PACKAGE, "graph.html.j2", values)] if values["graph"].boxes else []
    return made + [page.write(root / REPORTS[kind], PACKAGE, f"report.{kind}.j2", values) for kind in kinds]


def values_of(folder: Folder) -> Row:
    """What the templates are given; what is not there is empty."""
    path = folder / PATHWAYS
    found = validated(ValidatedPathways, read_json(path), path, "the pathways of a run")
    tokens = _of(folder, TOKENS).get("token_associations", {})
    integrated = _of(folder, INTEGRATED)
    strongest = sorted((one for one in found.pathways if one.validated), key=lambda one: -(one.rel_effect or 0))
    return {
        "found": found,
        "headline": headline(found, integrated),
        "audit": _of(folder, VALIDATION),
        "features": _of(folder, FEATURES).get("metadata", {}),
        "contexts": Counter(one["prompt_type"] for one in _of(folder, CONTEXTS).get("contexts", [])),
        "prototype": _of(folder, PROTOTYPE),
        "graph": drawing.draw(found.pathways),
        "box": drawing.BOX,
        "labels": {name: _label(of) for name, of in tokens.items()},
        "strongest": strongest[: SHOWN["pathways"]],
        "sign": drawing.sign,
        "carried": {(one.source, one.target): _carried(one) for one in _rows(folder, HEADS, HeadSplit)},
        "missed": missed(_rows(folder, MISSED, MissedRow)),
        "n_validated": len(strongest),
        "chains": integrated.get("integrated", [])[: SHOWN["chains"]],
        "n_chains": len(integrated.get("integrated", [])),
        "coverage": integrated.get("coverage", {}),
        "faithfulness": integrated.get("faithfulness", {}),
        "statuses": [(name, found.summary.by_status.get(name, 0), said) for name, said in STATUS.items()],
        "pairs": pairs(found.pathways),
        "tokens": list(_token_rows(tokens))[: SHOWN["tokens"]],
        "n_with_tokens": sum(1 for _ in _token_rows(tokens)),
    }


def _of(folder: Folder, name: str) -> Row:
    return dict(read_json(folder / name)) if (folder / name).is_file() else {}


def _rows(folder: Folder, name: str, kind: type[Kind]) -> list[Kind]:
    return (
        [validated(kind, row, folder / name) for row in read_jsonl(folder / name)] if (folder / name).is_file() else []
    )


def _carried(split: HeadSplit) -> str:
    """Who brings an effect to the target's token: its own stream, then the heads with the largest parts, in shares."""
    whole = split.total or 1.0
    shares = [("its own token", split.stays / whole)]
    shares += [(f"L{one.layer}.H{one.head}", one.part / whole) for one in split.heads]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares if abs(share) >= LEAST)


def missed(rows: Sequence[MissedRow]) -> Row:
    """What screening may have passed over, of the targets that were looked at."""
    if not rows:
        return {}
    bounds = sorted(one.at_most for one in rows)
    return {
        "targets": len(rows),
        "sets": rows[0].n_sets,
        "size": rows[0].size,
        "moving": sum(one.n_moving > 0 for one in rows),
        "median": bounds[len(bounds) // 2],
        "active": sorted(one.n_active for one in rows)[len(rows) // 2],
        "confidence": rows[0].confidence,
    }


def finding(root: Path) -> str:
    """The finding of a run's files, in a sentence; nothing where none was looked for yet."""
    return str(values_of(Folder(root))["headline"]) if (root / PATHWAYS).is_file() else ""


def headline(found: ValidatedPathways, integrated: Row) -> str:
    """The finding in a sentence."""
    n, validated_ones = len(found.pathways), found.summary.validated
    targets = len({one.target for one in found.pathways})
    persistence = sum(one.validated and one.passthrough for one in found.pathways)
    said = f"{validated_ones} of {n} tested pathways to {targets} targets stand against both nulls"
    if persistence:
        said += f", {persistence} of them the same direction carried on"
    if integrated:
        chains = sum(len(one["nodes"]) > 2 for one in integrated["integrated"])
        said += f"; they make {chains} chain{'s' * (chains != 1)} of two or more" if chains else "; no two make a chain"
    return f"{said}."


def pairs(pathways: Sequence[Pathway]) -> Row:
    """Layers of sources, layers of targets, and how many pathways between each were validated, and tested."""
    tested = Counter((one.source_layer, one.target_layer) for one in pathways)
    kept = Counter((one.source_layer, one.target_layer) for one in pathways if one.validated)
    return {
        "sources": sorted({source for source, _ in tested}),
        "targets": sorted({target for _, target in tested}),
        "tested": tested,
        "validated": kept,
        "most": max(kept.values(), default=1),
    }


def _words(rows: Sequence[Row]) -> str:
    return ", ".join(repr(row["token"]) for row in rows[:5])


def _label(of: Row) -> str:
    """What stands behind a feature's name in the picture: the tokens that a patch of it adds and takes away."""
    changed = [one for one in of["comparisons"].values() if one.get("added") or one.get("removed")]
    if changed:
        return "; ".join(f"more {_words(one['added'])}, less {_words(one['removed'])}" for one in changed[:1])
    lens = (of.get("logit_lens") or {}).get("top", [])
    return f"towards {_words(lens)}" if lens else ""


def _token_rows(tokens: Row) -> Iterator[Row]:
    for name, of in tokens.items():
        for comparison, one in of["comparisons"].items():
            if one.get("added") or one.get("removed"):
                best = min(row["q_value"] for row in (*one["added"], *one["removed"]))
                yield {"feature": name, "comparison": comparison, "q": best, **one}
