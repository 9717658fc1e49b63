"""What words a vector speaks for: its logits, as if nothing but it stood in the residual stream (Todd et al. 2023)."""

from typing import Any

import torch
from torch import Tensor

from fvcore.fast.shared_prompt import SharedPrompt
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError

WAYS = ("model", "head")
"""Behind the model's final norm, or by the output head alone."""


@torch.inference_mode()
def vector_logits(lm: LanguageModel, vector: Tensor, way: str = "model") -> Tensor:
    """(d_model,) -> (vocab,) in fp32 on the CPU."""
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r}; expected one of {', '.join(WAYS)}")
    row = vector.to(lm.device, lm.hf.dtype)
    if way == "model":
        # Any token will do: what the blocks make of it is put aside.
        return SharedPrompt.run(lm, [[0]]).logits(row.view(1, 1, -1))[0, 0].float().cpu()
    head = lm.hf.get_output_embeddings()
    if head is None:
        raise ModelError(f"{lm.name} names no output head; decode through the whole model (way 'model')")
    found: Tensor = head(row.to(next(head.parameters()).device))
    return found.float().cpu()


def top_tokens(lm: LanguageModel, vector: Tensor, k: int = 10, way: str = "model") -> list[dict[str, Any]]:
    """The k tokens with the largest logits, largest first: token_id, text, logit and probability of each."""
    logits = vector_logits(lm, vector, way)
    shares = torch.softmax(logits, dim=-1)
    best = torch.topk(logits, min(k, len(logits))).indices.tolist()
    return [
        {"token_id": i, "text": lm.tokenizer.decode([i]), "logit": float(logits[i]), "probability": float(shares[i])}
        for i in best
    ]
