"""The control of each function vector: vectors of as many heads, chosen at random, added where the function vector is added.

What the chosen heads do counts for as much as it exceeds this. The heads are drawn from those that were scored and not
chosen, or, where too few are left, from all that were scored; the file says which.
"""

from pathlib import Path

import torch

from fvcore.experiments.folder import Folder
from fvcore.experiments.record import Stage
from fvcore.experiments.relation import files
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.steps import layout, stepe
from fvcore.experiments.steps.plan import chosen_examples
from fvcore.experiments.steps.scores import HEAD, Row, read_scores
from fvcore.experiments.steps.settings import settings_of
from fvcore.experiments.steps.step6 import effect_of
from fvcore.fast.chunks import Advance
from fvcore.formats import read_json
from fvcore.injection import inject_readings
from fvcore.model.model import LanguageModel
from fvcore.trials.draws import random_heads


def stage(lm: LanguageModel, folder: Folder, settings: RelationSettings) -> Stage:
    """Behind the steps, in the same record."""
    chosen = settings_of("step6", settings, lm) | {"topk": settings.top_heads, "n_random": settings.n_random}
    reads = (layout.ZERO_SHOT, layout.TOP_HEADS, layout.AIE, layout.GLOBAL_MEAN)
    return Stage("random_heads", chosen, reads, lambda advance: control(lm, folder, settings, advance))


def control(lm: LanguageModel, folder: Folder, settings: RelationSettings, advance: Advance) -> list[Path]:
    """Every random vector behind every layer, on the examples that Step6 evaluates."""
    mean = stepe.read_clean_mean(folder, lm)
    chosen = chosen_examples(folder, settings)
    prompts = [example.prompt(lm.tokenizer).input_ids for example in chosen]
    targets = [example.target_first_token_id for example in chosen]
    scored, top = map(HEAD, read_scores(folder / layout.AIE)), map(HEAD, read_json(folder / layout.TOP_HEADS)["heads"])
    seed = f"{settings.seed}/{chosen[0].q_id}"
    drawn, source = random_heads(scored, list(top), settings.n_random, seed)
    sets = [tuple(sorted(heads)) for heads in drawn]

    layers, how = list(range(lm.n_layers)), (settings.alpha, settings.engine, settings.max_memory)
    vectors = [stepe.global_vector(lm, mean, heads) for heads in sets]
    rows: list[Row] = []
    for draw, vector in enumerate(vectors):
        found = inject_readings(lm, prompts, targets, vector, layers, *how, advance)
        for layer in layers:
            for idx, example in enumerate(chosen):
                key = {"draw": draw, "layer": layer, "idx": idx}
                trial = {"trial_id": example.trial_id, "trial_idx": example.trial_idx}
                rows.append(key | trial | effect_of(found, idx, layer, targets[idx]))
    meta = {"k": settings.top_heads, "n_random": settings.n_random, "seed": seed, "drawn_from": source}
    draws = [
        {"draw": draw, "heads": [list(head) for head in heads], "norm": float(vector.norm())}
        for draw, (heads, vector) in enumerate(zip(sets, vectors, strict=True))
    ]
    written = {
        files.RANDOM_HEADS: {"meta": meta | {"model": lm.name}, "draws": draws},
        files.RANDOM_FV: {"fv_random_heads": torch.stack(vectors), "resid_dim": lm.d_model},
        files.RANDOM_TRIALS: rows,
    }
    return folder.write(written)
