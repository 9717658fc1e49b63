"""Engine `screened`, beyond exact and only on request: a first-order estimate says which heads need not be computed.

One forward and backward pass of the last token gives, for every head at once, the effect of its replacement to first
order: the gradient of the target's probability times the way from the head's activation to its mean. What such an estimate
leaves out grows with that way and with the gradient, so errors are counted in units of a head's *reach*, the product of the
two lengths, the most that a step of that length changes to first order. How many units errors have is measured on the
model at hand: on the heads with the largest estimates, and on `SAMPLE` drawn at random. A head is skipped only if its
estimate, with `SAFETY` times the largest error seen added, stays below the k-th best effect that was computed; what was not
skipped is computed, and counts among the errors seen, until nothing is left that could come to the top.

That is a measured bound and no proof. Of heads drawn at random together, one that was not computed has a larger error than
all n that were with probability 1 / (n + 1), before `SAFETY`; and only one that is just below the top is missed by it. What
was computed is exact; a `Screening` says what was not, and by which bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fvcore import heads as ranking
from fvcore.effects import read_targets
from fvcore.fast import engines, sweep
from fvcore.fast.chunks import Advance, chunk_size, in_chunks, silent
from fvcore.fast.shared_prompt import SharedPrompt, Suffix
from fvcore.fast.sweep import Case, Head, Replacement, rows_with_heads_replaced
from fvcore.model.hooks import read_heads
from fvcore.model.model import LanguageModel

SAMPLE = 32
"""Heads drawn at random to measure the estimates' error on, beside those with the largest estimates."""

SAFETY = 2.0
"""Times the largest error seen: the sample need not hold the worst head."""


@dataclass(frozen=True)
class Screening:
    """Effects that were computed, estimates of those that were not, and what tells them apart."""

    k: int
    asked: list[Head]
    computed: list[Head]  # in order of layer, as what was asked for
    readings: Tensor  # (trial, 1 + len(computed), 3), as of `effects.target_readings`
    estimates: Tensor  # (trial, layer, head)
    margin: float  # times its reach added to an estimate before a head was skipped

    @property
    def n_skipped(self) -> int:
        return len(self.asked) - len(self.computed)

    @property
    def cie(self) -> Tensor:
        """(trial, layer, head), the estimates where skipped."""
        cie = self.estimates.clone()
        cie[:, *_index(self.computed)] = self.readings[:, 1:, 0] - self.readings[:, :1, 0]
        return cie

    @property
    def heads(self) -> list[ranking.Head]:
        """The k best of those that were computed."""
        aie, index = self.cie.mean(dim=0), _index(self.computed)
        computed = torch.full_like(aie, -torch.inf)
        computed[index] = aie[index]
        return ranking.top_heads(computed, self.k)

    def __str__(self) -> str:
        return (
            f"{self.n_skipped} of {len(self.asked)} heads were not computed: by a first-order estimate, and {self.margin:.2g} "
            f"times the most that their replacement changes to first order, they stay below the top {self.k}"
        )


