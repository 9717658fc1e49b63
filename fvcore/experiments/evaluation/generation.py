"""An answer in the model's own words: greedy generation without and with a vector, prompts in padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from fvcore.fast.chunks import chunk_size, in_chunks
from fvcore.fast.shared_prompt import Batch
from fvcore.fast.sweep import trial_bytes, variant_bytes
from fvcore.injection import N_GENERATED
from fvcore.model.hooks import add_to_residual
from fvcore.model.model import LanguageModel
from fvcore.prompts import Prompt


@torch.inference_mode()
def generated_ids(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    vector: Tensor | None = None,
    layer: int = 0,
    n_tokens: int = N_GENERATED,
    engine: str = "fast",
    max_memory: int | None = None,
) -> list[list[int]]:
    """What follows each prompt, up to the end-of-text token; `vector` (d_model,) is added at every step's last token."""
    longest = n_tokens + max(len(prompt.input_ids) for prompt in prompts)
    each = trial_bytes(lm, longest) + variant_bytes(lm, 1)
    size = 1 if engine == "exact" else chunk_size(each, lm.device, len(prompts), max_memory)

    def run(some: Sequence[Prompt]) -> list[list[int]]:
        return _generated(lm, [prompt.input_ids for prompt in some], vector, layer, n_tokens)

    return [ids for part in in_chunks(prompts, size, run) for ids in part]


def _generated(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], vector: Tensor | None, layer: int, n_tokens: int
) -> list[list[int]]:
    batch, ends = Batch.of(prompts, lm.device), _end_ids(lm)
    options = {"attention_mask": batch.mask, "max_new_tokens": n_tokens, "do_sample": False}
    # Sampling settings of a model's own generation config mean nothing to greedy decoding and only warn.
    options |= dict.fromkeys(("temperature", "top_p", "top_k"))
    # Rows that have ended are filled up with an id that is cut off below.
    with nullcontext() if vector is None else add_to_residual(lm, layer, vector):
        output = lm.hf.generate(batch.ids, pad_token_id=ends[0] if ends else 0, **options)
    return [_until(row, ends) for row in output[:, batch.n_tokens :].tolist()]


def _end_ids(lm: LanguageModel) -> list[int]:
    ends = lm.hf.generation_config.eos_token_id
    return [] if ends is None else [int(i) for i in (ends if isinstance(ends, list) else [ends])]


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
