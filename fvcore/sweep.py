"""Station 4a, fast: every head's indirect effect from one cached prompt. Engine `fast`.

A replacement at token t changes nothing before t, and nothing below its own layer. So the prompt runs once; its keys and
values, and what entered each block, are kept. A *variant* (one head replaced) is then the few tokens from t on, from its
own layer up. All variants of all trials run together as further rows of the residual stream: each row sees the prompt
before t and its own variant's rows, at the same positions. The model's own code does everything else: what a block needs
beside the residual stream (masks, positions) is what the model hands to it for those tokens.

Residual rows are (trial, variant * token, d_model): the rows of one variant stand together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from fvcore.effects import TOKEN_CLASSES, tokens_of_class
from fvcore.hooks import edit_heads, passing_over, read_blocks
from fvcore.models import LanguageModel
from fvcore.slots import SlotMap

Head: TypeAlias = "tuple[int, int]"
Case: TypeAlias = "tuple[Sequence[int], int, SlotMap]"
"""A corrupted prompt's ids, its target id and its slots."""

VARIANTS = 128
"""Variants that run together. Attention among rows grows with their square, matrix products get no faster beyond."""


@dataclass(frozen=True)
class Batch:
    """Prompts of several lengths, padded on the left so that their last tokens stand in one column."""

    ids: Tensor  # (trial, token)
    mask: Tensor  # (trial, token): 1 for a token, 0 for padding

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], device: torch.device) -> Batch:
        longest = max(map(len, prompts))
        rows = [[0] * (longest - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        return cls(torch.tensor(rows, device=device), torch.tensor(mask, device=device))

    @property
    def n_tokens(self) -> int:
        return self.ids.shape[1]

    @property
    def positions(self) -> Tensor:
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)

    def inputs(self, start: int = 0) -> dict[str, Tensor]:
        """What the model takes for the tokens from `start` on. Without padding no mask is given: kernels are faster."""
        given = {"input_ids": self.ids[:, start:], "position_ids": self.positions[:, start:]}
        return given if bool(self.mask.all()) else {**given, "attention_mask": self.mask}


class _Prefix(DynamicLayer):
    """Keys and values of the prompt; what comes after them is seen and not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


@dataclass(frozen=True)
class Prompt:
    """Prompts that ran once: what entered every block at their last `n_kept` tokens, and all keys and values."""

    lm: LanguageModel
    batch: Batch
    cache: DynamicCache
    entered: list[Tensor]  # layer -> (trial, n_kept, d_model); behind the last layer, what left it
    tuples: list[bool]  # whether a block returns a tuple

    @classmethod
    def run(cls, lm: LanguageModel, prompts: Sequence[Sequence[int]], n_kept: int = 1) -> Prompt:
        batch, cache = Batch.of(prompts, lm.device), DynamicCache()
        with read_blocks(lm, n_kept) as (entered, tuples):
            # Without the output head: most of its rows would be thrown away.
            lm.hf.base_model(**batch.inputs(), past_key_values=cache, use_cache=True)
        return cls(lm, batch, cache, entered, tuples)

    def suffix(self, n_tokens: int) -> Suffix:
        """The last tokens of the prompts, as what the model hands to its blocks for them."""
        start = self.batch.n_tokens - n_tokens
        layers = [_Prefix(layer.keys[..., :start, :], layer.values[..., :start, :]) for layer in self.cache.layers]
        calls: dict[int, dict[str, Any]] = {}

        def note(layer: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
            calls[layer] = given
            return hidden

        with passing_over(self.lm, note, self.tuples):
            self.lm.hf.base_model(**self.batch.inputs(start), past_key_values=Cache(layers=layers), use_cache=True)
        return Suffix(self, n_tokens, calls)

    def logits(self, rows: Tensor) -> Tensor:
        """What the model makes of residual rows (trial, row, d_model) behind its last block: (trial, row, vocab)."""

        def instead(layer: int, hidden: Tensor, _: dict[str, Any]) -> Tensor:
            return rows if layer == self.lm.n_layers - 1 else hidden

        with passing_over(self.lm, instead, self.tuples):
            found: Tensor = self.lm.hf(input_ids=self.batch.ids[:, -1:], use_cache=False).logits
        return found.reshape(*rows.shape[:2], -1)


@dataclass(frozen=True)
class Suffix:
    """The last tokens of a prompt and what each block is handed for them: variants are made of these."""

    prompt: Prompt
    n_tokens: int
    calls: dict[int, dict[str, Any]]

    def entered(self, layer: int) -> Tensor:
        """(trial, token, d_model)"""
        return self.prompt.entered[layer][:, -self.n_tokens :]

    def block(self, layer: int, rows: Tensor) -> Tensor:
        """One block on the rows of some variants."""
        n_variants = rows.shape[1] // self.n_tokens
        given = {name: self._tiled(name, value, n_variants, rows) for name, value in self.calls[layer].items()}
        output = self.prompt.lm.blocks[layer](rows, **given)
        return output[0] if isinstance(output, tuple) else output

    def _tiled(self, name: str, value: Any, n_variants: int, rows: Tensor) -> Any:
        """What a block is handed for the tokens of a prompt, for the same tokens of several variants."""
        if name == "attention_mask":
            return self._own_rows(value, n_variants, rows)
        if isinstance(value, tuple | list):
            return type(value)(self._tiled("", item, n_variants, rows) for item in value)
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == self.n_tokens:
            return value.repeat(1, n_variants, *[1] * (value.ndim - 2))
        return value

    def _own_rows(self, mask: Tensor | None, n_variants: int, rows: Tensor) -> Tensor:
        """Every row sees what its token sees of the prompt, and of the rows those of its own variant."""
        n, start = self.n_tokens, self.prompt.batch.n_tokens - self.n_tokens
        if mask is None:  # the kernel's own causal order
            mask = torch.ones(1, 1, n, start + n, dtype=torch.bool, device=rows.device).tril(start)
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        before, own = mask[..., :start], mask[..., start:]
        apart = torch.full((*mask.shape[:2], n_variants, n, n_variants, n), hidden, dtype=mask.dtype, device=rows.device)
        each = torch.arange(n_variants, device=rows.device)
        apart[:, :, each, :, each] = own
        tiled = before.repeat(1, 1, n_variants, 1)
        return torch.cat([tiled, apart.reshape(*mask.shape[:2], n_variants * n, n_variants * n)], dim=-1)


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

    def into(self, heads: Tensor, layer: int, which: Tensor, first: int) -> None:
        """Change, in place, the variants from `first` on of (trial, variant, token, head, d_head)."""
        variants = first + torch.arange(len(which), device=heads.device)
        new = self.means[layer, which][:, self.slots].to(heads)  # (variant, trial, token, d_head)
        heads[:, variants, :, which] = torch.where(self.at[None, :, :, None], new, heads[:, variants, :, which])


def rows_with_heads_replaced(suffix: Suffix, variants: Sequence[Head], replacement: Replacement) -> Tensor:
    """What leaves the last block at the last token of every variant: (trial, variant, d_model).

    variants: heads in order of layer; each starts at its own.
    """
    lm, n = suffix.prompt.lm, suffix.n_tokens
    rows = suffix.entered(0)[:, :0]
    for layer in range(variants[0][0], lm.n_layers):
        which = torch.tensor([head for own, head in variants if own == layer], device=rows.device, dtype=torch.long)
        first = rows.shape[1] // n
        rows = torch.cat([rows, suffix.entered(layer).repeat(1, len(which), 1)], dim=1)

        def edit(heads: Tensor, layer: int = layer, which: Tensor = which, first: int = first) -> None:
            replacement.into(heads.unflatten(1, (-1, n)), layer, which, first)

        with edit_heads(lm, layer, edit):
            rows = suffix.block(layer, rows)
    return rows[:, n - 1 :: n]


@torch.inference_mode()
def causal_indirect_effects(
    lm: LanguageModel, cases: Sequence[Case], mean_activations: Tensor, all_token_classes: bool = False
) -> Tensor:
    """CIE of every head on every prompt: what `effects.causal_indirect_effect` gives, one prompt after the other.

    mean_activations: (layer, head, slot, d_head)
    returns: (trial, layer, head), or (trial, layer, head, class) with `all_token_classes`
    """
    classes = list(TOKEN_CLASSES) if all_token_classes else ["query_predictive"]
    replacements = [Replacement.of(name, cases, mean_activations, lm.device) for name in classes]
    prompt = Prompt.run(lm, [ids for ids, _, _ in cases], max(r.n_tokens for r in replacements))
    targets = torch.tensor([target for _, target, _ in cases], device=lm.device)
    base = _probabilities(prompt, prompt.entered[-1][:, -1:], targets)
    effects = []
    for replacement in replacements:
        effect = _over_all_heads(prompt.suffix(replacement.n_tokens), replacement, targets) - base
        # A class that a prompt has no token of has no effect there; a difference in rounding would be one.
        effects.append(torch.where(replacement.at.any(dim=1)[:, None], effect, 0.0))
    shape = (len(cases), lm.n_layers, lm.n_heads)
    found = torch.stack([effect.float().cpu().reshape(shape) for effect in effects], dim=-1)
    return found if all_token_classes else found.squeeze(-1)


def _over_all_heads(suffix: Suffix, replacement: Replacement, targets: Tensor) -> Tensor:
    """Probability of the targets with each head replaced: (trial, layer * head)."""
    lm = suffix.prompt.lm
    heads = [(layer, head) for layer in range(lm.n_layers) for head in range(lm.n_heads)]
    size = max(1, VARIANTS // suffix.n_tokens)
    parts = []
    for start in range(0, len(heads), size):
        rows = rows_with_heads_replaced(suffix, heads[start : start + size], replacement)
        parts.append(_probabilities(suffix.prompt, rows, targets))
    return torch.cat(parts, dim=1)


def _probabilities(prompt: Prompt, rows: Tensor, targets: Tensor) -> Tensor:
    """(trial, row): probability of each trial's target; softmax in the model's dtype, as in the reference."""
    every = torch.softmax(prompt.logits(rows), dim=-1)
    return every.gather(2, targets[:, None, None].expand(-1, rows.shape[1], 1)).squeeze(2)
