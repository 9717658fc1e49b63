"""Chains are the strongest there are, what goes through their middle is measured, and other programs can read the graph."""

from __future__ import annotations

import csv
import json
from itertools import combinations, pairwise
from math import prod
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.late import RUNNING

if RUNNING:
    from fvcore.embedded.planted import Planted, build
    from fvcore.experiments.config import resolve
    from fvcore.experiments.sae import bench as benches
    from fvcore.experiments.sae.chains import Chain, influence, strength, strongest
    from fvcore.experiments.sae.config import PathwaysConfig
    from fvcore.experiments.sae.features import FEATURES
    from fvcore.experiments.sae.graph import EDGES, GRAPHML, LISTING, VIEWER, viewer
    from fvcore.experiments.sae.integrate import chosen_chains, integrate
    from fvcore.experiments.sae.mediation import mediated, shares
    from fvcore.experiments.sae.pathways import Node, Pathway
    from fvcore.experiments.sae.steps import INTEGRATED, TOKENS
    from tests.fvcore.experiments.sae.made_up import pathway, write


HOSTILE = ' </clerp>\x00"é'


def dag(seed: int, n: int = 12) -> list[Pathway]:
    """Edges among `n` features, each of a layer of its own or sharing it, effects of both signs and also above 1."""
    random = Random(seed)
    names = sorted({f"L{random.randrange(6)}-{at}" for at in range(n)}, key=Node.of)
    pairs = [(a, b) for a, b in combinations(names, 2) if Node.of(a).layer < Node.of(b).layer]
    kept = [pair for pair in pairs if random.random() < 0.5]
    found = []
    for a, b in kept:
        size = random.uniform(0.1, 1.4)
        found.append(pathway(a, b, size, delta_mean=random.choice((-1, 1)) * size))
    return found


def every_chain(edges: list[Pathway], max_hops: int) -> list[Chain]:
    found, ends = [], [Chain((edge,)) for edge in edges]
    for _ in range(1, max_hops):
        ends = [Chain((*one.edges, edge)) for one in ends for edge in edges if edge.source == one.edges[-1].target]
        found += ends
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("max_hops", "n"), [(4, 5), (2, 1), (5, 3)])
def test_the_strongest_chains_are_those_that_counting_all_out_finds(seed: int, max_hops: int, n: int) -> None:
    edges = dag(seed)
    every = every_chain(edges, max_hops)
    found = strongest(edges, max_hops, n)
    assert every
    assert len(edges) > 12
    for target in {Node.of(edge.target) for edge in edges}:
        ending = sorted((one for one in every if one.nodes[-1] == target), key=lambda one: -abs(one.score))
        assert [one.name for one in found[target]] == [one.name for one in ending[:n]]


def test_a_chain_s_score_has_the_sign_of_its_effects() -> None:
    up, down = pathway("L0-1", "L1-2", 0.5, delta_mean=-1.0), pathway("L1-2", "L2-3", 0.4, delta_mean=1.0)
    assert (strength(up), strength(down)) == (0.5, -0.4)
    assert Chain((up, down)).score == pytest.approx(-0.2)
    assert Chain((up, down)).name == "L0-1 → L1-2 → L2-3"


@pytest.mark.parametrize("seed", range(3))
def test_influence_is_the_sum_over_all_ways_to_where_they_end(seed: int) -> None:
    edges = dag(seed)
    sources = {edge.source for edge in edges}
    whole = [*(Chain((edge,)) for edge in edges), *every_chain(edges, 6)]
    for node, value in influence(edges).items():
        ways = [c for c in whole if c.nodes[0] == node and c.nodes[-1].name not in sources]
        expected = sum(prod(abs(strength(edge)) for edge in one.edges) for one in ways)
        assert value == pytest.approx(expected if node.name in sources else 1.0)


def test_a_target_without_chains_has_its_edges() -> None:
    edges = [pathway("L0-1", "L1-2", 0.5), pathway("L1-2", "L2-3", 0.4), pathway("L0-9", "L3-4", 0.3)]
    assert [one.name for one in chosen_chains(edges, 4, 5)] == ["L0-1 → L1-2", "L0-9 → L3-4", "L0-1 → L1-2 → L2-3"]


