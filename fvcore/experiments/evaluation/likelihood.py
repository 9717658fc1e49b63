"""A whole answer, given to the model: its negative log-likelihood without and with a vector."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from fvcore.experiments.evaluation.asking import LEAST
from fvcore.fast.chunks import chunk_size, in_chunks
from fvcore.fast.shared_prompt import Batch
from fvcore.fast.sweep import trial_bytes
from fvcore.model.hooks import add_to_residual
from fvcore.model.model import LanguageModel
from fvcore.prompts import Prompt


@torch.inference_mode()
def answer_nlls(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    vector: Tensor | None = None,
    layer: int = 0,
    engine: str = "fast",
    max_memory: int | None = None,
) -> list[float]:
    """Mean NLL (nats per token) of each prompt's answer; `vector` (d_model,) is added at the prompt's last token only.

    Prompts run together with those whose answers have as many tokens: their last tokens then stand in one column.
    """
    nlls = [0.0] * len(prompts)
    for n in sorted({len(prompt.answer_ids) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt.answer_ids) == n]
        longest = n + max(len(prompts[row].input_ids) for row in rows)
        each = trial_bytes(lm, longest) + longest * lm.itemsize * lm.vocab_size
        size = 1 if engine == "exact" else chunk_size(each, lm.device, len(rows), max_memory)

        def run(some: Sequence[int], n: int = n) -> list[float]:
            return _nlls(lm, [prompts[row] for row in some], n, vector, layer)

        found = [nll for part in in_chunks(rows, size, run) for nll in part]
        for row, nll in zip(rows, found, strict=True):
            nlls[row] = nll
    return nlls


def _nlls(lm: LanguageModel, prompts: Sequence[Prompt], n: int, vector: Tensor | None, layer: int) -> list[float]:
    """Of answers of n tokens each."""
    batch = Batch.of([[*prompt.input_ids, *prompt.answer_ids] for prompt in prompts], lm.device)
    with nullcontext() if vector is None else add_to_residual(lm, layer, vector, -1 - n):
        logits = lm.hf(**batch.inputs(), use_cache=False).logits[:, -1 - n : -1]
    answers = torch.tensor([prompt.answer_ids for prompt in prompts], device=logits.device)
    own = torch.log_softmax(logits.float(), dim=-1).gather(-1, answers[..., None])[..., 0].clamp(min=LEAST)
    nlls: list[float] = (-own.mean(dim=1)).tolist()
    return nlls
