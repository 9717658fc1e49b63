"""M3: what the reference says of every trial, as one file, with its vector and its heads."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fvcore.experiments.plan_files import ReferenceFiles
from fvcore.formats import pt_bytes, sha256, write_json
from fvcore.pipeline import trial_keys
from pytest_fvparity.golden.golden import Golden
from pytest_fvparity.golden.layout import export
from pytest_fvparity.milestones.setup import Failed, MilestoneOutcome, Setup
from pytest_fvparity.parity.refinements import trial_numbers

SCHEMA_VERSION = 1
DUMP = "src_reference_dump.json"


def run(setup: Setup) -> MilestoneOutcome:
    """Every trial of the file once, with its prompt's boundary and its target."""
    golden, names = setup.require_golden(), ReferenceFiles.of(setup.fixed.dataset)
    dump = reference_dump(golden)
    require_whole(dump, {(trial.trial_id, trial.trial_idx) for trial in setup.fixed.trials})
    files = export(golden.path, setup.layout.results, (names.vector, names.heads))
    path = setup.layout.reference / DUMP
    write_json(path, dump)
    return MilestoneOutcome(True, f"{len(dump['trials'])} trials, none missing and none twice", [path, *files])


def reference_dump(golden: Golden) -> dict[str, Any]:
    """The golden in the plan's schema (docs/formats.md)."""
    names = ReferenceFiles.of(golden.profile.identity.dataset)
    of_all = ("slot_map", "mean_activations", "top_heads", "fv_vector")  # their leaves have names of their own
    leaves: dict[str, Any] = {leaf: value for key in of_all for leaf, value in golden.stored(key).items()}
    means, cie, aie, vector = (leaves[leaf] for leaf in ("mean_activations", "cie", "aie", "function_vector"))
    heads = [[*head, score] for head, score in zip(leaves["heads"], leaves["scores"].tolist(), strict=True)]
    slot, label = leaves["dummy_labels"][-1]
    return {
        "schema_version": SCHEMA_VERSION,
        "profile": golden.profile.model_dump(mode="json"),
        "mean": {**_described(means), "query_pred_slot_index": slot, "query_pred_label": label},
        "indirect_effect": {
            "shape": list(cie.shape),
            "mean_min": float(aie.min()),
            "mean_max": float(aie.max()),
            "topk": [[layer, head, score, float(aie[layer, head])] for layer, head, score in heads],
        },
        "top_heads": heads,
        "fv": {**_described(vector.reshape(1, -1)), "norm": float(vector.float().norm()), "path": names.vector},
        "trials": sorted(_trials(golden), key=lambda row: (row["trial_id"], row["trial_idx"])),
    }


def _described(tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "sha256": sha256(pt_bytes(tensor))}


def _trials(golden: Golden) -> list[dict[str, Any]]:
    prompts: Mapping[str, Any] = golden.stored("prompt_boundary")
    injected: Mapping[str, Any] = golden.stored("injection_output")
    rows = []
    for key in trial_keys(injected):
        target = injected[f"{key}/target_id"]
        logits = {way: injected[f"{key}/{way}_logits"].float() for way in ("base", "with")}
        clean, corrupted = (prompts[f"{key}/{regime}/input_ids"] for regime in ("clean", "corrupted"))
        prompt = {
            "clean_n_tokens": len(clean),
            "corrupted_n_tokens": len(corrupted),
            "boundary_len": prompts[f"{key}/corrupted/boundary"],
            "last_token_id": corrupted[-1],
            "ids_sha256": sha256(" ".join(map(str, corrupted)).encode()),
        }
        row: dict[str, Any] = {**trial_numbers(key), "target_id": target, "prompt": prompt}
        row |= {f"{way}_logprob": injected[f"{key}/{way}_logprob"] for way in ("base", "with", "delta")}
        row |= {f"{way}_logprob_fp32": float(of.log_softmax(dim=-1)[target]) for way, of in logits.items()}
        rows.append(row)
    return rows


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
