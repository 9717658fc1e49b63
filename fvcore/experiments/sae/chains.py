"""Chains of pathways, each feature driving the next: the strongest ones that end in a target, without counting out all.

Layers rise along an edge, so what ends in a feature is known once all that ends in the features below it is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import prod

from fvcore.experiments.sae.pathways import Node, Pathway


@dataclass(frozen=True)
class Chain:
    """Pathways, each of which begins where the one before it ends."""

    edges: tuple[Pathway, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (Node.of(self.edges[0].source), *(Node.of(edge.target) for edge in self.edges))

    @property
    def score(self) -> float:
        """The product of the effects along it: positive where its first feature drives its last one up."""
        return prod(map(strength, self.edges))

    @property
    def name(self) -> str:
        return " → ".join(node.name for node in self.nodes)


def strength(edge: Pathway) -> float:
    """The effect over the target's scale; positive where the target falls when the source is taken away."""
    if edge.delta_mean is None or edge.rel_effect is None:
        return 0.0
    return edge.rel_effect if edge.delta_mean < 0 else -edge.rel_effect


def strongest(edges: Iterable[Pathway], max_hops: int, n: int) -> dict[Node, list[Chain]]:
    """Target -> at most `n` chains of two edges or more that end there, by the size of their score.

    Of each length the `n` strongest are kept at every feature, which is all that a longer one can go on from: an edge more
    multiplies all of them alike.
    """
    into: dict[Node, list[Pathway]] = {}
    for edge in edges:
        into.setdefault(Node.of(edge.target), []).append(edge)
    kept: dict[Node, list[list[Chain]]] = {}  # by their length
    for node in sorted(into):
        of_length = [_best((Chain((edge,)) for edge in into[node]), n)]
        before = [(edge, kept[source]) for edge in into[node] if (source := Node.of(edge.source)) in kept]
        for at in range(max_hops - 1):
            longer = (Chain((*chain.edges, edge)) for edge, chains in before for chain in chains[at])
            of_length.append(_best(longer, n))
        kept[node] = of_length
    return {node: _best((chain for chains in of[1:] for chain in chains), n) for node, of in kept.items()}


def _best(chains: Iterable[Chain], n: int) -> list[Chain]:
    return nsmallest(n, chains, key=lambda chain: (-abs(chain.score), chain.nodes))


def influence(edges: Sequence[Pathway]) -> dict[Node, float]:
    """Feature -> what it does to the features where chains end, along all of them: sums of products of sizes of effects."""
    out: dict[Node, list[Pathway]] = {}
    for edge in edges:
        out.setdefault(Node.of(edge.source), []).append(edge)
    nodes = {node for edge in edges for node in (Node.of(edge.source), Node.of(edge.target))}
    found: dict[Node, float] = {}
    for node in sorted(nodes, reverse=True):
        found[node] = (
            sum(abs(strength(edge)) * found[Node.of(edge.target)] for edge in out[node]) if node in out else 1.0
        )
    return found
