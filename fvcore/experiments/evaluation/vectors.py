"""Where a vector comes from: a file of ours or of others, or fixed trials that it is computed from. And its controls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fvcore import artifacts
from fvcore.experiments.evaluation.compute import Bench
from fvcore.experiments.plan_files import vector_in
from fvcore.formats import FormatError, read_pt, read_safetensors
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError
from fvcore.pipeline import Settings, run
from fvcore.prompts import require_verified
from fvcore.trials import fixed as fixed_trials
from fvcore.trials.draws import OTHER_HEADS, random_heads
from fvcore.trials.fixed import FixedTrials
from fvcore.vectors import function_vector

VECTOR = "fv"
READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": read_pt, ".safetensors": read_safetensors, ".json": artifacts.load, "": artifacts.load
}  # fmt: skip


def vectors_of(bench: Bench, edit_layer: int) -> dict[str, Tensor]:
    """The vector that was asked for and its controls, by name; none where none was."""
    config, lm, vectors = bench.asked, bench.lm, dict[str, Tensor]()
    if config.vector is not None and config.trials is not None:
        raise ModelError("--vector and --trials both give a vector; choose one")
    if config.vector is not None:
        if "random_heads" in config.control:
            raise ModelError("control random_heads needs the heads' means: compute the vector from --trials")
        vectors[VECTOR] = read_vector(config.vector, lm.d_model)
    elif config.trials is not None:
        how = {name: getattr(config, name) for name in ("reference_profile", "engine", "max_memory")}
        made = computed(lm, fixed_trials.read(config.trials), Settings(edit_layer, config.top_heads, **how))
        vectors[VECTOR] = made.vector
        if "random_heads" in config.control:
            vectors["random_heads"] = of_random_heads(lm, made.means, made.heads, config.seed).cpu()
    elif config.control:
        raise ModelError("a control needs a vector to be compared with: --vector or --trials")
    if "gaussian" in config.control:
        vectors["gaussian"] = gaussian(vectors[VECTOR], config.seed)
    return vectors


def read_vector(path: Path, d_model: int) -> Tensor:
    """(d_model,) from an artifact (`fv_vector.json` and its tensors), `.safetensors`, or `.pt` read without pickle.

    A `.pt` holds the tensor itself, also as (1, d_model), or a dict with it under one of the keys of `plan_files`.
    """
    if path.suffix not in READERS:
        raise FormatError(f"{path}: expected a vector as .json (an artifact), .safetensors or .pt")
    value = vector_in(READERS[path.suffix](path), path)
    if not artifacts.is_dense(value) or not value.is_floating_point():
        raise FormatError(f"{path}: expected a tensor of floating-point numbers, found {type(value).__name__}")
    if value.numel() != d_model or max(value.shape, default=0) != d_model:
        raise FormatError(
            f"{path}: expected a vector of the residual stream, ({d_model},) or (1, {d_model}), found "
            f"{tuple(value.shape)}; is it another model's, or one in the space of the heads?"
        )
    vector: Tensor = value.reshape(-1)
    if not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise FormatError(f"{path}: the vector is {'zero' if not bool(vector.any()) else 'not finite'}")
    return vector


@dataclass(frozen=True)
class Computed:
    """A vector, and the means and heads it was summed from."""

    vector: Tensor  # (d_model,)
    means: Tensor  # (layer, head, slot, d_head)
    heads: tuple[tuple[int, int], ...]


def computed(lm: LanguageModel, trials: FixedTrials, settings: Settings) -> Computed:
    """The stations up to the function vector, on the trials' own template."""
    settings.require_fit(lm)
    require_verified(trials, lm.tokenizer)
    made = run(lm, trials, settings, injected=False)
    ranked = tuple((layer, head) for layer, head in cast("list[list[int]]", made["top_heads"]["heads"]))
    vector = artifacts.tensor_leaf(made["fv_vector"], "function_vector")
    return Computed(vector, artifacts.tensor_leaf(made["mean_activations"], "mean_activations"), ranked)


def of_random_heads(lm: LanguageModel, means: Tensor, but: Sequence[tuple[int, int]], seed: int) -> Tensor:
    """The control: as many heads, drawn from those that are not `but`; summed in the same way."""
    every = lm.heads
    (heads,), source = random_heads(every, but, 1, seed)
    if source != OTHER_HEADS:
        raise ModelError(
            f"{len(but)} other heads asked for, {lm.name} has {len(every) - len(but)}; use fewer top heads"
        )
    return function_vector(lm, means, heads)


def gaussian(vector: Tensor, seed: int) -> Tensor:
    """The control without a model: a random direction of the same length."""
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
    scaled: Tensor = noise / noise.norm() * vector.float().norm().cpu()
    return scaled.to(vector)
