"""What the tests of evaluations share: shipped models, the shipped words as a task, and vectors; each made once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvcore.experiments.evaluation.compute import Bench
from fvcore.experiments.evaluation.config import EvaluationConfig
from fvcore.experiments.evaluation.data import Task, load_task
from fvcore.experiments.evaluation.vectors import Computed, computed
from fvcore.model.model import LanguageModel, load
from fvcore.pipeline import Settings
from fvcore.trials import fixed as trials

ROOT = Path(__file__).parents[3]
DATASET = ROOT / "datasets" / "tiny_antonym" / "raw" / "tiny_antonym.json"


def trials_path(name: str) -> Path:
    stem = f"fixed_trials_tiny_antonym_t10_s10_seed0_{name.replace('-', '_')}"
    return ROOT / "datasets" / "fixed_trials" / f"{stem}.json"


@cache
def model(name: str) -> LanguageModel:
    torch.set_num_threads(1)
    return load(name)


@cache
def antonyms(seed: int = 42) -> Task:
    return load_task(str(DATASET), seed=seed)


@cache
def vector_of_best_heads(name: str) -> Computed:
    return computed(model(name), trials.read(trials_path(name)), Settings(edit_layer=1, n_top_heads=4))


def config(**options: Any) -> EvaluationConfig:
    return EvaluationConfig(**{"what": "nshot", "model": "tiny-llama", "dataset": str(DATASET)} | options)


def bench(name: str = "tiny-llama", seed: int = 42, **options: Any) -> Bench:
    return Bench(model(name), antonyms(seed), config(model=name, seed=seed, **options))


def asking(bench: Bench, **options: Any) -> Bench:
    """The same bench, asked something else."""
    return replace(bench, asked=bench.asked.model_copy(update=options))


def random_vector(lm: LanguageModel, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(3))
