"""Step 5: pathways and tokens together: chains of features, with the words that go with the last of each."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fvcore.experiments.folder import Folder
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.sae import features
from fvcore.experiments.sae.chains import Chain, strength, strongest
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.graph import (
    EDGES,
    GRAPHML,
    LISTING,
    VIEWER,
    best_comparison,
    edge_rows,
    graphml,
    texts,
    viewer,
)
from fvcore.experiments.sae.mediation import Share
from fvcore.experiments.sae.pathways import PATHWAYS, Node, Pathway, ValidatedPathways
from fvcore.experiments.sae.schemas import Row
from fvcore.experiments.sae.steps import INTEGRATED, TOKENS
from fvcore.experiments.sae.tokens import OfFeature, TokenAssociations
from fvcore.formats import read_json, validated, write_text

MOST_LISTED = 10
VERIFYING = "Verifying chains"
ZONES = ((8 / 31, "early"), (17 / 31, "middle"), (1.0, "late"))
"""Up to which share of the last layer a layer is called so: the plan's layers 8 and 17 of 31."""


class OutputTokens(Row):
    """Of one comparison: what the patch brings, and what it takes away."""

    comparison: str
    added: list[str]
    removed: list[str]


class Integrated(Row):
    """A chain. effect_strength: of each edge, over its target's scale, positive where it drives the target up; score: their product

    mediated_fraction: the share of the first feature's effect on the last that goes through those between; None where that was
    not measured, or nothing is between     output_tokens: of the last feature, None where nothing goes with it
    """

    pathway: str
    nodes: list[str]
    gradient_strength: list[float]
    effect_strength: list[float]
    passthrough: list[bool]
    score: float
    mediated_fraction: float | None
    output_tokens: OutputTokens | None
    interpretation: str


class Account(Row):
    """How far the validated sources of a target account for it: means over layers, and each layer's, see `mediation.Share`."""

    faithfulness: float
    completeness: float
    by_layer: dict[str, dict[str, float | int]]


class Results(Row):
    """`results/integrated/integrated_results.json`.

    pathways: the validated ones     tokens: feature -> comparison -> what it brings and takes away     integrated: chains,
    the largest score first     coverage, missing: of the chosen features, how many are in a pathway, and have tokens; which
    are not (the first of them)     faithfulness: target -> account, where chains were verified
    """

    metadata: dict[str, Any]
    pathways: list[dict[str, Any]]
    tokens: dict[str, dict[str, OutputTokens]]
    integrated: list[Integrated]
    coverage: dict[str, int]
    missing: dict[str, list[str]]
    faithfulness: dict[str, Account]


def integrate(settings: PathwaysConfig, progress: Progressing | None = None) -> list[Path]:
    """Write the results and the graph for other programs; returns the files. A model is loaded only to verify chains."""
    folder, own = Folder(settings.paths.out), settings.integrate
    edges = [one for one in _read(folder, PATHWAYS, ValidatedPathways).pathways if one.validated]
    chosen = [one.feature for one in features.read(folder)]
    tokens = _read(folder, TOKENS, TokenAssociations).token_associations if (folder / TOKENS).is_file() else {}
    found = chosen_chains(edges, own.max_hops, own.chains_per_target)
    verified = _verified(settings, found, edges, Watched(progress)) if own.verify_chains and edges else None
    fractions, accounts = verified or ({}, {})
    shares = [(chain, fractions.get(chain.name)) for chain in found]
    kept = [(chain, share) for chain, share in shares if share is None or share >= own.min_mediated]
    last = max((node.layer for chain in found for node in chain.nodes), default=0)
    last = max(last, settings.features.layers[1])
    results = Results(
        metadata={
            "schema_version": 1,
            "max_hops": own.max_hops,
            "chains_per_target": own.chains_per_target,
            "verified": verified is not None,
            "min_mediated": own.min_mediated,
            "chains_not_mediated": len(found) - len(kept),
        },
        pathways=edge_rows(edges),
        tokens={name: said for name, of in tokens.items() if (said := _said(of))},
        integrated=[_integrated(chain, share, tokens, last) for chain, share in kept],
        faithfulness={node.name: _account(of) for node, of in sorted(accounts.items())},
        **_covered(chosen, edges, {name for name, of in tokens.items() if _said(of)}),
    )
    return [*folder.write({INTEGRATED: results.model_dump(mode="json")}), *_exports(folder, settings, edges, tokens)]


def _read(folder: Folder, name: str, kind: Any) -> Any:
    return validated(kind, read_json(folder / name), folder / name)


