"""Station 6: injection, the function vector added to the residual stream at a block's output.

Three modes, each with and without the vector: the next token, the negative log-likelihood of a given answer, and
greedy generation (`function_vector_intervention` in the reference's intervention_utils.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fvcore.model.hooks import add_to_residual
from fvcore.model.model import LanguageModel

N_GENERATED = 16


@dataclass(frozen=True, slots=True)
class Injection:
    """One prompt without ("base") and with the vector. Log-probabilities are taken in fp32; logits are (vocab,)."""

    target_id: int
    base_logits: Tensor
    with_logits: Tensor

    @property
    def base_logprob(self) -> float:
        return _logprob(self.base_logits, self.target_id)

    @property
    def with_logprob(self) -> float:
        return _logprob(self.with_logits, self.target_id)

    @property
    def delta_logprob(self) -> float:
        return self.with_logprob - self.base_logprob


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean negative log-likelihood (nats per token) of an answer, without and with the vector."""

    base_nll: float
    with_nll: float


@dataclass(frozen=True, slots=True)
class Generation:
    """Greedily generated ids, without and with the vector."""

    base_ids: list[int]
    with_ids: list[int]


def _logprob(logits: Tensor, target_id: int) -> float:
    return float(torch.log_softmax(logits.float(), dim=-1)[target_id])


def _injected(
    lm: LanguageModel, vector: Tensor, edit_layer: int, alpha: float, token: int | slice = -1
) -> AbstractContextManager[None]:
    # alpha 1 leaves the vector's bits alone, so that it is the reference's own addition.
    return add_to_residual(lm, edit_layer, vector if alpha == 1 else alpha * vector, token)


@torch.inference_mode()
def inject(
    lm: LanguageModel, input_ids: Sequence[int], target_id: int, vector: Tensor, edit_layer: int, alpha: float = 1.0
) -> Injection:
    """Next-token logits with and without `alpha * vector` (d_model,) at the last token of block `edit_layer`."""
    ids = lm.ids(input_ids)
    base = lm.logits(ids)[0, -1]
    with _injected(lm, vector, edit_layer, alpha):
        injected = lm.logits(ids)[0, -1]
    return Injection(target_id, base.cpu(), injected.cpu())


@torch.inference_mode()
def inject_nll(
    lm: LanguageModel,
    input_ids: Sequence[int],
    answer_ids: Sequence[int],
    vector: Tensor,
    edit_layer: int,
    alpha: float = 1.0,
) -> Likelihood:
    """Mean NLL of `answer_ids` after the prompt; the vector is added at the prompt's last token only."""
    if not answer_ids:
        raise ValueError("the answer has no tokens; its likelihood is undefined")
    ids = lm.ids([*input_ids, *answer_ids])
    labels = ids.clone()
    labels[:, : -len(answer_ids)] = -100  # ignored by the loss

    def nll(around: AbstractContextManager[None]) -> float:
        with around:
            return float(lm.hf(input_ids=ids, labels=labels, use_cache=False).loss)

    at = -1 - len(answer_ids)
    return Likelihood(nll(nullcontext()), nll(_injected(lm, vector, edit_layer, alpha, at)))


@torch.inference_mode()
def inject_generate(
    lm: LanguageModel,
    input_ids: Sequence[int],
    vector: Tensor,
    edit_layer: int,
    alpha: float = 1.0,
    n_tokens: int = N_GENERATED,
) -> Generation:
    """Greedy generation; with the key-value cache the vector is added at the last position of every step."""

    def generate(around: AbstractContextManager[None]) -> list[int]:
        ids = lm.ids(input_ids)
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": n_tokens, "do_sample": False}
        # Sampling settings of a model's own generation config mean nothing to greedy decoding and only warn.
        options |= dict.fromkeys(("temperature", "top_p", "top_k"))
        # One prompt is never padded. The id is given because a model's own may be a list, or missing.
        with around:
            output = lm.hf.generate(ids, pad_token_id=0, **options)
        return [int(i) for i in output[0, ids.shape[1] :]]

    return Generation(generate(nullcontext()), generate(_injected(lm, vector, edit_layer, alpha)))


@torch.inference_mode()
def continuation_logits(
    lm: LanguageModel,
    input_ids: Sequence[int],
    generated: Sequence[int],
    vector: Tensor | None,
    edit_layer: int,
    alpha: float = 1.0,
) -> Tensor:
    """Logits (vocab,) of the token that follows `generated`, in one pass over prompt and generated ids.

    The vector is added where cached generation has added it: at the prompt's last token and every one since.
    """
    ids, since = lm.ids([*input_ids, *generated]), slice(len(input_ids) - 1, None)
    around = nullcontext() if vector is None else _injected(lm, vector, edit_layer, alpha, since)
    with around:
        return lm.logits(ids)[0, -1].cpu()
