"""What the model at hand says of a golden: how its prompts go on, and what its effects are in log-probabilities.

A candidate may measure effects in log-probabilities in place of probabilities. A recording that holds them (leaf
`cie_logprob`) is believed. Else they are computed from its own prompts, slots and means by the model at hand, which must
give the recorded effects in probabilities beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from fvcore.gates import NotHeld

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings
    from pytest_fvparity.parity.implementation import Implementation

Continuation: TypeAlias = "Callable[[str, str, Sequence[int]], Tensor]"
"""(trial key, "base" or "with", ids generated so far) -> logits (vocab,) of the next token."""

LogEffects: TypeAlias = "Callable[[], Tensor]"
"""(trial, layer, head), of the golden's trials in its order."""

NEAR = 1e-3
"""How far, of the largest one, the model at hand may be from a recorded effect: wider than any rule for the same processor,
and far below what another model gives."""


def continuation_of(lm: LanguageModel, golden: Implementation, settings: Settings) -> Continuation:
    """How the golden's prompts go on under the golden's vector, by the model at hand."""

    def logits(trial: str, mode: str, generated: Sequence[int]) -> Tensor:
        from fvcore.artifacts import tensor_leaf
        from fvcore.injection import continuation_logits

        prompts = golden.prompt_boundary()
        ids = cast("list[int]", prompts[f"{trial}/corrupted/input_ids"])
        vector = None
        if mode == "with":
            vector = tensor_leaf(golden.fv_vector({}, {}), "function_vector").to(lm.device)
        return continuation_logits(lm, ids, generated, vector, settings.layer_of(lm), settings.alpha)

    return logits


def log_effects_of(lm: LanguageModel, golden: Implementation, settings: Settings) -> LogEffects:
    def effects() -> Tensor:
        if settings.token_class_idx != -1:
            raise NotHeld("effects in log-probabilities are compared at the last token alone, token class -1")
        recorded: Any = golden.top_heads({}, {}, {})["cie"]
        in_probability, in_logprob = _computed(lm, golden, settings)
        off, largest = (recorded.float() - in_probability).abs().max(), recorded.abs().max()
        if not float(off) <= NEAR * float(largest):
            raise NotHeld(
                f"the model at hand gives other effects than the golden holds (off by {float(off):.3g}), so it cannot say "
                "what they are in log-probabilities"
            )
        return in_logprob

    return effects


def _computed(lm: LanguageModel, golden: Implementation, settings: Settings) -> tuple[Tensor, Tensor]:
    """Effects in probabilities and in log-probabilities, each (trial, layer, head)."""
    import torch

    from fvcore.artifacts import tensor_leaf
    from fvcore.fast.engines import target_readings
    from fvcore.pipeline import slots_of, trial_keys

    prompts: Any = golden.prompt_boundary()
    slots, means = golden.slot_map({}), tensor_leaf(golden.mean_activations({}, {}), "mean_activations")
    keys = trial_keys(prompts)
    cases = [
        (prompts[f"{key}/corrupted/input_ids"], prompts[f"{key}/target_id"], slots_of(slots, key, "corrupted"))
        for key in keys
    ]
    readings = target_readings(lm, cases, means, lm.heads, settings.engine, settings.max_memory)
    found = torch.zeros(len(keys), lm.n_layers, lm.n_heads, readings.shape[-1])
    change = (readings[:, 1:] - readings[:, :1]).view(len(keys), -1, lm.n_heads, readings.shape[-1])
    found[:, list(lm.head_layers)] = change
    return found[..., 0], found[..., 2]
