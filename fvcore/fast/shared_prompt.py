"""A prompt that runs once, and variants of its last tokens as further rows of the residual stream.

A change at token t alters nothing before t, and nothing below the layer where it is made. So the prompt runs once; its
keys and values, and what entered each block, are kept. A *variant* is then the few tokens from t on, from its own layer
up. All variants of all trials run together: each row sees the prompt before t and its own variant's rows, at the same
positions. The model's own code does everything else: what a block needs beside the residual stream (masks, positions) is
what the model hands to it for those tokens.

Residual rows are (trial, variant * token, d_model): the rows of one variant stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from fvcore.model.hooks import passing_over, read_blocks
from fvcore.model.model import LanguageModel
from fvcore.model.prefix import PrefixLayer, cache_given


@dataclass(frozen=True)
class Batch:
    """Prompts of several lengths, padded on the left so that their last tokens stand in one column."""

    ids: Tensor  # (trial, token)
    mask: Tensor  # (trial, token): 1 for a token, 0 for padding

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], lm: LanguageModel, more: int = 0) -> Batch:
        """more: tokens that will follow. Raises ModelError where that is more than the model reads."""
        longest, device = max(map(len, prompts)), lm.device
        lm.require_room(longest + more)
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


@dataclass(frozen=True)
class SharedPrompt:
    """Prompts that ran once: what entered every block at their last `n_kept` tokens, and all keys and values."""

    lm: LanguageModel
    batch: Batch
    cache: DynamicCache
    entered: list[Tensor]  # layer -> (trial, n_kept, d_model); behind the last layer, what left it
    tuples: list[bool]  # whether a block returns a tuple

    @classmethod
    def run(cls, lm: LanguageModel, prompts: Sequence[Sequence[int]], n_kept: int = 1) -> SharedPrompt:
        batch, cache = Batch.of(prompts, lm), DynamicCache()
        with read_blocks(lm, n_kept) as (entered, tuples):
            # Without the output head: most of its rows would be thrown away.
            lm.hf.base_model(**batch.inputs(), **cache_given(lm.hf.base_model, cache), use_cache=True)
        return cls(lm, batch, cache, entered, tuples)

    def suffix(self, n_tokens: int) -> Suffix:
        """The last tokens of the prompts, as what the model hands to its blocks for them."""
        start = self.batch.n_tokens - n_tokens
        layers = [PrefixLayer(layer.keys[..., :start, :], layer.values[..., :start, :]) for layer in self.cache.layers]
        calls: dict[int, dict[str, Any]] = {}

        def note(layer: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
            calls[layer] = given
            return hidden

        with passing_over(self.lm, note, self.tuples):
            seen = cache_given(self.lm.hf.base_model, Cache(layers=layers))
            self.lm.hf.base_model(**self.batch.inputs(start), **seen, use_cache=True)
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

    prompt: SharedPrompt
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
        left: Tensor = output[0] if isinstance(output, tuple) else output
        return left

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
        mask = mask.to(rows.device)
        before, own = mask[..., :start], mask[..., start:]
        apart = torch.full(
            (*mask.shape[:2], n_variants, n, n_variants, n), hidden, dtype=mask.dtype, device=rows.device
        )
        each = torch.arange(n_variants, device=rows.device)
        apart[:, :, each, :, each] = own
        tiled = before.repeat(1, 1, n_variants, 1)
        return torch.cat([tiled, apart.reshape(*mask.shape[:2], n_variants * n, n_variants * n)], dim=-1)

    def through(
        self,
        enter: Callable[[int], Tensor | None],
        around: Callable[[int], AbstractContextManager[None]] = lambda layer: nullcontext(),
    ) -> Tensor:
        """Rows through all blocks: what leaves the last one at the last token of each variant, (trial, variant, d_model).

        enter: layer -> the rows of the variants that start there, if any; asked once more behind the last layer.
        around: what is done to a block while it runs.
        """
        n_layers = self.prompt.lm.n_layers
        rows = self.entered(0)[:, :0]
        for layer in range(n_layers + 1):
            fresh = enter(layer)
            # Blocks of a large model lie on several devices, and what entered one lies where it does.
            rows = rows if fresh is None else torch.cat([rows.to(fresh.device), fresh], dim=1)
            if layer < n_layers and rows.shape[1]:
                with around(layer):
                    rows = self.block(layer, rows)
        return rows[:, self.n_tokens - 1 :: self.n_tokens]
