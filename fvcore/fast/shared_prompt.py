"""A prompt that runs once, and variants of its last tokens as further rows of the residual stream.

A change at token t alters nothing before t, and nothing below the layer where it is made. So the prompt runs once. A
*variant* is the few tokens from t on, from its own layer up: in front of that layer's block, or behind its attention where
only heads are replaced. All variants of all trials run together: each row sees the prompt before t and its own variant's
rows, at the same positions. The model's own code does everything else: what a block needs beside the residual stream
(masks, positions) is what the model hands to it for those tokens. Of the last block nothing is needed but keys and values
before the last token.

Either the prompt runs along (`SharedPrompt.along`): its rows and those of the variants go through each block together, so
that every weight is read once. Or it runs first (`SharedPrompt.run`): its keys and values, what entered each block and what
went through its attention are kept for as many variants as follow, in as many passes.

Residual rows are (trial, row, d_model): those of the prompt where it runs along, then the tokens of each variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
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
    cache: DynamicCache | None  # none where the prompts run along
    entered: list[Tensor]  # layer -> (trial, n_kept, d_model); behind the last layer, what left it at the last token
    attention: dict[int, Attention]  # of the layers that have heads
    calls: dict[int, dict[int, dict[str, Any]]] = field(
        default_factory=dict
    )  # how many tokens -> what each block is handed

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
            entered.append(prompt.suffix(1).last_block_given(entered[-1][:, -1:], attention[last]))
        return prompt

    @classmethod
    def along(cls, lm: LanguageModel, prompts: Sequence[Sequence[int]], n_variants: int, n_tokens: int = 1) -> Suffix:
        """The last tokens of prompts that run together with their variants."""
        keep_freed_memory()
        prompt = cls(lm, Batch.of(prompts, lm), None, [], {})
        return Suffix(prompt, n_tokens, n_variants, *prompt._handed(0))

    def suffix(self, n_tokens: int, n_variants: int = 1) -> Suffix:
        """The last tokens of the prompts, as what the model hands to its blocks for them, as often as variants run together.

        Whatever suffix was made before ends: it wrote where this one will.
        """
        start = self.batch.n_tokens - n_tokens
        assert self.cache is not None
        for layer in self.cache.layers:
            layer.begin(start)
        if n_tokens not in self.calls:
            self.calls[n_tokens] = self._handed(start)[0]
        return Suffix(self, n_tokens, n_variants, self.calls[n_tokens], self.entered[0][:, :0])

    def _handed(self, start: int) -> tuple[dict[int, dict[str, Any]], Tensor]:
        """What the model hands to each block for the tokens from `start` on, behind what the cache holds of those before.

        And what enters the first block.
        """
        calls, entered = dict[int, dict[str, Any]](), list[Tensor]()

        def note(layer: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
            calls[layer] = given
            entered.append(hidden)
            return hidden

        base, cache = self.lm.hf.base_model, self.cache
        with passing_over(self.lm, note):
            seen = {"use_cache": False} if cache is None else {**cache_given(base, cache), "use_cache": True}
            base(**self.batch.inputs(start), **seen)
        return calls, entered[0]

    def logits(self, rows: Tensor) -> Tensor:
        """What the model makes of residual rows (trial, row, d_model) behind its last block: (trial, row, vocab)."""

        def instead(layer: int, hidden: Tensor, _: dict[str, Any]) -> Tensor:
            return rows if layer == self.lm.n_layers - 1 else hidden

        with passing_over(self.lm, instead):
            found: Tensor = self.lm.hf(input_ids=self.batch.ids[:, -1:], use_cache=False).logits
        return found.reshape(*rows.shape[:2], -1)


Enter: TypeAlias = "Callable[[int, Tensor], Tensor | None]"
"""Layer and what enters it (trial, token, d_model) -> rows (trial, variant * token, d_model) of the variants that start there."""

Behind: TypeAlias = "Mapping[int, tuple[int, Callable[[Tensor], Tensor]]]"
"""Layer -> how many rows start behind its attention, and what of theirs enters its projection, (trial, row, n_heads * d_head),
made of what enters it of the prompts, (trial, token, n_heads * d_head)."""


@dataclass(frozen=True)
class Suffix:
    """The last tokens of a prompt and what each block is handed for them: variants are made of these."""

    prompt: SharedPrompt
    n_tokens: int
    n_variants: int
    calls: dict[int, dict[str, Any]]
    first: Tensor  # (trial, token, d_model): what enters the first block of prompts that run along
    made: dict[int, Any] = field(default_factory=dict)

    @property
    def n_along(self) -> int:
        """Rows in front of the variants'."""
        return self.first.shape[1]

    @property
    def n_handed(self) -> int:
        """For how many tokens the model handed something."""
        return self.n_along or self.n_tokens

    @property
    def own(self) -> slice:
        """The prompts' last tokens among rows that run along."""
        return slice(self.n_along - self.n_tokens, self.n_along)

    def entered(self, layer: int, rows: Tensor) -> Tensor:
        """What enters a layer at the prompts' last tokens, (trial, token, d_model)."""
        return rows[:, self.own] if self.n_along else self.prompt.entered[layer][:, -self.n_tokens :]

    def block(self, layer: int, rows: Tensor) -> Tensor:
        """One block on the rows of some variants."""
        given = {name: self._of_rows(name, value, rows.shape[1]) for name, value in self.calls[layer].items()}
        output = self.prompt.lm.blocks[layer](rows, **given)
        left: Tensor = output[0] if isinstance(output, tuple) else output
        return left

    def _behind_attention(self, layer: int, rows: Tensor, entered: Tensor, behind: Behind) -> Tensor:
        """One block on the rows of some variants, and of those that start behind its attention."""
        lm, kept, (n_rows, make) = self.prompt.lm, self.prompt.attention.get(layer), behind[layer]

        def give(seen: Attention | None) -> Tensor:
            through = kept if seen is None else seen
            assert through is not None
            return self._projected(layer, through, make(through.heads[:, -self.n_tokens :]))

        fresh = entered.repeat(1, n_rows // self.n_tokens, 1)
        n_more, at = (None, self.own) if kept is None else (kept.n_more, None)
        with attention_given(lm, layer, n_rows, give, n_more, at):
            return self.block(layer, self._joined(rows, fresh))

    def _projected(self, layer: int, through: Attention, heads: Tensor) -> Tensor:
        """What leaves the attention where other heads (trial, row, n_heads * d_head) enter its projection."""
        found: Tensor = self.prompt.lm.o_proj(layer)(heads)
        added = through.added[:, -self.n_tokens :]
        return found + added.repeat(1, heads.shape[1] // added.shape[1], 1)

    def _last_block(self, rows: Tensor, entered: Tensor, behind: Behind) -> Tensor:
        """The last block at the last token of each variant: of the tokens before it only keys and values matter."""
        last, through = self.prompt.lm.n_layers - 1, self.prompt.attention.get(self.prompt.lm.n_layers - 1)
        tail = rows[:, max(self.own.start, 0) :] if self.n_along else rows
        ends = slice(self.n_tokens - 1, None, self.n_tokens)
        given, into = [], [tail[:, ends]]
        if rows.shape[1]:
            with read_attention(self.prompt.lm, tail.shape[1], last) as attention:
                self.block(last, rows)
            given.append(attention[last].left[:, ends])
            through = through or attention[last].at(slice(self.n_tokens))
        assert through is not None
        if last in behind:
            n_rows, make = behind[last]
            heads = make(through.heads[:, -self.n_tokens :])[:, ends]
            given.append(self._projected(last, through.at(slice(-1, None)), heads))
            into.append(entered[:, -1:].expand(-1, n_rows // self.n_tokens, -1))
        left = torch.cat(given, dim=1)
        return self.last_block_given(torch.cat(into, dim=1), replace(through, left=left))

    def last_block_given(self, rows: Tensor, through: Attention) -> Tensor:
        """The last block on rows (trial, row, d_model), each a variant of one token, of which is known what its attention leaves."""
        last, n_rows = self.prompt.lm.n_layers - 1, rows.shape[1]
        handed = {name: self._at_end(name, value) for name, value in self.calls[last].items()}
        end = Suffix(self.prompt, 1, self.n_variants, {last: handed}, rows[:, :0])
        with attention_given(self.prompt.lm, last, n_rows, lambda _: through.left[:, -n_rows:], through.n_more):
            return end.block(last, rows)

    def _at_end(self, name: str, value: Any) -> Any:
        """What a block is handed, for the last token alone."""
        if isinstance(value, tuple | list):
            return type(value)(self._at_end("", item) for item in value)
        if name == "attention_mask" and isinstance(value, Tensor):
            return value[..., -1:, :]
        return value[:, -1:] if self._of_tokens(value) else value

    def _of_tokens(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == self.n_handed

    def _of_rows(self, name: str, value: Any, n_rows: int) -> Any:
        """What a block is handed for the tokens of a prompt, for the same tokens of several variants."""
        if isinstance(value, tuple | list):
            return type(value)(self._of_rows("", item, n_rows) for item in value)
        if name != "attention_mask" and not self._of_tokens(value):
            return value
        # Layers share what they are handed: it is made once, for as many rows as there will be.
        most = self.made.get(id(value))
        if most is None or most.shape[-2 if name == "attention_mask" else 1] < n_rows:
            n_variants = max(self.n_variants, (n_rows - self.n_along) // self.n_tokens)
            tiled = self._own_rows(value, n_variants) if name == "attention_mask" else self._tiled(value, n_variants)
            most = self.made[id(value)] = tiled
        if name != "attention_mask":
            return most[:, :n_rows]
        n_before = 0 if self.n_along else self.prompt.batch.n_tokens - self.n_tokens
        return most[..., :n_rows, : n_before + n_rows]

    def _tiled(self, value: Tensor, n_variants: int) -> Tensor:
        """What is handed for each token, for those that run along and for each variant's."""
        each = value[:, -self.n_tokens :].repeat(1, n_variants, *[1] * (value.ndim - 2))
        return torch.cat([value, each], dim=1) if self.n_along else each

    def _own_rows(self, mask: Tensor | None, n_variants: int) -> Tensor:
        """Every row sees what its token sees of the prompt, and of the rows those of its own variant."""
        n, n_all, device = self.n_tokens, self.prompt.batch.n_tokens, self.prompt.lm.device
        if mask is None:  # the kernel's own causal order
            mask = torch.ones(1, 1, self.n_handed, n_all, dtype=torch.bool, device=device).tril(n_all - self.n_handed)
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        before, own = mask[..., -n:, : n_all - n], mask[..., -n:, n_all - n :]
        apart = mask.new_full((*mask.shape[:2], n_variants, n, n_variants, n), hidden)
        each = torch.arange(n_variants, device=mask.device)
        apart[:, :, each, :, each] = own
        found = [before.repeat(1, 1, n_variants, 1), apart.reshape(*mask.shape[:2], n_variants * n, n_variants * n)]
        if not self.n_along:
            return torch.cat(found, dim=-1)
        # What stands in place of the prompt's last tokens sees none of these, nor is it seen by the prompt.
        unseen = mask.new_full((*mask.shape[:2], n_variants * n, n), hidden)
        variants = torch.cat([found[0], unseen, found[1]], dim=-1)
        return torch.cat([nn.functional.pad(mask, (0, n_variants * n), value=hidden), variants], dim=-2)

    def through(self, enter: Enter = lambda layer, entered: None, behind: Behind = MappingProxyType({})) -> Tensor:
        """Rows through all blocks: what leaves the last one at the last token, (trial, row, d_model).

        Of the prompts first, where they run along, and of each variant.

        enter: the variants that start in front of a block; of one token, asked once more behind the last layer
        behind: those that start behind its attention; they stand behind the others
        """
        rows, last, n = self.first, self.prompt.lm.n_layers - 1, self.n_tokens
        for layer in range(last):
            entered = self.entered(layer, rows)
            rows = self._joined(rows, enter(layer, entered))
            if layer in behind:
                rows = self._behind_attention(layer, rows, entered, behind)
            elif rows.shape[1]:
                rows = self.block(layer, rows)
        entered = self.entered(last, rows)
        rows = self._joined(rows, enter(last, entered))
        if last in self.prompt.lm.head_layers and (rows.shape[1] or last in behind):
            rows = self._last_block(rows, entered, behind)
        elif rows.shape[1]:
            rows = self.block(last, rows)[:, max(self.n_handed - 1, 0) :: n]
        left = rows[:, :1] if self.n_along else self.prompt.entered[-1][:, -1:]
        return self._joined(rows, enter(last + 1, left) if n == 1 else None)

    @staticmethod
    def _joined(rows: Tensor, fresh: Tensor | None) -> Tensor:
        # Blocks of a large model lie on several devices, and what entered one lies where it does.
        return rows if fresh is None else torch.cat([rows.to(fresh.device), fresh], dim=1)
