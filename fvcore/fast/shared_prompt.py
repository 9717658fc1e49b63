"""A prompt that runs once, and variants of its last tokens as further rows of the residual stream.

A change at token t alters nothing before t, and nothing below the layer where it is made. So the prompt runs once; its
keys and values, what entered each block and what went through its attention are kept. A *variant* is then the few tokens
from t on, from its own layer up: in front of that layer's block, or behind its attention where only heads are replaced.
All variants of all trials run together: each row sees the prompt before t and its own variant's rows, at the same
positions. The model's own code does everything else: what a block needs beside the residual stream (masks, positions) is
what the model hands to it for those tokens. Of the last block nothing is needed but keys and values before the last token.

Residual rows are (trial, variant * token, d_model): the rows of one variant stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from fvcore.model.hooks import Attention, attention_given, passing_over, read_attention, read_blocks
from fvcore.model.memory import keep_freed_memory
from fvcore.model.model import LanguageModel
from fvcore.model.prefix import PromptLayer, cache_given


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
    """Prompts that ran once: what went through every block at their last `n_kept` tokens, and all keys and values."""

    lm: LanguageModel
    batch: Batch
    cache: DynamicCache
    entered: list[Tensor]  # layer -> (trial, n_kept, d_model); behind the last layer, what left it at the last token
    attention: dict[int, Attention]  # of the layers that have heads
    calls: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)  # how many tokens -> what each block is handed

    @classmethod
    def run(cls, lm: LanguageModel, prompts: Sequence[Sequence[int]], n_kept: int = 1) -> SharedPrompt:
        keep_freed_memory()
        batch, cache, last = Batch.of(prompts, lm), DynamicCache(), lm.n_layers - 1
        cache.layer_class_to_replicate = PromptLayer
        with read_blocks(lm, n_kept) as (entered, _), read_attention(lm, n_kept, last) as attention:
            # Without the output head: most of its rows would be thrown away.
            lm.hf.base_model(**batch.inputs(), **cache_given(lm.hf.base_model, cache), use_cache=True)
        prompt = cls(lm, batch, cache, entered, attention)
        if len(entered) == lm.n_layers:  # the pass ended in the last block
            entered.append(prompt.suffix(1).behind_attention(last, attention[last].left[:, -1:]))
        return prompt

    def suffix(self, n_tokens: int, n_variants: int = 1) -> Suffix:
        """The last tokens of the prompts, as what the model hands to its blocks for them, as often as variants run together.

        Whatever suffix was made before ends: it wrote where this one will.
        """
        start = self.batch.n_tokens - n_tokens
        for layer in self.cache.layers:
            layer.begin(start)
        if n_tokens not in self.calls:
            self.calls[n_tokens] = self._handed(start)
        return Suffix(self, n_tokens, n_variants, self.calls[n_tokens])

    def _handed(self, start: int) -> dict[int, dict[str, Any]]:
        """What the model hands to each block for the tokens from `start` on, behind what the cache holds of those before."""
        calls: dict[int, dict[str, Any]] = {}

        def note(layer: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
            calls[layer] = given
            return hidden

        with passing_over(self.lm, note):
            seen = cache_given(self.lm.hf.base_model, self.cache)
            self.lm.hf.base_model(**self.batch.inputs(start), **seen, use_cache=True)
        return calls

    def logits(self, rows: Tensor) -> Tensor:
        """What the model makes of residual rows (trial, row, d_model) behind its last block: (trial, row, vocab)."""

        def instead(layer: int, hidden: Tensor, _: dict[str, Any]) -> Tensor:
            return rows if layer == self.lm.n_layers - 1 else hidden

        with passing_over(self.lm, instead):
            found: Tensor = self.lm.hf(input_ids=self.batch.ids[:, -1:], use_cache=False).logits
        return found.reshape(*rows.shape[:2], -1)


Start: TypeAlias = "Callable[[int], Tensor | None]"
"""Layer -> the rows (trial, variant * token, width) of the variants that start there, if any."""


@dataclass(frozen=True)
class Suffix:
    """The last tokens of a prompt and what each block is handed for them: variants are made of these."""

    prompt: SharedPrompt
    n_tokens: int
    n_variants: int
    calls: dict[int, dict[str, Any]]
    made: dict[int, Any] = field(default_factory=dict)

    def entered(self, layer: int) -> Tensor:
        """(trial, token, d_model)"""
        return self.prompt.entered[layer][:, -self.n_tokens :]

    def heads(self, layer: int) -> Tensor:
        """(trial, token, n_heads * d_head), as they enter the projection."""
        return self.prompt.attention[layer].heads[:, -self.n_tokens :]

    def projected(self, layer: int, heads: Tensor) -> Tensor:
        """What leaves the attention where other heads (trial, variant * token, n_heads * d_head) enter its projection."""
        found: Tensor = self.prompt.lm.o_proj(layer)(heads)
        n_variants = heads.shape[1] // self.n_tokens
        return found + self.prompt.attention[layer].added[:, -self.n_tokens :].repeat(1, n_variants, 1)

    def block(self, layer: int, rows: Tensor) -> Tensor:
        """One block on the rows of some variants."""
        given = {name: self._of_rows(name, value, rows.shape[1]) for name, value in self.calls[layer].items()}
        output = self.prompt.lm.blocks[layer](rows, **given)
        left: Tensor = output[0] if isinstance(output, tuple) else output
        return left

    def behind_attention(self, layer: int, left: Tensor, rows: Tensor | None = None) -> Tensor:
        """One block on the rows of some variants, and of as many more as their attention is known to have left something.

        left: (trial, variant * token, d_model)     rows: what enters the block for the variants before these
        """
        fresh = self.entered(layer).repeat(1, left.shape[1] // self.n_tokens, 1)
        rows = fresh if rows is None else torch.cat([rows.to(fresh.device), fresh], dim=1)
        return self._block_given(layer, rows, left)

    def _block_given(self, layer: int, rows: Tensor, left: Tensor) -> Tensor:
        with attention_given(self.prompt.lm, layer, left, self.prompt.attention[layer].n_more):
            return self.block(layer, rows)

    def _last_block(self, rows: Tensor, left: Tensor | None) -> Tensor:
        """The last block at the last token of each variant: of the tokens before it only keys and values matter.

        rows: of variants that run through it     left: of those that start behind its attention
        """
        lm, last, ends = self.prompt.lm, self.prompt.lm.n_layers - 1, slice(self.n_tokens - 1, None, self.n_tokens)
        given, entered = [], [rows[:, ends]]
        if rows.shape[1]:
            with read_attention(lm, rows.shape[1], last) as attention:
                self.block(last, rows)
            given.append(attention[last].left[:, ends])
        if left is not None:
            given.append(left[:, ends])
            entered.append(self.entered(last)[:, -1:].expand(-1, given[-1].shape[1], -1))
        at_end = Suffix(self.prompt, 1, self.n_variants, self.prompt.calls[1])
        return at_end._block_given(last, torch.cat(entered, dim=1), torch.cat(given, dim=1))

    def _of_rows(self, name: str, value: Any, n_rows: int) -> Any:
        """What a block is handed for the tokens of a prompt, for the same tokens of several variants."""
        if isinstance(value, tuple | list):
            return type(value)(self._of_rows("", item, n_rows) for item in value)
        if name != "attention_mask" and not (
            isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == self.n_tokens
        ):
            return value
        # Layers share what they are handed: it is made once, for as many rows as there will be.
        most = self.made.get(id(value))
        if most is None or most[1] < n_rows:
            n_variants = max(self.n_variants, n_rows // self.n_tokens)
            tiled = self._own_rows(value, n_variants) if name == "attention_mask" else _repeated(value, n_variants)
            most = self.made[id(value)] = tiled, n_variants * self.n_tokens
        if name != "attention_mask":
            return most[0][:, :n_rows]
        return most[0][..., :n_rows, : self.prompt.batch.n_tokens - self.n_tokens + n_rows]

    def _own_rows(self, mask: Tensor | None, n_variants: int) -> Tensor:
        """Every row sees what its token sees of the prompt, and of the rows those of its own variant."""
        n, start, device = self.n_tokens, self.prompt.batch.n_tokens - self.n_tokens, self.prompt.lm.device
        if mask is None:  # the kernel's own causal order
            mask = torch.ones(1, 1, n, start + n, dtype=torch.bool, device=device).tril(start)
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        before, own = mask[..., :start], mask[..., start:]
        apart = mask.new_full((*mask.shape[:2], n_variants, n, n_variants, n), hidden)
        each = torch.arange(n_variants, device=mask.device)
        apart[:, :, each, :, each] = own
        tiled = before.repeat(1, 1, n_variants, 1)
        return torch.cat([tiled, apart.reshape(*mask.shape[:2], n_variants * n, n_variants * n)], dim=-1)

    def through(self, enter: Start = lambda layer: None, behind: Start = lambda layer: None) -> Tensor:
        """Rows through all blocks: what leaves the last one at the last token of each variant, (trial, variant, d_model).

        enter: the variants that start in front of a block; of one token, asked once more behind the last layer
        behind: those that start behind its attention, as what left that; they stand behind the others
        """
        rows, last = self.entered(0)[:, :0], self.prompt.lm.n_layers - 1
        for layer in range(last + 1):
            rows = self._joined(rows, enter(layer))
            left = behind(layer)
            if layer == last and self.n_tokens > 1 and last in self.prompt.attention:
                return self._last_block(rows, left)
            if left is not None:
                rows = self.behind_attention(layer, left, rows)
            elif rows.shape[1]:
                rows = self.block(layer, rows)
        return self._joined(rows, enter(last + 1))[:, self.n_tokens - 1 :: self.n_tokens]

    @staticmethod
    def _joined(rows: Tensor, fresh: Tensor | None) -> Tensor:
        # Blocks of a large model lie on several devices, and what entered one lies where it does.
        return rows if fresh is None else torch.cat([rows.to(fresh.device), fresh], dim=1)


def _repeated(value: Tensor, n_variants: int) -> Tensor:
    return value.repeat(1, n_variants, *[1] * (value.ndim - 2))
