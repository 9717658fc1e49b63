"""The first token of an answer: its rank and log-probability without and with vectors, at one layer or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fvcore.experiments.evaluation.scores import ranks
from fvcore.injection import LEAST_LOGPROB, read_injected
from fvcore.model.model import LanguageModel
from fvcore.prompts import Prompt as PromptText


class Arm(NamedTuple):
    """One way to run a prompt: a vector by its name and the block at whose output it is added, or neither."""

    vector: str | None = None
    layer: int | None = None


WITHOUT = Arm()


@dataclass(frozen=True)
class Targets:
    """Of each prompt's target token: rank (0 is the first) and log-probability in fp32."""

    ranks: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def arms_of(vectors: Mapping[str, Tensor], layers: Sequence[int]) -> list[Arm]:
    """Without a vector, then each vector at each layer."""
    return [WITHOUT, *(Arm(name, layer) for name in vectors for layer in layers)]


def targets(
    lm: LanguageModel,
    prompts: Sequence[PromptText],
    vectors: Mapping[str, Tensor],
    layers: Sequence[int],
    alpha: float = 1.0,
    engine: str = "fast",
    max_memory: int | None = None,
) -> dict[Arm, Targets]:
    """Every prompt without a vector, and with `alpha` times each vector (d_model,) at each of the rising layers."""

    def read(logits: Tensor, rows: range) -> Tensor:
        return _scored(logits, [prompts[row].target_id for row in rows])

    ids, added = [prompt.input_ids for prompt in prompts], list(vectors.values())
    found = torch.cat(read_injected(lm, ids, added, layers, read, alpha, engine, max_memory))
    return {
        arm: Targets([int(rank) for rank in found[:, i, 0]], found[:, i, 1].tolist())
        for i, arm in enumerate(arms_of(vectors, layers))
    }


def _scored(logits: Tensor, target_ids: Sequence[int]) -> Tensor:
    """(prompt, arm, rank and log-probability), float64 on the CPU: ranks of large vocabularies stay whole numbers."""
    ids = torch.tensor(target_ids, device=logits.device)[:, None].expand(-1, logits.shape[1])
    own = torch.log_softmax(logits.float(), dim=-1).gather(-1, ids[..., None])[..., 0].clamp(min=LEAST_LOGPROB)
    return torch.stack([ranks(logits, ids).double(), own.double()], dim=-1).cpu()
