"""Station 4a, fast: every head's indirect effect from one run of the prompt, and the rows of an injection. Engine `fast`.

A replacement at the last token of a prompt changes nothing before it and nothing below its layer: one token, from its own
layer up, is all that has to be computed for a head (`shared_prompt.py`). The numbers are those of engine `exact` up to
rounding: the operations are the same, the kernels sum in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from fvcore.activations import by_slot, of_all_layers
from fvcore.effects import read_targets, tokens_of_class
from fvcore.fast.chunks import Advance, chunk_size, even, fitting, in_chunks, silent
from fvcore.fast.shared_prompt import Batch, SharedPrompt, Suffix
from fvcore.model.hooks import read_heads, split_heads
from fvcore.model.model import LanguageModel
from fvcore.slots import SlotMap

Head: TypeAlias = "tuple[int, int]"
Case: TypeAlias = "tuple[Sequence[int], int, SlotMap]"
"""A corrupted prompt's ids, its target id and its slots."""

ROWS = 4096
"""Rows that run together at most, of all trials: products of more are hardly faster (`docs/performance.md` has the curve). A
number that a clock chose would change the last bits of a result from one run to the next."""

ALIKE, MANY_HEADS = 1024, 64
"""Rows of one trial's variants that run together at most: each one's attention looks at all of them, if only to see that
they are masked. Fewer where a layer has more heads than that, for in each of them it does."""

LOGITS = 31 * 2**20
"""Bytes of logits that are there at once: more than the C library keeps (`memory.py`) would be cleared anew each time."""


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

    def variants(self, layer: int, heads: Sequence[int], as_they_are: Tensor) -> Tensor:
        """(trial, token, head, d_head) with one of these heads replaced in each variant: (trial, variant, token, head, d_head)."""
        device, d_head = as_they_are.device, as_they_are.shape[-1]
        means = self.means[layer, :, :, :d_head].to(as_they_are)[:, self.slots.to(device)].permute(1, 2, 0, 3)
        chosen = torch.tensor(heads, device=device)[:, None] == torch.arange(as_they_are.shape[2], device=device)
        where = self.at.to(device)[:, None, :, None, None] & chosen[:, None, :, None]
        return torch.where(where, means[:, None], as_they_are[:, None])


def rows_with_heads_replaced(suffix: Suffix, heads: Sequence[Head], replacement: Replacement) -> Tensor:
    """What leaves the last block with each of these heads replaced, at the last token: (trial, variant, d_model).

    heads: (layer, head) in order of layer; each variant starts behind the attention of its own.
    """
    own = {layer: [head for at, head in heads if at == layer] for layer in dict(heads)}

    def make(layer: int, as_they_are: Tensor) -> Tensor:
        variants = replacement.variants(layer, own[layer], split_heads(as_they_are, suffix.prompt.lm))
        return variants.flatten(-2).flatten(1, 2)

    return suffix.through(
        behind={layer: (len(some) * suffix.n_tokens, partial(make, layer)) for layer, some in own.items()}
    )


def rows_with_vectors_added(
    suffix: Suffix, layers: Sequence[int], vectors: Sequence[Tensor]
) -> tuple[Tensor, list[list[bool]]]:
    """What leaves the last block with each of the vectors (d_model,) added at the last token behind each of these blocks.

    layers: rising
    returns: (trial, layer * vector, d_model), and of each layer and vector whether it changed anything of what it was added to
    """
    moved = dict[int, list[bool]]()

    def enter(layer: int, entered: Tensor) -> Tensor | None:
        # What leaves a block is what enters the next one.
        if layer - 1 not in layers or not vectors:
            return None
        rows = torch.cat([entered + vector.to(entered) for vector in vectors], dim=1)
        moved[layer - 1] = (rows != entered).any(dim=2).any(dim=0).tolist()
        return rows

    return suffix.through(enter), [moved.get(layer, []) for layer in layers]