@pytest.fixture(scope="module")
def world() -> Planted:
    return build(n_contexts=8)


@pytest.fixture(scope="module")
def bench(world: Planted) -> benches.Bench:
    return benches.planted(world)


def edges_of(world: Planted, *ways: str) -> list[Pathway]:
    """`A.0@0 A2.0@1 B.0@2` -> the pathways of a way."""
    nodes = [[part.split("@") for part in way.split()] for way in ways]
    named = [[f"L{layer}-{world.names[name]}" for name, layer in way] for way in nodes]
    return [pathway(a, b, 0.5) for way in named for a, b in pairwise(way)]


def test_what_goes_through_the_middle_goes_there_and_through_another_s_middle_nothing(
    world: Planted, bench: benches.Bench
) -> None:
    own, other = (
        Chain(tuple(edges_of(world, f"A.0@0 A2.{at}@1 B.0@2"))) for at in (0, 1)
    )  # the second is what no one wrote into the weights
    found = mediated(bench, [own, other], batch_rows=64)
    assert (found[own.name] or 0) > 0.8
    assert abs(found[other.name] or 0) < 0.2
    one_by_one = mediated(bench, [own, other], batch_rows=1)
    assert one_by_one == pytest.approx(found, abs=1e-4)


def test_the_right_sources_account_for_a_target_and_others_do_not(world: Planted, bench: benches.Bench) -> None:
    edges = edges_of(world, "A2.0@1 B.0@2", "BIAS@1 B.0@2", "C.1@1 B.1@2")
    found = shares(bench, edges, batch_rows=64)
    right, wrong = (found[Node(2, world.names[f"B.{at}"])][1] for at in (0, 1))
    assert (right.sources, wrong.sources) == (2, 1)
    assert min(right.faithfulness, right.completeness) > 0.5
    assert max(abs(wrong.faithfulness), abs(wrong.completeness)) < 0.2


def made_up(root: Path, pathways: list[Pathway], **more: Any) -> dict[str, Any]:
    """A run's folder with these pathways; a patch of the last layer's features brings a word that no XML file may hold."""
    write(root, pathways)
    names = sorted({name for one in pathways for name in (one.source, one.target)}, key=Node.of)
    top = max(Node.of(name).layer for name in names)
    features = [
        {"feature": name, "layer": Node.of(name).layer, "feature_id": Node.of(name).id, "cohen_d": 1.0}
        | {"abs_d_rank_in_layer": 1, "direction": "risky", "safe_effect": None, "risky_effect": None}
        | {"p_values": {}, "q_causal": None, "n_source_files": 1, "joinable": True}
        for name in [*names, "L9-1"]
    ]
    metadata = {"rank_by": "cohen_d", "top_k_per_layer": 50, "layers": [0, 9], "total_causal": len(features)}
    metadata |= {"total_filtered": len(features), "per_layer": {}, "source_fingerprint": "", "forced": False}
    word = {"token": HOSTILE, "piece": "x", "token_id": 3, "log_odds": 1.0, "z": 3.0, "p_value": 0.001, "q_value": 0.01}
    word |= {"baseline_count": 0, "patched_count": 9, "baseline_df": 0, "patched_df": 9, "boundary": False}
    compared = {"status": "ok", "n_baseline": 30, "n_patched": 30, "n_empty": 0, "tokens_tested": 9, "calibrated": True}
    tokens = {
        name: {
            "layer": Node.of(name).layer,
            "feature_id": Node.of(name).id,
            "comparisons": {"patch": compared | {"added": [word], "removed": []}, "other": compared | no_words()},
            "logit_lens": None,
        }
        for name in names
        if Node.of(name).layer == top
    }
    files = {
        FEATURES: {"metadata": metadata, "features": features},
        TOKENS: {"metadata": {}, "token_associations": tokens},
    }
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(value))
    settings = resolve(PathwaysConfig, {"paths.out": root, "features.layers": "0-9"} | more)
    assert {path.relative_to(root).as_posix() for path in integrate(settings)} >= {INTEGRATED}
    return dict(json.loads((root / INTEGRATED).read_text()))


def no_words() -> dict[str, Any]:
    return {"added": [], "removed": []}


