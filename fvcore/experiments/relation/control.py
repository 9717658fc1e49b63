"""The control of a function vector: vectors of as many heads, chosen at random, added where it is added.

What the chosen heads do counts for as much as it exceeds this. The heads are drawn from those that were scored and not
chosen, or, where too few are left, from all that were scored; the file says which.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from fvcore.experiments.record import Stage
from fvcore.experiments.relation import files
from fvcore.experiments.relation.settings import RelationSettings
from fvcore.experiments.steps import layout, stepe, zeroshot
from fvcore.experiments.steps.layout import Folder
from fvcore.experiments.steps.plan import unique_queries, with_replacement
from fvcore.experiments.steps.scores import Row, read_scores
from fvcore.experiments.steps.settings import settings_of
from fvcore.experiments.steps.step6 import scores_of
from fvcore.fast.chunks import Advance
from fvcore.formats import read_json, write_json, write_jsonl, write_pt
from fvcore.injection import inject_readings
from fvcore.model.model import LanguageModel

Heads = tuple[tuple[int, int], ...]


def stage(lm: LanguageModel, folder: Folder, settings: RelationSettings) -> Stage:
    chosen = settings_of("step6", settings, lm) | {"topk": settings.topk, "n_random": settings.n_random}
    reads = (layout.ZERO_SHOT, layout.TOP_HEADS, layout.AIE, layout.GLOBAL_MEAN)
    return Stage("random_heads", chosen, reads, lambda advance: run(lm, folder, settings, advance))


def random_sets(
    scored: Sequence[tuple[int, int]], top: Sequence[tuple[int, int]], n_sets: int, seed: str
) -> tuple[list[Heads], str]:
    """`n_sets` draws of as many heads as `top` has, each sorted, and where they were drawn from."""
    others = [head for head in sorted(scored) if head not in set(top)]
    pool, source = (others, "heads that were not chosen") if len(others) >= len(top) else (sorted(scored), "all heads")
    rng = random.Random(seed)
    return [tuple(sorted(rng.sample(pool, len(top)))) for _ in range(n_sets)], source


def run(lm: LanguageModel, folder: Folder, settings: RelationSettings, advance: Advance) -> list[Path]:
    mean = stepe.read_clean_mean(folder, lm)
    examples = zeroshot.read(folder / layout.ZERO_SHOT)
    pick = with_replacement if settings.with_replacement else unique_queries
    chosen = pick(examples, settings.n_eval, settings.seed)
    prompts = [example.prompt(lm.tokenizer).input_ids for example in chosen]
    targets = [example.target_first_token_id for example in chosen]
    scored = [(row["layer"], row["head"]) for row in read_scores(folder / layout.AIE)]
    top = [(head["layer"], head["head"]) for head in read_json(folder / layout.TOP_HEADS)["heads"]]
    seed = f"{settings.seed}/{chosen[0].q_id}"
    sets, source = random_sets(scored, top, settings.n_random, seed)

    layers, how = list(range(lm.n_layers)), (settings.alpha, settings.engine, settings.max_memory)
    vectors = [stepe.global_vector(lm, mean, heads) for heads in sets]
    rows: list[Row] = []
    for draw, vector in enumerate(vectors):
        found = inject_readings(lm, prompts, targets, vector, layers, *how, advance)
        for layer in layers:
            for idx, example in enumerate(chosen):
                hits = [int(found.base_ids[idx] == targets[idx]), int(found.injected_ids[idx, layer] == targets[idx])]
                key = {
                    "draw": draw,
                    "layer": layer,
                    "idx": idx,
                    "trial_id": example.trial_id,
                    "trial_idx": example.trial_idx,
                }
                accuracy = {"accuracy_base": hits[0], "accuracy_with": hits[1], "delta_acc": hits[1] - hits[0]}
                readings = found.base[idx].tolist(), found.injected[idx, layer].tolist()
                rows.append(key | accuracy | scores_of(*readings))
    meta = {"k": settings.topk, "n_random": settings.n_random, "seed": seed, "drawn_from": source, "model": lm.name}
    draws = [
        {"draw": draw, "heads": [list(head) for head in heads], "norm": float(vector.norm())}
        for draw, (heads, vector) in enumerate(zip(sets, vectors, strict=True))
    ]
    write_json(folder / files.RANDOM_HEADS, {"meta": meta, "draws": draws})
    write_pt(folder / files.RANDOM_FV, {"fv_random_heads": torch.stack(vectors), "resid_dim": lm.d_model})
    write_jsonl(folder / files.RANDOM_TRIALS, rows)
    return [folder / name for name in (files.RANDOM_HEADS, files.RANDOM_FV, files.RANDOM_TRIALS)]