def alike(lm: LanguageModel) -> int:
    """How many rows of one trial's variants run together at most."""
    return max(1, ALIKE * MANY_HEADS // max(MANY_HEADS, lm.n_heads))


def trials_along(lm: LanguageModel, n_tokens: int, n_variants: int, max_memory: int | None = None) -> int:
    """How many prompts of so many tokens run in one pass with all their variants; 0 where not even one does."""
    n_rows = n_tokens + n_variants
    if n_variants > alike(lm):
        return 0
    return fitting(pass_bytes(lm, n_rows), lm.device, ROWS // n_rows, max_memory)


def target_readings(
    lm: LanguageModel,
    cases: Sequence[Case],
    means: Tensor,
    heads: Sequence[Head],
    classes: Sequence[str] = ("query_predictive",),
    max_memory: int | None = None,
    advance: Advance = silent,
    read: Callable[[Tensor, Tensor], Tensor] = read_targets,
    along: bool = False,
) -> Tensor:
    """`effects.target_readings` of trials that run together, at several token classes, in the model's dtype.

    means: (layer, head, slot, d_head)     heads: in order of layer
    read: `effects.read_targets`, or `read_probability` where no more is wanted
    along: one class, its variants in one pass with the prompts; else prompts first, and variants as many at a time as fit
    returns: (trial, 1 + len(heads), reading, class)
    """
    replacements = [Replacement.of(name, cases, means, lm.device) for name in classes]
    prompts, targets = [ids for ids, _, _ in cases], torch.tensor([target for _, target, _ in cases], device=lm.device)
    if along:
        (replacement,) = replacements
        suffix = SharedPrompt.along(lm, prompts, len(heads), replacement.n_tokens)
        rows = rows_with_heads_replaced(suffix, heads, replacement)
        advance(heads[-1][0], len(cases) * len(heads))
        return _where_any(replacement, _read(suffix.prompt, rows, targets, read))[..., None]
    prompt, found = SharedPrompt.run(lm, prompts, max(r.n_tokens for r in replacements)), []
    for replacement in replacements:
        size = variants_together(lm, len(cases), replacement.n_tokens, 1 + len(heads), max_memory)
        suffix = prompt.suffix(replacement.n_tokens, size)

        def run(some: Sequence[Head | None], suffix: Suffix = suffix, replacement: Replacement = replacement) -> Tensor:
            readings = _read(prompt, _rows(suffix, some, replacement), targets, read)
            if replaced := [head for head in some if head]:
                advance(replaced[-1][0], len(cases) * len(replaced))
            return readings

        found.append(_where_any(replacement, torch.cat(list(in_chunks([None, *heads], size, run)), dim=1)))
    return torch.stack(found, dim=-1)


def _where_any(replacement: Replacement, readings: Tensor) -> Tensor:
    """A class that a prompt has no token of has no effect there; a difference in rounding would be one."""
    return torch.where(replacement.at.any(dim=1)[:, None, None], readings, readings[:, :1])


def variants_together(
    lm: LanguageModel, n_trials: int, n_tokens: int, n_variants: int, max_memory: int | None = None
) -> int:
    """How many variants of each trial run together behind prompts that ran first: chunks of one size."""
    most = even(n_variants, max(1, min(alike(lm), ROWS // n_trials) // n_tokens))
    return chunk_size(n_trials * variant_bytes(lm, n_tokens), lm.device, most, max_memory)


def _read(prompt: SharedPrompt, rows: Tensor, targets: Tensor, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What is read of the logits of some rows at a time: those of all take as much memory as everything else."""
    lm, (n_trials, n_rows, _) = prompt.lm, rows.shape
    size = max(1, LOGITS // (n_trials * lm.itemsize * lm.vocab_size))
    parts = [rows[:, at : at + size] for at in range(0, n_rows, size)]
    found = [read(prompt.logits(part), targets[:, None].expand(part.shape[:2])) for part in parts]
    return torch.cat(found, dim=1).to(targets.device)


def _rows(suffix: Suffix, some: Sequence[Head | None], replacement: Replacement) -> Tensor:
    """What leaves the last block at the last token: of the prompts as they are for None, with a head replaced for a head."""
    heads = [head for head in some if head is not None]
    rows = [suffix.prompt.entered[-1][:, -1:]] if None in some else []
    rows += [rows_with_heads_replaced(suffix, heads, replacement)] if heads else []
    return torch.cat([each.to(rows[0].device) for each in rows], dim=1)


def variant_bytes(lm: LanguageModel, n_tokens: int) -> int:
    """About what a variant of a trial needs at most: keys and values of all layers, what one block makes of its tokens, and
    logits and their softmax."""
    kept = 2 * lm.n_layers * (lm.n_kv_heads or lm.n_heads) * lm.d_head
    return lm.itemsize * (3 * lm.vocab_size + n_tokens * (kept + 32 * lm.d_model))


def pass_bytes(lm: LanguageModel, n_rows: int) -> int:
    """About what a prompt and its variants need that run in one pass: what one block makes of that many rows, and the weights
    of their attention where it is computed as written."""
    each = 32 * max(lm.d_model, lm.n_heads * lm.d_head) + 3 * lm.n_heads * n_rows
    return lm.itemsize * (n_rows * each + 3 * lm.vocab_size)


def trial_bytes(lm: LanguageModel, n_tokens: int) -> int:
    """About what a prompt needs: keys, values and residuals of all layers, and what one block makes of its tokens."""
    return lm.itemsize * n_tokens * (3 * lm.n_layers + 32) * max(lm.d_model, lm.n_heads * lm.d_head)


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