@dataclass(frozen=True)
class Trials:
    """Trials whose prompts ran, once for estimates and effects."""

    suffix: Suffix
    replacement: Replacement
    targets: Tensor

    @classmethod
    @torch.no_grad()
    def run(cls, lm: LanguageModel, cases: Sequence[Case], mean_activations: Tensor) -> "Trials":
        suffix = SharedPrompt.run(lm, [ids for ids, _, _ in cases]).suffix(1)
        targets = torch.tensor([target for _, target, _ in cases], device=lm.device)
        return cls(suffix, Replacement.of("query_predictive", cases, mean_activations, lm.device), targets)

    def first_order(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every head's estimated effect and its reach, (trial, layer, head) each, and readings of the prompts as they are.

        (trial, 1, 3), as of `effects.target_readings`; all float32 on the CPU.
        """
        lm, suffix = self.suffix.prompt.lm, self.suffix
        with torch.enable_grad(), read_heads(lm, gradients=True) as heads:
            logits = suffix.prompt.logits(suffix.through(lambda layer, entered: entered if layer == 0 else None))
            # Of the logarithm: half precision has no number for the gradient of a small probability.
            every = torch.log_softmax(logits[:, 0].float(), dim=-1)
            torch.autograd.backward(every.gather(1, self.targets.to(every.device)[:, None]).sum())
        base = self.read(logits.detach())
        estimates, reaches = torch.zeros(2, len(self.targets), lm.n_layers, lm.n_heads)
        for layer in lm.head_layers:
            z, gradient = heads[layer].detach().float(), heads[layer].grad
            assert gradient is not None
            means = self.replacement.means[layer][:, self.replacement.slots, : z.shape[-1]]  # (head, trial, 1, d_head)
            way, gradient = means.permute(1, 2, 0, 3).to(z) - z, gradient.float()
            estimates[:, layer] = (way * gradient).sum(dim=-1)[:, 0].cpu()
            reaches[:, layer] = (way.norm(dim=-1) * gradient.norm(dim=-1))[:, 0].cpu()
        probabilities = base[..., 2:].exp()
        return probabilities * estimates, probabilities * reaches, base

    @torch.no_grad()
    def readings(self, heads: Sequence[Head], max_memory: int | None, advance: Advance) -> Tensor:
        """`effects.target_readings` of the prompts with each of the heads replaced: (trial, head, 3), float32 on the CPU."""
        lm, n_trials = self.suffix.prompt.lm, len(self.targets)
        size = sweep.variants_together(lm, n_trials, 1, len(heads), max_memory)

        def run(some: Sequence[Head]) -> Tensor:
            rows = rows_with_heads_replaced(self.suffix, some, self.replacement)
            found = self.read(self.suffix.prompt.logits(rows))
            advance(some[-1][0], n_trials * len(some))
            return found

        return torch.cat(list(in_chunks(heads, size, run)), dim=1)

    def read(self, logits: Tensor) -> Tensor:
        """`read_targets` of each trial's target: (trial, row, vocab) -> (trial, row, 3)."""
        return read_targets(logits, self.targets[:, None].expand(-1, logits.shape[1])).float().cpu()


@torch.inference_mode(False)  # whoever asks: a gradient is asked of the model
def screened_top_heads(
    lm: LanguageModel,
    cases: Sequence[Case],
    mean_activations: Tensor,
    k: int,
    among: Sequence[Head] | None = None,
    max_memory: int | None = None,
    advance: Advance = silent,
) -> Screening:
    """The k heads with the largest average indirect effect, computing as few effects as the estimates allow.

    All of them are computed where heads are so few that what is computed first leaves hardly one, or the trials too many
    for the memory to run together.

    mean_activations: (layer, head, slot, d_head)     among: the heads that are asked for, all by default
    max_memory: bytes beside the weights; half of what is free by default     advance: is told after each pass
    """
    asked = sorted(lm.heads if among is None else among)
    share = None if max_memory is None else max_memory // 2
    each = sweep.trial_bytes(lm, max(len(ids) for ids, _, _ in cases))
    if len(asked) <= 2 * k + SAMPLE or chunk_size(each, lm.device, len(cases), share) < len(cases):
        readings = engines.target_readings(lm, cases, mean_activations, asked, "fast", max_memory, advance)
        return Screening(k, asked, asked, readings, torch.zeros(len(cases), lm.n_layers, lm.n_heads), 0.0)
    trials = Trials.run(lm, cases, mean_activations)
    estimates, reaches, base = trials.first_order()
    estimate, reach = (x.mean(dim=0)[_index(asked)] for x in (estimates, reaches))
    readings = base.repeat(1, len(asked), 1)
    wanted, computed, margin = _first(estimate, k), torch.zeros(len(asked), dtype=torch.bool), 0.0
    while bool(wanted.any()):
        readings[:, wanted] = trials.readings([asked[i] for i in _places(wanted)], share, advance)
        computed |= wanted
        effect = (readings - base)[..., 0].mean(dim=0)
        worst = effect[computed].topk(k).values[-1]
        margin = SAFETY * _largest_error(effect, estimate, reach, computed & (estimate < worst))
        wanted = ~(computed | (estimate + margin * reach < worst))
    found = torch.cat([base, readings[:, computed]], dim=1)
    return Screening(k, asked, [asked[i] for i in _places(computed)], found, estimates, margin)


def _largest_error(effect: Tensor, estimate: Tensor, reach: Tensor, alike: Tensor) -> float:
    """In units of the heads' reach, among computed heads whose estimates are below the k-th best effect.

    As those of skipped heads are. The best heads' own estimates are off by more, because what is not of first order grows
    with the effect.
    """
    errors = ((effect - estimate).abs() / reach.clamp_min(torch.finfo(reach.dtype).tiny))[alike]
    return float(errors.max()) if len(errors) else 0.0


def _first(estimate: Tensor, k: int) -> Tensor:
    """What is computed first: the heads with the largest estimates, and some at random."""
    wanted = torch.zeros(len(estimate), dtype=torch.bool)
    wanted[estimate.topk(min(2 * k, len(estimate))).indices] = True
    wanted[torch.randperm(len(estimate), generator=torch.Generator().manual_seed(0))[:SAMPLE]] = True
    return wanted


def _index(heads: Sequence[Head]) -> tuple[Tensor, Tensor]:
    layers, places = torch.tensor(heads).unbind(dim=1)
    return layers, places


def _places(chosen: Tensor) -> list[int]:
    found: list[int] = chosen.nonzero()[:, 0].tolist()
    return found
