"""Station 4a, fast: every head's indirect effect from one run of the prompt, and the rows of an injection. Engine `fast`.

A replacement at the last token of a prompt changes nothing before it and nothing below its layer: one token, from its own
layer up, is all that has to be computed for a head (`shared_prompt.py`). The numbers are those of engine `exact` up to
rounding: the operations are the same, the kernels sum in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fvcore.activations import by_slot, of_all_layers
from fvcore.effects import read_targets, tokens_of_class
from fvcore.fast.chunks import Advance, chunk_size, in_chunks, silent
from fvcore.fast.shared_prompt import Batch, SharedPrompt, Suffix
from fvcore.model.hooks import edit_heads, read_heads
from fvcore.model.model import LanguageModel
from fvcore.slots import SlotMap

Head: TypeAlias = "tuple[int, int]"
Case: TypeAlias = "tuple[Sequence[int], int, SlotMap]"
"""A corrupted prompt's ids, its target id and its slots."""

VARIANTS = 128
"""Variants that run together. Attention among rows grows with their square, matrix products get no faster beyond."""


@dataclass(frozen=True)
class Replacement:
    """Heads are replaced by their means at some tokens of a suffix."""

    means: Tensor  # (layer, head, slot, d_head)
    slots: Tensor  # (trial, token) -> slot, where `at` is true
    at: Tensor  # (trial, token)

    @classmethod
    def of(cls, token_class: str, cases: Sequence[Case], means: Tensor, device: torch.device) -> Replacement:
        """At the tokens of one class; the suffix is as long as the trial that needs the longest."""
        n_tokens, pairs = 1, []
        for trial, (ids, _, slots) in enumerate(cases):
            for token in tokens_of_class(slots, token_class):
                n_tokens = max(n_tokens, len(ids) - token)
                pairs.append((trial, token - len(ids), slots.full_idx_map[token]))
        chosen = torch.zeros(len(cases), n_tokens, dtype=torch.long)
        at = torch.zeros(len(cases), n_tokens, dtype=torch.bool)
        for trial, token, slot in pairs:
            chosen[trial, token], at[trial, token] = slot, True
        return cls(means.to(device), chosen.to(device), at.to(device))

    @property
    def n_tokens(self) -> int:
        return self.at.shape[1]

    def into(self, rows: Tensor, layer: int, heads: Tensor) -> None:
        """Change, in place, head `heads[i]` of variant i in (trial, variant, token, head, d_head)."""
        each, chosen = torch.arange(len(heads), device=rows.device), heads.to(rows.device)
        new = self.means[layer, heads][:, self.slots, : rows.shape[-1]].to(rows)  # (variant, trial, token, d_head)
        at = self.at[None, :, :, None].to(rows.device)
        rows[:, each, :, chosen] = torch.where(at, new, rows[:, each, :, chosen])


def rows_with_heads_replaced(suffix: Suffix, heads: Sequence[Head], replacement: Replacement) -> Tensor:
    """What leaves the last block with each of these heads replaced, at the last token: (trial, variant, d_model).

    heads: (layer, head) in order of layer; each variant starts at its own.
    """
    device = suffix.prompt.lm.device
    own = {layer: torch.tensor([h for at, h in heads if at == layer], device=device) for layer in dict(heads)}
    before = {layer: sum(at < layer for at, _ in heads) for layer in own}

    def enter(layer: int) -> Tensor | None:
        return suffix.entered(layer).repeat(1, len(own[layer]), 1) if layer in own else None

    def around(layer: int) -> AbstractContextManager[None]:
        if layer not in own:
            return nullcontext()

        def edit(rows: Tensor) -> None:
            variants = rows.view(len(rows), -1, suffix.n_tokens, *rows.shape[2:])
            replacement.into(variants[:, before[layer] :], layer, own[layer])

        return edit_heads(suffix.prompt.lm, layer, edit)

    return suffix.through(enter, around)


