"""Validated pathways as files for other programs: a table, GraphML, and the graph that circuit-tracer's viewer reads.

That viewer puts nodes in columns of tokens and rows of layers. A feature here is one node, whatever the contexts; its column
is how far from the end of a context it counts most.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any
from xml.etree import ElementTree

from fvcore.experiments.sae.chains import influence, strength
from fvcore.experiments.sae.pathways import Node, Pathway
from fvcore.experiments.sae.tokens import OfFeature

SLUG = "graph"
VIEWER = f"results/integrated/{SLUG}.json"
LISTING = "results/integrated/graph-metadata.json"
"""What the viewer's server looks for first: the graphs of its folder."""
EDGES = "results/integrated/edges.csv"
GRAPHML = "results/integrated/graph.graphml"
N_WORDS = 4


def label(of: OfFeature | None) -> str:
    """What is known of a feature in words: what its patches bring and take away, else what its direction writes."""
    if of is None:
        return ""
    if (best := best_comparison(of)) is not None:
        rows = of.comparisons[best]
        parts = [("more", rows.added), ("less", rows.removed)]
        return ", ".join(f"{what} {_quoted([row.token for row in some])}" for what, some in parts if some)
    return f"writes {_quoted([row.token for row in of.logit_lens.top])}" if of.logit_lens else ""


def best_comparison(of: OfFeature) -> str | None:
    """The comparison in which a token has the smallest q; of equal ones the first."""
    found = {name: [row.q_value for row in (*one.added, *one.removed)] for name, one in of.comparisons.items()}
    return min((name for name in found if found[name]), key=lambda name: min(found[name]), default=None)


def _quoted(words: Sequence[str]) -> str:
    """As Python writes them, so that spaces are seen, and what no XML file may hold is spelt out."""
    return " ".join(map(repr, words[:N_WORDS]))


def nodes_of(edges: Sequence[Pathway]) -> list[Node]:
    return sorted({Node.of(name) for edge in edges for name in (edge.source, edge.target)})


def edge_rows(edges: Sequence[Pathway]) -> list[dict[str, Any]]:
    """effect: signed, positive where the source drives the target up."""
    return [
        {"source": edge.source, "target": edge.target, "effect": strength(edge)}
        | edge.model_dump(include={"delta_mean", "q_value", "gradient", "attribution", "passthrough"})
        for edge in edges
    ]


def graphml(edges: Sequence[Pathway], labels: Mapping[str, str]) -> str:
    """Nodes with layer, feature and label; edges with effect, q_value and passthrough."""
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    kinds = {"node": {"layer": "int", "feature": "int", "label": "string"}}
    kinds["edge"] = {"effect": "double", "q_value": "double", "passthrough": "boolean"}
    for where, keys in kinds.items():
        for name, kind in keys.items():
            ElementTree.SubElement(root, "key", {"id": name, "for": where, "attr.name": name, "attr.type": kind})
    graph = ElementTree.SubElement(root, "graph", edgedefault="directed")
    for node in nodes_of(edges):
        about = {"layer": node.layer, "feature": node.id, "label": labels.get(node.name, "")}
        _with_data(ElementTree.SubElement(graph, "node", id=node.name), about)
    for edge in edges:
        about = {"effect": strength(edge), "q_value": edge.q_value, "passthrough": str(edge.passthrough).lower()}
        _with_data(ElementTree.SubElement(graph, "edge", source=edge.source, target=edge.target), about)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _with_data(element: ElementTree.Element, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is not None:
            ElementTree.SubElement(element, "data", key=name).text = str(value)


def viewer(edges: Sequence[Pathway], labels: Mapping[str, str], scan: str) -> dict[str, Any]:
    """The viewer's graph. scan: what it calls the set of features

    A node's `influence` is what all nodes of no less influence have together, as a share: the viewer's slider cuts by it.
    """
    places = _places(edges)
    columns = sorted({*places.values(), *((-1, 0) if len(set(places.values())) < 2 else ())})
    ids = {node: f"{node.layer}_{node.id}_{columns.index(places[node])}" for node in places}
    shares = _cumulative(influence(edges))
    return {
        "metadata": {
            "slug": SLUG,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": [f"{column}" if column else "last" for column in columns],
            "prompt": "validated pathways; columns are tokens before the end",
            "node_threshold": 1.0,
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            {
                "node_id": ids[node],
                "jsNodeId": ids[node],
                "feature": _paired(node),
                "layer": str(node.layer),
                "ctx_idx": columns.index(places[node]),
                "feature_type": "cross layer transcoder",
                "clerp": f"{node.name} {labels.get(node.name, '')}".strip(),
                "influence": shares[node],
            }
            for node in places
        ],
        "links": [
            {"source": ids[Node.of(edge.source)], "target": ids[Node.of(edge.target)], "weight": strength(edge)}
            for edge in edges
        ],
    }


def _paired(node: Node) -> int:
    """One number for a layer and a feature (Cantor's), by which the viewer knows features apart."""
    return (node.layer + node.id) * (node.layer + node.id + 1) // 2 + node.id


def _places(edges: Sequence[Pathway]) -> dict[Node, int]:
    """Feature -> tokens from the end, where it counts most for its strongest target; a target that is no source: the last."""
    strongest: dict[Node, Pathway] = {}
    for edge in sorted(edges, key=lambda edge: abs(strength(edge))):
        strongest[Node.of(edge.source)] = edge
    return {node: strongest[node].top_position.offset_from_end if node in strongest else 0 for node in nodes_of(edges)}


def _cumulative(found: Mapping[Node, float]) -> dict[Node, float]:
    order = sorted(found, key=lambda node: (-found[node], node))
    whole = sum(found.values())
    return {node: so_far / whole for node, so_far in zip(order, accumulate(found[node] for node in order), strict=True)}


def texts(of: Mapping[str, OfFeature], edges: Sequence[Pathway]) -> Iterator[tuple[str, str]]:
    """Name and label of every feature that an edge has."""
    return ((node.name, label(of.get(node.name))) for node in nodes_of(edges))
