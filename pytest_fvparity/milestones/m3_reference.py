"""M3: what the reference says of every trial, as one file, with its vector and its heads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fvcore.artifacts import tensor_leaf
from fvcore.formats import pt_bytes, sha256, write_json
from fvcore.pipeline import trial_keys
from pytest_fvparity.golden.golden import Golden
from pytest_fvparity.golden.layout import Names, export
from pytest_fvparity.milestones.outcome import Outcome
from pytest_fvparity.milestones.setup import Failed, Setup

SCHEMA_VERSION = 1
DUMP = "src_reference_dump.json"


def run(setup: Setup) -> Outcome:
    """Every trial of the file once, with its prompt's boundary and its target."""
    golden, names = setup.require_golden(), Names.of(setup.fixed.dataset)
    dump = reference_dump(golden)
    require_whole(dump, {(trial.trial_id, trial.trial_idx) for trial in setup.fixed.trials})
    files = export(golden.path, setup.layout.results, (names.vector, names.heads))
    path = setup.layout.reference / DUMP
    write_json(path, dump)
    return Outcome(True, f"{len(dump['trials'])} trials, none missing and none twice", [path, *files])


def reference_dump(golden: Golden) -> dict[str, Any]:
    """The golden in the plan's schema (docs/formats.md)."""
    names = Names.of(golden.profile.identity.dataset)
    means = tensor_leaf(golden.stored("mean_activations"), "mean_activations")
    effects, vectors = golden.stored("top_heads"), golden.stored("fv_vector")
    cie, aie, vector = (
        tensor_leaf(artifact, leaf)
        for artifact, leaf in ((effects, "cie"), (effects, "aie"), (vectors, "function_vector"))
    )
    heads = cast("list[list[int]]", effects["heads"])
    scores = tensor_leaf(effects, "scores").tolist()
    slot, label = cast("list[list[Any]]", golden.stored("slot_map")["dummy_labels"])[-1]
    return {
        "schema_version": SCHEMA_VERSION,
        "profile": golden.profile.model_dump(mode="json"),
        "mean": {
            **_described(means),
            "query_pred_slot_index": slot,
            "query_pred_label": label,
        },
        "indirect_effect": {
            "shape": list(cie.shape),
            "mean_min": float(aie.min()),
            "mean_max": float(aie.max()),
            "topk": [[*head, score, float(aie[tuple(head)])] for head, score in zip(heads, scores, strict=True)],
        },
        "top_heads": [[*head, score] for head, score in zip(heads, scores, strict=True)],
        "fv": {**_described(vector.reshape(1, -1)), "norm": float(vector.float().norm()), "path": names.vector},
        "trials": sorted(_trials(golden), key=lambda row: (row["trial_id"], row["trial_idx"])),
    }


def _described(tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "sha256": sha256(pt_bytes(tensor))}


def _trials(golden: Golden) -> list[dict[str, Any]]:
    prompts, injected = golden.stored("prompt_boundary"), golden.stored("injection_output")
    rows = []
    for key in trial_keys(injected):
        target = cast("int", injected[f"{key}/target_id"])
        trial_id, trial_idx = (int(part) for part in key.split(":"))
        rows.append(
            {
                "trial_id": trial_id,
                "trial_idx": trial_idx,
                "target_id": target,
                "prompt": _prompt(prompts, key),
                **{f"{way}_logprob": injected[f"{key}/{way}_logprob"] for way in ("base", "with", "delta")},
                **{
                    f"{way}_logprob_fp32": _logprob(tensor_leaf(injected, f"{key}/{way}_logits"), target)
                    for way in ("base", "with")
                },
            }
        )
    return rows


def _prompt(prompts: Mapping[str, Any], key: str) -> dict[str, Any]:
    clean, corrupted = (cast("list[int]", prompts[f"{key}/{regime}/input_ids"]) for regime in ("clean", "corrupted"))
    digest = hashlib.sha256(" ".join(map(str, corrupted)).encode()).hexdigest()
    return {
        "clean_n_tokens": len(clean),
        "corrupted_n_tokens": len(corrupted),
        "boundary_len": prompts[f"{key}/corrupted/boundary"],
        "last_token_id": corrupted[-1],
        "ids_sha256": digest,
    }


def _logprob(logits: Tensor, target: int) -> float:
    return float(torch.log_softmax(logits.float(), dim=-1)[target])


def require_whole(dump: Mapping[str, Any], wanted: set[tuple[int, int]]) -> None:
    """Every trial once, none missing, each with a boundary and a target."""
    keys = [(row["trial_id"], row["trial_idx"]) for row in dump["trials"]]
    problems = [
        *(f"trial {key} is missing" for key in sorted(wanted - set(keys))),
        *(f"trial {key} is none of the file's" for key in sorted(set(keys) - wanted)),
        *(f"trial {key} is there {keys.count(key)} times" for key in sorted(set(keys)) if keys.count(key) > 1),
        *(
            f"trial {(row['trial_id'], row['trial_idx'])} has no target or no boundary"
            for row in dump["trials"]
            if not isinstance(row["target_id"], int) or not row["prompt"]["boundary_len"]
        ),
    ]
    if problems:
        raise Failed(f"{DUMP}: {'; '.join(problems[:5])}")
