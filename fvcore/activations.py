"""Station 3: mean head activations over the clean prompts, one vector per layer, head and slot.

Source: section 2.2 of Todd et al. 2023; `get_mean_head_activations` in the reference's extract_utils.py.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fvcore.model.hooks import read_heads
from fvcore.model.model import LanguageModel
from fvcore.slots import SlotMap


@torch.inference_mode()
def head_activations(lm: LanguageModel, input_ids: Sequence[int], slots: SlotMap) -> Tensor:
    """What enters `o_proj`, per head and slot, on one prompt. A word's tokens are averaged in the model's dtype.

    returns: (layer, head, slot, d_head)
    """
    with read_heads(lm) as heads:
        lm.logits(lm.ids(input_ids))
    return by_slot(of_all_layers(lm, heads), slots)


def of_all_layers(lm: LanguageModel, heads: Mapping[int, Tensor]) -> list[Tensor]:
    """Heads as `read_heads` gives them, one tensor a layer and all of one width.

    Narrower heads are filled up with zeros, and a layer without heads has nothing but zeros.
    """
    if len(set(lm.d_heads)) == 1:
        return [heads[layer] for layer in range(lm.n_layers)]
    some = next(iter(heads.values()))
    nothing = some.new_zeros(*some.shape[:-1], lm.d_head)
    widened = {layer: pad(one, (0, lm.d_head - one.shape[-1])) for layer, one in heads.items()}
    return [widened.get(layer, nothing) for layer in range(lm.n_layers)]


def by_slot(heads: Sequence[Tensor], slots: SlotMap) -> Tensor:
    """Heads of one prompt, a tensor (1, token, head, d_head) a layer, by slot: (layer, head, slot, d_head)."""
    # The reference's own memory layout, so that sums over tokens run in its order.
    by_token = torch.vstack(list(heads)).permute(0, 2, 1, 3)
    found = by_token[:, :, list(slots.idx_map)]
    for first, last in slots.idx_avg.values():
        found[:, :, slots.idx_map[first]] = by_token[:, :, first : last + 1].mean(dim=2)
    return found


@torch.inference_mode()
def mean_head_activations(lm: LanguageModel, prompts: Sequence[tuple[Sequence[int], SlotMap]]) -> Tensor:
    """The mean over prompts, taken at the end in fp32 on the CPU.

    returns: (layer, head, slot, d_head), float32
    """
    if not prompts:
        raise ValueError("no prompts to average over; at least one trial is needed")
    return torch.stack([head_activations(lm, ids, slots).float().cpu() for ids, slots in prompts]).mean(dim=0)
