"""What a vector says by itself: the tokens it raises when it goes straight to the output head.

`model`: through everything the model does behind its last block, its final norm included; no part is named, the blocks
are passed over. `head`: through the output head alone, so that a vector's length is not normed away.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from fvcore.fast.shared_prompt import Prompt
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError

WAYS = ("model", "head")


@dataclass(frozen=True, slots=True)
class Decoded:
    token_id: int
    text: str
    logit: float
    probability: float


@torch.inference_mode()
def vector_logits(lm: LanguageModel, vector: Tensor, way: str = "model") -> Tensor:
    """(d_model,) -> (vocab,) in fp32 on the CPU."""
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r}; expected one of {', '.join(WAYS)}")
    row = vector.to(lm.device, lm.hf.dtype)
    if way == "model":
        # Any token will do: what the blocks make of it is put aside.
        return Prompt.run(lm, [[0]]).logits(row.view(1, 1, -1))[0, 0].float().cpu()
    head = lm.hf.get_output_embeddings()
    if head is None:
        raise ModelError(f"{lm.name} names no output head; decode through the whole model (way 'model')")
    found: Tensor = head(row.to(next(head.parameters()).device))
    return found.float().cpu()


def top_tokens(lm: LanguageModel, vector: Tensor, k: int = 10, way: str = "model") -> list[Decoded]:
    """The k tokens with the largest logits, largest first."""
    logits = vector_logits(lm, vector, way)
    probabilities = torch.softmax(logits, dim=-1)
    best = torch.topk(logits, min(k, len(logits))).indices.tolist()
    return [Decoded(i, lm.tokenizer.decode([i]), float(logits[i]), float(probabilities[i])) for i in best]


def share_among(tokens: Collection[Decoded], ids: Collection[int]) -> float:
    """Share of the tokens that are some of these ids, such as the first tokens of a task's answers."""
    return sum(token.token_id in ids for token in tokens) / len(tokens)