def rows_with_vector_added(suffix: Suffix, layers: Sequence[int], vector: Tensor) -> Tensor:
    """What leaves the last block with `vector` (d_model,) added at the last token behind each of these blocks.

    layers: rising.    returns: (trial, layer, d_model)
    """

    def enter(layer: int) -> Tensor | None:
        # What leaves a block is what enters the next one.
        return suffix.entered(layer) + vector.to(suffix.entered(layer)) if layer - 1 in layers else None

    return suffix.through(enter)


def target_readings(
    lm: LanguageModel,
    cases: Sequence[Case],
    means: Tensor,
    heads: Sequence[Head],
    classes: Sequence[str] = ("query_predictive",),
    max_memory: int | None = None,
    advance: Advance = silent,
) -> Tensor:
    """`effects.target_readings` of trials that run together, at several token classes, in the model's dtype.

    means: (layer, head, slot, d_head)     heads: in order of layer     returns: (trial, 1 + len(heads), 3, class)
    """
    replacements = [Replacement.of(name, cases, means, lm.device) for name in classes]
    prompt = SharedPrompt.run(lm, [ids for ids, _, _ in cases], max(r.n_tokens for r in replacements))
    targets = torch.tensor([target for _, target, _ in cases], device=lm.device)
    base = _readings(prompt, prompt.entered[-1][:, -1:], targets)
    found = []
    for replacement in replacements:
        suffix = prompt.suffix(replacement.n_tokens)
        patched = _patched(suffix, heads, replacement, targets, max_memory, advance)
        # A class that a prompt has no token of has no effect there; a difference in rounding would be one.
        patched = torch.where(replacement.at.any(dim=1)[:, None, None], patched, base)
        found.append(torch.cat([base, patched], dim=1))
    return torch.stack(found, dim=-1)


def _patched(
    suffix: Suffix,
    heads: Sequence[Head],
    replacement: Replacement,
    targets: Tensor,
    max_memory: int | None,
    advance: Advance,
) -> Tensor:
    """Readings with each of the heads replaced: (trial, head, 3)."""
    lm, n_trials = suffix.prompt.lm, len(targets)
    each = n_trials * variant_bytes(lm, suffix.n_tokens)
    size = chunk_size(each, lm.device, max(1, VARIANTS // suffix.n_tokens), max_memory)

    def run(some: Sequence[Head]) -> Tensor:
        readings = _readings(suffix.prompt, rows_with_heads_replaced(suffix, some, replacement), targets)
        advance(some[-1][0], n_trials * len(some))
        return readings

    return torch.cat(list(in_chunks(heads, size, run)), dim=1)


def variant_bytes(lm: LanguageModel, n_tokens: int) -> int:
    """About what a variant of a trial needs at most: what one block makes of its tokens, and logits and their softmax."""
    return lm.itemsize * (3 * lm.vocab_size + n_tokens * 32 * lm.d_model)


def trial_bytes(lm: LanguageModel, n_tokens: int) -> int:
    """About what a prompt needs: keys, values and residuals of all layers, and what one block makes of its tokens."""
    return lm.itemsize * n_tokens * (3 * lm.n_layers + 32) * max(lm.d_model, lm.n_heads * lm.d_head)


def _readings(prompt: SharedPrompt, rows: Tensor, targets: Tensor) -> Tensor:
    """`read_targets` of each trial's target, in the model's dtype as in the reference: (trial, row, 3)."""
    return read_targets(prompt.logits(rows), targets[:, None].expand(-1, rows.shape[1])).to(targets.device)


def head_activations(lm: LanguageModel, prompts: Sequence[tuple[Sequence[int], SlotMap]]) -> Tensor:
    """`activations.head_activations` of prompts in a padded batch: (prompt, layer, head, slot, d_head), float32 on the CPU."""
    batch = Batch.of([ids for ids, _ in prompts], lm)
    with read_heads(lm) as heads:
        lm.hf.base_model(**batch.inputs(), use_cache=False)
    found = []
    for row, (ids, slots) in enumerate(prompts):
        own = {layer: one[row : row + 1, -len(ids) :] for layer, one in heads.items()}
        found.append(by_slot(of_all_layers(lm, own), slots).float().cpu())
    return torch.stack(found)
