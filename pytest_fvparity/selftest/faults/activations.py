"""Faults of station 3, mean head activations."""

from __future__ import annotations

from dataclasses import replace

import torch

from fvcore.activations import head_activations
from fvcore.artifacts import Artifact
from fvcore.pipeline import Pipeline, slots_of, trial_keys
from fvcore.slots import SlotMap
from pytest_fvparity.implementation import Implementation
from pytest_fvparity.selftest.bed import Bed
from pytest_fvparity.selftest.catalogue import candidate_fault

KEY = "mean_activations"


@candidate_fault(
    "F25",
    "first token instead of the average for words of several tokens",
    "the averaging ranges are dropped",
    KEY,
    "demonstration and query slots only; the last slot is equal, so later keys would pass",
)
def first_token_only(bed: Bed) -> Implementation:
    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        def heads(key: str) -> torch.Tensor:
            slots: SlotMap = replace(slots_of(slot_map, key, "clean"), idx_avg={})
            return head_activations(self.lm, prompts[f"{key}/clean/input_ids"], slots)  # type: ignore[arg-type]

        return {KEY: torch.stack([heads(key) for key in trial_keys(prompts)]).mean(dim=0)}

    return bed.candidate(mean_activations=mean_activations)
