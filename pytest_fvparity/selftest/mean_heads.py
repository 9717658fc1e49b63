"""Station 3 written again, as candidates of other make have it: what faults, variations and tests of the drill stand on."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fvcore.activations import head_activations
from fvcore.artifacts import Artifact
from fvcore.model.hooks import read_heads
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, slots_of, trial_keys
from fvcore.slots import SlotMap

KEY = "mean_activations"

HeadsOf = Callable[[LanguageModel, list[int], SlotMap], Tensor]
Station = Callable[[Pipeline, Artifact, Artifact], Artifact]
Pool = Callable[[Tensor], Tensor]


def mean_of(
    heads_of: HeadsOf = head_activations,
    regime: str = "clean",
    mean: Callable[[list[Tensor]], Tensor] = lambda heads: torch.stack(heads).mean(dim=0),
) -> Station:
    """The station: `heads_of` gives one prompt's heads as (layer, head, slot, d_head), `mean` that of all of them."""

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        heads = [
            heads_of(self.lm, ids_of(prompts, key, regime), slots_of(slot_map, key, regime))
            for key in trial_keys(prompts)
        ]
        return {KEY: mean(heads)}

    return mean_activations


def ids_of(prompts: Artifact, key: str, regime: str) -> list[int]:
    return cast("list[int]", prompts[f"{key}/{regime}/input_ids"])


def heads_by_token(lm: LanguageModel, ids: list[int]) -> Tensor:
    """(layer, head, token, d_head)"""
    with read_heads(lm) as heads:
        lm.logits(lm.ids(ids))
    return torch.cat([heads[layer] for layer in range(lm.n_layers)]).transpose(1, 2)


def to_slots(by_token: Tensor, slots: SlotMap, pool: Pool) -> Tensor:
    """(layer, head, token, d_head) -> (layer, head, slot, d_head), a word's tokens pooled."""
    by_slot = by_token[:, :, list(slots.idx_map)]
    for first, last in slots.idx_avg.values():
        by_slot[:, :, slots.idx_map[first]] = pool(by_token[:, :, first : last + 1])
    return by_slot


def average(word: Tensor) -> Tensor:
    return word.mean(dim=2)


def pooled_by(pool: Pool) -> Station:
    return mean_of(lambda lm, ids, slots: to_slots(heads_by_token(lm, ids), slots, pool))


def batched(forward: Callable[[LanguageModel, Tensor, Tensor], Any]) -> Station:
    """The station with all clean prompts in one left-padded batch; `forward` takes ids and mask."""

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        keys = trial_keys(prompts)
        ids, mask = left_padded([ids_of(prompts, key, "clean") for key in keys])
        with read_heads(self.lm) as heads:
            forward(self.lm, ids, mask)
        means = []
        for row, key in enumerate(keys):
            by_token = torch.stack([heads[layer][row, mask[row]] for layer in range(self.lm.n_layers)]).transpose(1, 2)
            means.append(to_slots(by_token, slots_of(slot_map, key, "clean"), average))
        return {KEY: torch.stack(means).mean(dim=0)}

    return mean_activations


def left_padded(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """ids (prompt, token), padded with token 0, and the mask of what is no padding."""
    width = max(map(len, prompts))
    pads = [width - len(ids) for ids in prompts]
    ids = torch.tensor([[0] * pad + ids for pad, ids in zip(pads, prompts, strict=True)])
    return ids, torch.arange(width) >= torch.tensor(pads).unsqueeze(1)


def padded_logits(lm: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    """One pass over a left-padded batch as it should be: positions count from the first real token."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    output = lm.hf(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False)
    return cast("Tensor", output.logits)
