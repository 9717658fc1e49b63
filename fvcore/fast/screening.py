"""Engine `screened`, beyond exact and only on request: a first-order estimate says which heads need not be computed.

One forward and backward pass of the last token gives, for every head at once, the effect of its replacement to first
order: the gradient of the target's probability, times how far the mean is from the head's activation. How far off such
estimates are is measured on heads of the model at hand; a head is skipped only if its estimate, with that error added,
stays below the k-th best effect that was computed. That error is measured on a sample, so a skipped head can still belong
to the top k: a `Screening` says what was skipped and by which bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fvcore import heads as ranking
from fvcore.fast.engines import target_readings
from fvcore.fast.shared_prompt import SharedPrompt
from fvcore.fast.sweep import Case, Head, Replacement
from fvcore.model.hooks import read_heads
from fvcore.model.model import LanguageModel

SAMPLE = 16
"""Heads drawn at random to measure the estimates' error on, beside those with the largest estimates."""

SAFETY = 2.0
"""Times the largest error seen: the sample need not hold the worst head."""


@dataclass(frozen=True)
class Screening:
    """Top heads by effects that were computed, and what was not computed."""

    heads: list[ranking.Head]
    cie: Tensor  # (trial, layer, head), the estimates where skipped
    computed: Tensor  # (layer, head)
    n_asked: int
    bound: float  # what was added to an estimate before a head was skipped

    @property
    def n_skipped(self) -> int:
        return self.n_asked - int(self.computed.sum())

    def __str__(self) -> str:
        return (
            f"{self.n_skipped} of {self.n_asked} heads were not computed: by a first-order estimate, they stay more than "
            f"{self.bound:.2g} below the top {len(self.heads)}"
        )


def first_order_effects(lm: LanguageModel, cases: Sequence[Case], mean_activations: Tensor) -> Tensor:
    """Estimated effect of every head at the last token.

    mean_activations: (layer, head, slot, d_head)
    returns: (trial, layer, head), float32 on the CPU
    """
    with torch.no_grad():
        prompt = SharedPrompt.run(lm, [ids for ids, _, _ in cases])
        suffix = prompt.suffix(1)
        replacement = Replacement.of("query_predictive", cases, mean_activations, lm.device)
    targets = torch.tensor([target for _, target, _ in cases], device=lm.device)
    with torch.enable_grad(), read_heads(lm, gradients=True) as heads:
        rows = suffix.through(lambda layer: suffix.entered(0) if layer == 0 else None)
        every = torch.softmax(prompt.logits(rows)[:, 0], dim=-1)
        torch.autograd.backward(every.gather(1, targets[:, None]).sum())
    found = torch.zeros(len(cases), lm.n_layers, lm.n_heads)
    for layer in lm.head_layers:
        z, gradient = heads[layer], heads[layer].grad
        assert gradient is not None
        means = replacement.means[layer][:, replacement.slots].permute(1, 2, 0, 3).to(z)  # (trial, 1, head, d_head)
        found[:, layer] = ((means[..., : z.shape[-1]] - z.detach()) * gradient).sum(dim=-1)[:, 0].float().cpu()
    return found


def screened_top_heads(
    lm: LanguageModel,
    cases: Sequence[Case],
    mean_activations: Tensor,
    k: int,
    among: Sequence[Head] | None = None,
) -> Screening:
    """The k heads with the largest average indirect effect, computing as few effects as the estimates allow.

    among: the heads that are asked for, all by default
    """
    cie = first_order_effects(lm, cases, mean_activations)
    estimates = cie.mean(dim=0)
    by_estimate = [divmod(int(i), lm.n_heads) for i in estimates.flatten().argsort(descending=True)]
    asked = set(lm.heads if among is None else among)
    by_estimate = [head for head in by_estimate if head in asked]
    drawn = torch.randperm(len(by_estimate), generator=torch.Generator().manual_seed(0))[:SAMPLE].tolist()
    aie = torch.full_like(estimates, torch.nan)
    wanted = {*by_estimate[: 2 * k], *(by_estimate[i] for i in drawn)}
    bound = 0.0
    while wanted:
        chosen = sorted(wanted)
        probabilities = target_readings(lm, cases, mean_activations, chosen)[..., 0]
        effects = probabilities[:, 1:] - probabilities[:, :1]
        for (layer, head), effect in zip(chosen, effects.unbind(dim=1), strict=True):
            cie[:, layer, head], aie[layer, head] = effect, effect.mean()
        worst = float(aie.flatten().nan_to_num(-torch.inf).topk(k).values[-1])
        # Of the computed heads whose estimates are below the k-th best effect, as those of skipped heads are. The best heads'
        # own estimates are off by more, because what is not of first order grows with the effect.
        alike = ~aie.isnan() & (estimates < worst)
        bound = SAFETY * (float((aie - estimates)[alike].abs().max()) if bool(alike.any()) else 0.0)
        # Those not computed yet that could still be among the best.
        wanted = {head for head in by_estimate if aie[head].isnan() and float(estimates[head]) >= worst - bound}
    heads = ranking.top_heads(aie.nan_to_num(-torch.inf), k)
    return Screening(heads, cie, ~aie.isnan(), len(by_estimate), bound)
