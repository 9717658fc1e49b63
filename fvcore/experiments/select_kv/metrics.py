"""What is measured of next-token logits: KL in nats over the whole vocabulary, hits, gains, alignment with the teacher.

Logits are cast to float64 before the softmax: in float32 a KL of nothing comes out as large as 1e-7, of either sign.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fvcore.experiments.select_kv.gates import REL_KL_EPS
from fvcore.experiments.statistics import percentile


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) over the last axis, float64 and never negative.

    A token that p rules out adds nothing; one that q alone rules out makes it infinite. NaN stays NaN.
    """
    p, q = log_softmax(p_logits), log_softmax(q_logits)
    terms = torch.where(p == -torch.inf, torch.zeros_like(p), p.exp() * (p - q))
    return terms.sum(-1).clamp(min=0)


def log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1)


def rel_kl(student: Tensor, teacher: Tensor, base: Tensor) -> Tensor:
    """KL(student || teacher) / (KL(base || teacher) + 1e-6): 0 where the student is the teacher, 1 where it is the base."""
    return kl(student, teacher) / (kl(base, teacher) + REL_KL_EPS)


def answer_logprob_gain(select: Tensor, base: Tensor, answer_ids: Collection[int]) -> float:
    """How much more probable a state makes it that the answer begins, in nats, each candidate counted once.

    select, base: (vocab,)     Raises ValueError where the answer has no candidate.
    """
    candidates = sorted(set(answer_ids))
    if not candidates:
        raise ValueError("an answer without candidate tokens has no probability; expected at least one token id")
    after, before = (log_softmax(logits)[candidates].logsumexp(-1) for logits in (select, base))
    return float(after - before)


def is_hit(logits: Tensor, answer_ids: Collection[int]) -> bool:
    """Whether the most probable token begins the answer; logits (vocab,)."""
    return int(logits.argmax()) in answer_ids


def p99(values: Sequence[float]) -> float:
    """Nearest rank: the largest of up to 100 values."""
    return percentile(values, 99)


def top_tokens(logits: Tensor, k: int) -> list[tuple[int, float]]:
    """The k most probable tokens with their probabilities, the most probable first; logits (vocab,)."""
    shares, ids = log_softmax(logits).exp().topk(min(k, logits.shape[-1]))
    return list(zip(ids.tolist(), shares.tolist(), strict=True))
