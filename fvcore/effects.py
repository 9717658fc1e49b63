"""Station 4a: causal indirect effect, defined one head at a time.

On a corrupted prompt one head's activation is replaced by its mean over clean prompts; the effect (CIE) is the change
in the probability of the right answer. Its mean over trials is the AIE. This is engine `exact`: one prompt, one head,
the operations of the reference in its order (section 2.3 of Todd et al. 2023;
`activation_replacement_per_class_intervention` in the reference's compute_indirect_effect.py).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fvcore.model.hooks import edit_heads
from fvcore.model.model import LanguageModel
from fvcore.slots import TOKEN_CLASSES as TOKEN_CLASSES
from fvcore.slots import SlotMap


def tokens_of_class(slots: SlotMap, token_class: str) -> list[int]:
    pattern = re.compile(TOKEN_CLASSES[token_class])
    return [token for token, label in enumerate(slots.labels) if pattern.fullmatch(label)]


def target_probability(lm: LanguageModel, input_ids: Sequence[int], target_id: int) -> Tensor:
    """Probability of the target after the prompt; softmax in the model's dtype, as in the reference."""
    return torch.softmax(lm.logits(lm.ids(input_ids))[0, -1], dim=-1)[target_id]


def head_replaced(
    lm: LanguageModel, layer: int, head: int, means: Mapping[int, Tensor]
) -> AbstractContextManager[None]:
    """Replace `head` of `layer` at some tokens of one prompt; `means` is token -> (d_head,)."""

    def replace(heads: Tensor) -> None:  # (1, token, head, d_head)
        for token, mean in means.items():
            heads[-1, token, head] = mean[: heads.shape[-1]].to(heads)

    return edit_heads(lm, layer, replace)


def read_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability, logit and log-probability of a target, in the dtype of the logits.

    logits: (..., vocab)     targets: (...)     returns: (..., 3)
    """
    values = (torch.softmax(logits, -1), logits, torch.log_softmax(logits, -1))
    return torch.stack([_at(each, targets) for each in values], dim=-1)


def read_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """The first of `read_targets` alone: (..., 1)."""
    return _at(torch.softmax(logits, -1), targets)[..., None]


def _at(values: Tensor, targets: Tensor) -> Tensor:
    return values.gather(-1, targets.to(values.device).unsqueeze(-1)).squeeze(-1)


@torch.inference_mode()
def target_readings(
    lm: LanguageModel,
    input_ids: Sequence[int],
    target_id: int,
    slots: SlotMap,
    mean_activations: Tensor,
    heads: Sequence[tuple[int, int]],
    advance: Callable[[int, int], None] = lambda layer, n_rows: None,
) -> Tensor:
    """`read_targets` on one corrupted prompt as it is, then with each of the heads replaced at the last token.

    mean_activations: (layer, head, slot, d_head)     heads: (layer, head)     returns: (1 + len(heads), 3), float32
    advance: is told, after each head, its layer and that one row is done
    """
    ids, target = lm.ids(input_ids), torch.tensor(target_id)
    found = [read_targets(lm.logits(ids)[0, -1], target)]
    for layer, head in heads:
        with head_replaced(lm, layer, head, {-1: mean_activations[layer, head, slots.query_predictive_slot]}):
            found.append(read_targets(lm.logits(ids)[0, -1], target))
        advance(layer, 1)
    return torch.stack(found).float().cpu()


@torch.inference_mode()
def causal_indirect_effect(
    lm: LanguageModel,
    input_ids: Sequence[int],
    target_id: int,
    slots: SlotMap,
    mean_activations: Tensor,
    all_token_classes: bool = False,
) -> Tensor:
    """CIE of every head on one corrupted prompt.

    mean_activations: (layer, head, slot, d_head)
    returns: (layer, head), the head replaced at the last token; or (layer, head, class) with `all_token_classes`,
    where a class without tokens has effect 0, and so has a layer without heads.
    """
    classes = list(TOKEN_CLASSES) if all_token_classes else ["query_predictive"]
    tokens = [tokens_of_class(slots, token_class) for token_class in classes]
    base = target_probability(lm, input_ids, target_id)
    slot_of = slots.full_idx_map
    effect = torch.zeros(lm.n_layers, lm.n_heads, len(classes))
    for layer, head in lm.heads:
        for i, at in enumerate(tokens):
            if at:
                means = {token: mean_activations[layer, head, slot_of[token]] for token in at}
                with head_replaced(lm, layer, head, means):
                    effect[layer, head, i] = target_probability(lm, input_ids, target_id) - base
    return effect if all_token_classes else effect.squeeze(-1)


def average_indirect_effect(cie: Tensor, token_class_idx: int = -1) -> Tensor:
    """AIE, the mean over trials.

    cie: (trial, layer, head), then `token_class_idx` must be -1; or (trial, layer, head, class), where -1 is the
    last class, query_predictive.      returns: (layer, head)
    """
    if cie.ndim == 3 and token_class_idx == -1:
        return cie.mean(dim=0)
    if cie.ndim != 4:
        raise ValueError(
            f"an indirect effect of shape {tuple(cie.shape)} has no token class {token_class_idx}; expected (trial, "
            "layer, head) with token class -1, or (trial, layer, head, class)"
        )
    n_classes = cie.shape[3]
    if not -n_classes <= token_class_idx < n_classes:
        raise ValueError(f"token class {token_class_idx} is not in [-1, {n_classes - 1}]")
    return cie[:, :, :, token_class_idx].mean(dim=0)
