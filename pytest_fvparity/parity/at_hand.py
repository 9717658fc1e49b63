"""What the model at hand says of a golden: how its prompts go on, and what its effects are in log-probabilities.

A candidate may measure effects in log-probabilities in place of probabilities. A recording that holds them (leaf
`cie_logprob`) is believed. Of an older one they are computed from its own prompts, slots and means by the model at hand,
which must give the recorded effects in probabilities beside them, within the tolerance that a candidate is held to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from fvcore.gates import NotHeld

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.artifacts import Artifact
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings
    from pytest_fvparity.parity.implementation import Implementation
    from pytest_fvparity.parity.tolerances import Tolerances

Continuation: TypeAlias = "Callable[[str, str, Sequence[int]], Tensor]"
"""(trial key, "base" or "with", ids generated so far) -> logits (vocab,) of the next token."""

LogEffects: TypeAlias = "Callable[[], Tensor]"
"""(trial, layer, head), of the golden's trials in its order."""


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


def log_effects_of(lm: LanguageModel, golden: Implementation, settings: Settings, tolerances: Tolerances) -> LogEffects:
    def effects() -> Tensor:
        from fvcore.compare import compare

        if settings.token_class_idx != -1:
            raise NotHeld(
                "of a golden without cie_logprob effects in log-probabilities are compared at the last token alone"
            )
        of = golden.prompt_boundary(), golden.slot_map({}), golden.mean_activations({}, {})
        in_probability, in_logprob = effects_in_both(lm, *of, settings)
        recorded = {"cie": golden.top_heads({}, {}, {})["cie"]}
        verdict = compare(recorded, {"cie": in_probability}, tolerances.of("top_heads"))
        if not verdict.passed:
            off = verdict.measurements.get("max_abs_diff", float("nan"))
            raise NotHeld(
                f"the model at hand gives other effects than the golden holds (off by {off:.3g}), so it cannot say "
                "what they are in log-probabilities"
            )
        return in_logprob

    return effects


def effects_in_both(
    lm: LanguageModel, prompts: Artifact, slot_map: Artifact, mean_activations: Artifact, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Effects at the last token in probabilities and in log-probabilities, each (trial, layer, head)."""
    import torch

    from fvcore.artifacts import tensor_leaf
    from fvcore.fast.engines import target_readings
    from fvcore.pipeline import slots_of, trial_keys

    keys, asked = trial_keys(prompts), cast("dict[str, Any]", prompts)
    cases = [
        (asked[f"{key}/corrupted/input_ids"], asked[f"{key}/target_id"], slots_of(slot_map, key, "corrupted"))
        for key in keys
    ]
    means = tensor_leaf(mean_activations, "mean_activations")
    readings = target_readings(lm, cases, means, lm.heads, settings.engine, settings.max_memory)
    found = torch.zeros(len(keys), lm.n_layers, lm.n_heads, readings.shape[-1])
    change = (readings[:, 1:] - readings[:, :1]).view(len(keys), -1, lm.n_heads, readings.shape[-1])
    found[:, list(lm.head_layers)] = change
    return found[..., 0], found[..., 2]
