"""The first token of an answer: its rank and log-probability without and with vectors, at one layer or several.

Engine `fast` runs prompts in padded batches, and every vector at every layer as one more row of the same pass; `exact`
runs one prompt and one injection at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fvcore.experiments.evaluation.scores import ranks
from fvcore.fast.chunks import chunk_size, in_chunks
from fvcore.fast.shared_prompt import Prompt
from fvcore.fast.sweep import rows_with_vector_added, trial_bytes, variant_bytes
from fvcore.model.hooks import add_to_residual
from fvcore.model.model import LanguageModel
from fvcore.prompts import Prompt as PromptText


class Arm(NamedTuple):
    """One way to run a prompt: a vector by its name and the block at whose output it is added, or neither."""

    vector: str | None = None
    layer: int | None = None


WITHOUT = Arm()
LEAST = -1e30
"""The log-probability of a token that a model holds impossible: files hold no infinity."""


@dataclass(frozen=True)
class Targets:
    """Of each prompt's target token: rank (0 is the first) and log-probability in fp32."""

    ranks: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def arms_of(vectors: Mapping[str, Tensor], layers: Sequence[int]) -> list[Arm]:
    """Without a vector, then each vector at each layer."""
    return [WITHOUT, *(Arm(name, layer) for name in vectors for layer in layers)]


@torch.inference_mode()
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
    for layer in layers:
        lm.require_layer(layer)
    arms = arms_of(vectors, layers)
    if engine == "exact":
        parts = [_scored(_exact(lm, prompt, vectors, layers, alpha), [prompt]) for prompt in prompts]
    else:
        longest = max(len(prompt.input_ids) for prompt in prompts)
        each = trial_bytes(lm, longest) + len(arms) * variant_bytes(lm, 1)
        size = chunk_size(each, lm.device, len(prompts), max_memory)

        def run(some: Sequence[PromptText]) -> Tensor:
            return _scored(_fast(lm, some, vectors, layers, alpha), some)

        parts = list(in_chunks(prompts, size, run))
    found = torch.cat(parts)  # (prompt, arm, rank and log-probability)
    return {arm: Targets([int(rank) for rank in found[:, i, 0]], found[:, i, 1].tolist()) for i, arm in enumerate(arms)}


def _fast(
    lm: LanguageModel, prompts: Sequence[PromptText], vectors: Mapping[str, Tensor], layers: Sequence[int], alpha: float
) -> Tensor:
    """Logits (prompt, arm, vocab)."""
    prompt = Prompt.run(lm, [text.input_ids for text in prompts])
    rows = [prompt.entered[-1][:, -1:]]
    if vectors and layers:
        suffix = prompt.suffix(1)
        rows += [rows_with_vector_added(suffix, layers, _times(alpha, v).to(lm.device)) for v in vectors.values()]
    return prompt.logits(torch.cat([row.to(rows[0].device) for row in rows], dim=1))


def _exact(
    lm: LanguageModel, prompt: PromptText, vectors: Mapping[str, Tensor], layers: Sequence[int], alpha: float
) -> Tensor:
    """Logits (1, arm, vocab), each from a pass of its own."""
    ids = lm.ids(prompt.input_ids)
    rows = [lm.logits(ids)[0, -1]]
    for vector in vectors.values():
        for layer in layers:
            with add_to_residual(lm, layer, _times(alpha, vector)):
                rows.append(lm.logits(ids)[0, -1])
    return torch.stack(rows)[None]


def _times(alpha: float, vector: Tensor) -> Tensor:
    return vector if alpha == 1 else alpha * vector  # alpha 1 leaves the vector's bits alone


def _scored(logits: Tensor, prompts: Sequence[PromptText]) -> Tensor:
    """(prompt, arm, rank and log-probability), float64 on the CPU: ranks of large vocabularies stay whole numbers."""
    ids = torch.tensor([prompt.target_id for prompt in prompts], device=logits.device)
    ids = ids[:, None].expand(-1, logits.shape[1])
    own = torch.log_softmax(logits.float(), dim=-1).gather(-1, ids[..., None])[..., 0].clamp(min=LEAST)
    return torch.stack([ranks(logits, ids).double(), own.double()], dim=-1).cpu()