def test_integration_joins_chains_with_words_and_counts_what_has_neither(tmp_path: Path) -> None:
    edges = [pathway("L1-1", "L3-2", 0.5), pathway("L3-2", "L8-3", 0.4, delta_mean=2.0, passthrough=True)]
    rest = [pathway("L1-5", "L8-3", 0.2, status="not_specific", validated=False)]
    found = made_up(tmp_path, edges + rest)
    chain, single = found["integrated"][::-1]
    assert (single["pathway"], single["output_tokens"]) == ("L1-1 → L3-2", None)
    assert chain["nodes"] == ["L1-1", "L3-2", "L8-3"]
    assert chain["effect_strength"] == [0.5, -0.4]
    assert chain["score"] == pytest.approx(-0.2)
    assert chain["output_tokens"] == {"comparison": "patch", "added": [HOSTILE], "removed": []}
    assert chain["mediated_fraction"] is None
    said = chain["interpretation"]
    assert "L1-1 (early) drives L8-3 (late) down through L3-2 (middle)." in said
    assert "1 of 2 edges may be one direction carried on" in said
    assert found["coverage"] == {"features": 5, "with_pathway": 3, "with_tokens": 1, "both": 1}
    assert found["missing"]["no_pathway"] == ["L1-5", "L9-1"]
    assert len(found["pathways"]) == 2
    assert found["metadata"]["verified"] is False


def test_other_programs_can_read_the_graph(tmp_path: Path) -> None:
    edges = [pathway("L1-1", "L3-2", 0.5), pathway("L3-2", "L8-3", 0.4, delta_mean=2.0)]
    made_up(tmp_path, edges)
    with (tmp_path / EDGES).open(newline="") as file:
        assert [(row["source"], row["target"], float(row["effect"])) for row in csv.DictReader(file)] == [
            ("L1-1", "L3-2", 0.5),
            ("L3-2", "L8-3", -0.4),
        ]
    space = {"g": "http://graphml.graphdrawing.org/xmlns"}
    graph = ElementTree.parse(tmp_path / GRAPHML).getroot()
    assert [one.get("id") for one in graph.findall(".//g:node", space)] == ["L1-1", "L3-2", "L8-3"]
    assert [one.get("target") for one in graph.findall(".//g:edge", space)] == ["L3-2", "L8-3"]
    labels = [one.text for one in graph.findall(".//g:node/g:data[@key='label']", space)]
    assert "\\x00" in (labels[-1] or "")
    shown = json.loads((tmp_path / VIEWER).read_text())
    assert json.loads((tmp_path / LISTING).read_text())["graphs"] == [shown["metadata"]]
    assert f"{shown['metadata']['slug']}.json" == Path(VIEWER).name


def test_the_viewer_s_graph_has_all_that_its_reader_asks_for() -> None:
    for edges in (dag(0), [pathway("L0-1", "L1-2", 0.5)]):
        shown = viewer(edges, {"L0-1": "more ' bet'"}, "custom-made")
        nodes = {node["node_id"]: node for node in shown["nodes"]}
        columns = shown["metadata"]["prompt_tokens"]
        assert len(nodes) == len({(node["layer"], node["feature"]) for node in nodes.values()}) == len(shown["nodes"])
        assert len(columns) >= 2  # of a single one the viewer takes every feature for too common to be shown
        for name, node in nodes.items():
            layer, _, column = name.split("_")
            assert (layer, int(column)) == (node["layer"], node["ctx_idx"])
            assert node["ctx_idx"] < len(columns)
            assert 0 < node["influence"] <= 1 + 1e-9
            assert node["clerp"].startswith(f"L{layer}-")
        assert {end for link in shown["links"] for end in (link["source"], link["target"])} == set(nodes)
        assert [link["weight"] for link in shown["links"]] == [strength(edge) for edge in edges]


def test_a_run_without_validated_pathways_has_results_and_no_graph(tmp_path: Path) -> None:
    found = made_up(tmp_path, [pathway("L1-5", "L8-3", 0.2, status="not_specific", validated=False)])
    assert (found["integrated"], found["pathways"], found["coverage"]["with_pathway"]) == ([], [], 0)
    assert not (tmp_path / GRAPHML).exists()