def chosen_chains(edges: Sequence[Pathway], max_hops: int, n: int) -> list[Chain]:
    """The strongest chains of every target, the largest score first; of a target with no chain its strongest edges."""
    found: list[Chain] = []
    for node, chains in strongest(edges, max_hops, n).items():
        own = sorted((edge for edge in edges if edge.target == node.name), key=lambda edge: -abs(strength(edge)))
        found += chains or [Chain((edge,)) for edge in own[:n]]
    return sorted(found, key=lambda chain: (-abs(chain.score), chain.nodes))


def _verified(
    settings: PathwaysConfig, chains: Sequence[Chain], edges: Sequence[Pathway], watched: Watched
) -> tuple[dict[str, float | None], dict[Node, dict[int, Share]]]:
    from fvcore.experiments.sae import bench
    from fvcore.experiments.sae.mediation import mediated, shares

    longer = [chain for chain in chains if len(chain.edges) > 1]
    n_rows = settings.discover.replay.batch_rows
    with watched.running(VERIFYING, 2) as advance:
        looked = bench.of(settings)
        fractions = mediated(looked, longer, n_rows)
        advance(0, 1)
        accounts = shares(looked, edges, n_rows)
        advance(0, 1)
    return fractions, accounts


def _account(of: Mapping[int, Share]) -> Account:
    return Account(
        faithfulness=fmean(one.faithfulness for one in of.values()),
        completeness=fmean(one.completeness for one in of.values()),
        by_layer={str(layer): one._asdict() for layer, one in of.items()},
    )


def _said(of: OfFeature) -> dict[str, OutputTokens]:
    """Comparison -> its tokens, where there are any."""
    return {
        name: OutputTokens(
            comparison=name, added=[row.token for row in one.added], removed=[row.token for row in one.removed]
        )
        for name, one in of.comparisons.items()
        if one.added or one.removed
    }


def _integrated(chain: Chain, fraction: float | None, tokens: Mapping[str, OfFeature], last: int) -> Integrated:
    of = tokens.get(chain.nodes[-1].name)
    best = best_comparison(of) if of else None
    said = _said(of)[best] if of and best else None
    return Integrated(
        pathway=chain.name,
        nodes=[node.name for node in chain.nodes],
        gradient_strength=[edge.gradient for edge in chain.edges],
        effect_strength=[strength(edge) for edge in chain.edges],
        passthrough=[edge.passthrough for edge in chain.edges],
        score=chain.score,
        mediated_fraction=fraction,
        output_tokens=said,
        interpretation=" ".join(_sentences(chain, fraction, said, last)),
    )


def _sentences(chain: Chain, fraction: float | None, said: OutputTokens | None, last: int) -> Iterator[str]:
    first, *between, end = chain.nodes
    through = f" through {', '.join(_placed(node, last) for node in between)}" if between else ""
    way = "up" if chain.score > 0 else "down"
    yield f"{_placed(first, last)} drives {_placed(end, last)} {way}{through}."
    if fraction is not None:
        yield f"{fraction:.0%} of its effect goes that way."
    if carried := sum(edge.passthrough for edge in chain.edges):
        yield f"{carried} of {len(chain.edges)} edges may be one direction carried on."
    if said:
        parts = [("more", said.added), ("fewer", said.removed)]
        told = ", ".join(f"{what} {' '.join(map(repr, words[:4]))}" for what, words in parts if words)
        yield f"With {end.name} set ({said.comparison}), responses hold {told}."


def _placed(node: Node, last: int) -> str:
    share = node.layer / last if last else 0.0
    return f"{node.name} ({next(name for most, name in ZONES if share <= most + 1e-9)})"


def _covered(chosen: Sequence[str], edges: Sequence[Pathway], with_tokens: set[str]) -> dict[str, Any]:
    ends = {name for edge in edges for name in (edge.source, edge.target)}
    return {
        "coverage": {
            "features": len(chosen),
            "with_pathway": sum(name in ends for name in chosen),
            "with_tokens": sum(name in with_tokens for name in chosen),
            "both": sum(name in ends and name in with_tokens for name in chosen),
        },
        "missing": {
            "no_pathway": [name for name in chosen if name not in ends][:MOST_LISTED],
            "no_tokens": [name for name in chosen if name not in with_tokens][:MOST_LISTED],
        },
    }


def _exports(
    folder: Folder, settings: PathwaysConfig, edges: Sequence[Pathway], tokens: Mapping[str, OfFeature]
) -> list[Path]:
    """For other programs; none where nothing was validated."""
    if not edges:
        return []
    labels = dict(texts(tokens, edges))
    graph = viewer(edges, labels, f"custom-{Path(settings.sae.source).name}")
    write_text(folder / GRAPHML, graphml(edges, labels))
    files = {EDGES: edge_rows(edges), VIEWER: graph, LISTING: {"graphs": [graph["metadata"]]}}
    return [*folder.write(files), folder / GRAPHML]
