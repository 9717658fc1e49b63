"""The files of a run that was never made: enough of each for a report, in the shapes that the steps write."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fvcore.experiments.sae.pathways import PATHWAYS, Pathway, PathwaysSummary, Place, ValidatedPathways
from fvcore.experiments.sae.steps import INTEGRATED, PROTOTYPE, TOKENS

HOSTILE = "<script>|\n"


def pathway(source: str, target: str, rel: float | None, **more: Any) -> Pathway:
    (source_layer, source_id), (target_layer, target_id) = (
        (int(part) for part in name[1:].split("-")) for name in (source, target)
    )
    row: dict[str, Any] = {
        **{"source": source, "target": target, "source_layer": source_layer, "source_id": source_id},
        **{"target_layer": target_layer, "target_id": target_id, "gradient": 0.9, "attribution": 0.6},
        **{"attribution_rel": 0.3, "n_active": 28, "passthrough": False, "decoder_cosine": 0.04},
        **{
            "delta_mean": None if rel is None else -2 * rel,
            "delta_ci": None,
            "rel_effect": None if rel is None else abs(rel),
        },
        **{"sign_agreement": 1.0, "z": -6.1, "z_features": -5.0, "p_directions": 1e-6, "p_features": 1e-5},
        **{"p_value": 1e-5, "q_value": 4e-5, "predicted_mean": -0.6, "correlation": 0.9, "slope": 0.9},
        **{"post_delta_mean": None, "switches_off": 0.0, "amplify": None, "by_prompt": {}},
        "top_position": Place(context="risky-03", token=HOSTILE, offset_from_end=-3),
        **{"status": "validated", "validated": True},
    }
    return Pathway.model_validate(row | more)


def many(n_layers: int = 5, per_layer: int = 5, seed: int = 0) -> list[Pathway]:
    random = Random(seed)
    names = [[f"L{layer}-{random.randrange(32768)}" for _ in range(per_layer)] for layer in range(n_layers)]
    found = []
    for layer, sources in enumerate(names):
        for source in sources:
            for target in (name for later in names[layer + 1 : layer + 3] for name in later):
                kept = random.random() < 0.25
                more = {} if kept else {"status": "not_specific", "validated": False}
                found.append(
                    pathway(source, target, random.uniform(-0.4, 0.6), passthrough=random.random() < 0.2, **more)
                )
    return found


def write(root: Path, pathways: list[Pathway]) -> None:
    statuses = [one.status for one in pathways]
    file = ValidatedPathways(
        metadata={
            "model": "a model",
            "sae": {"format": "made up"},
            "n_contexts": 32,
            "fdr": {"q": 0.05, "family": "global"},
        },
        summary=PathwaysSummary(
            validated=sum(one.validated for one in pathways),
            by_status={name: statuses.count(name) for name in set(statuses)},
            by_layer_pair={},
            targets={},
        ),
        pathways=pathways,
    )
    token = {"token": HOSTILE, "token_id": 3, "q_value": 0.01}
    of_tokens = {"status": "ok", "n_baseline": 30, "n_patched": 30, "added": [token], "removed": []}
    kept = [one for one in pathways if one.validated]
    chains = [
        {
            **{"pathway": f"{one.source} \u2192 {one.target}", "nodes": [one.source, one.target], "score": 0.06},
            **{"gradient_strength": [0.9], "effect_strength": [0.3], "mediated_fraction": None},
            **{"output_tokens": {"added": [HOSTILE], "removed": []}, "interpretation": ""},
        }
        for one in kept[:3]
    ]
    account = {"L3-1": {"faithfulness": 0.81, "completeness": 0.72, "by_layer": {"1": {}, "2": {}}}}
    files = {
        PATHWAYS: file.model_dump(mode="json"),
        TOKENS: {"token_associations": {one.target: {"comparisons": {"a_on_b": of_tokens}} for one in kept}},
        INTEGRATED: {"integrated": chains, "coverage": {}, "faithfulness": account},
        PROTOTYPE: {"passed": True, "criteria": {}, "feature": "L3-1", "sae_health": {"0": {"l0": 8.0, "fvu": 0.02}}},
    }
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(value))
