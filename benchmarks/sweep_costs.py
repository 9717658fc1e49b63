"""What a sweep must compute, counted and timed as bare matrix products.

Counted are the products with the model's weights, two operations a multiply-add. Left out, everywhere alike, are
attention's products of queries, keys and values, norms and softmax: about one part in a hundred at the lengths used here.

The least that any exact method computes: every prompt once, of its last block keys and values alone but for the last token;
for each head its slice of the output projection, what follows the attention in its own block, and one token through every
block above; the output head once for each of these and for the prompt. Rows that meet the same weights are one product.

A looser bound takes every prompt through all blocks, and for each head one token through its own block, attention and all.

What the model's own code takes beyond its products, any engine that runs it takes: a plain pass over as many rows shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fvcore.model.model import LanguageModel


@dataclass(frozen=True)
class Product:
    """`n_rows` rows times a weight (in, out)."""

    weight: Tensor
    n_rows: int

    @property
    def flops(self) -> int:
        return 2 * self.n_rows * self.weight.numel()


def weights_of(module: nn.Module, without: nn.Module | None = None) -> dict[str, Tensor]:
    """The matrices of a module's linear maps by name, each (in, out); not those of a part of it."""
    left_out = set() if without is None else set(without.modules())
    maps = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    return {
        name: part.weight.T if isinstance(part, nn.Linear) else part.weight
        for name, part in maps.items()
        if part not in left_out
    }


def least_products(lm: LanguageModel, lengths: Sequence[int]) -> list[Product]:
    """The products that a sweep over all heads needs, for prompts of these lengths."""
    n_prompts, n_tokens, found = len(lengths), sum(lengths), list[Product]()
    for layer, block in enumerate(lm.blocks):
        above = n_prompts * lm.n_heads * layer  # variants of the heads below, which go through the whole block
        own = n_prompts * lm.n_heads
        seen = n_prompts if layer == lm.n_layers - 1 else n_tokens  # tokens of the prompt that what follows asks for
        for name, weight in weights_of(lm.attention(layer), without=lm.o_proj(layer)).items():
            # Where queries have a weight of their own, the last block needs them at the last token alone.
            found += [Product(weight, seen if name.startswith("q") else n_tokens), Product(weight, above)]
        for weight in weights_of(lm.o_proj(layer)).values():
            # All heads of a layer together are one token's worth.
            found += [Product(weight, seen), Product(weight, above + n_prompts)]
        for weight in weights_of(block, without=lm.attention(layer)).values():
            found += [Product(weight, seen), Product(weight, above + own)]
    (head,) = weights_of(lm.hf.get_output_embeddings()).values()
    found.append(Product(head, n_prompts * (lm.n_layers * lm.n_heads + 1)))
    return _joined(found)


def _joined(products: Sequence[Product]) -> list[Product]:
    """All rows that meet a weight as one product: a weight is read once, and products of many rows are faster."""
    weights = {product.weight.data_ptr(): product.weight for product in products}
    n_rows = dict.fromkeys(weights, 0)
    for product in products:
        n_rows[product.weight.data_ptr()] += product.n_rows
    return [Product(weight, n_rows[at]) for at, weight in weights.items() if n_rows[at]]


def looser_products(lm: LanguageModel, lengths: Sequence[int]) -> list[Product]:
    """The same by the looser bound."""
    n_prompts, n_tokens = len(lengths), sum(lengths)
    layers = [list(weights_of(block).values()) for block in lm.blocks]
    prompts = [Product(weight, n_tokens) for weights in layers for weight in weights]
    variants = [
        Product(weight, n_prompts * lm.n_heads * (layer + 1))
        for layer, weights in enumerate(layers)
        for weight in weights
    ]
    (head,) = weights_of(lm.hf.get_output_embeddings()).values()
    return [*prompts, *variants, Product(head, n_prompts * (lm.n_layers * lm.n_heads + 1))]


def flops_of_token(lm: LanguageModel) -> int:
    """FLOPs of a token in a whole pass, through all blocks and the output head."""
    return _flops_of_row(lm.blocks) + _flops_of_row(lm.hf.get_output_embeddings())


def _flops_of_row(module: nn.Module) -> int:
    return sum(Product(weight, 1).flops for weight in weights_of(module).values())


def plain_pass(lm: LanguageModel, lengths: Sequence[int]) -> tuple[Tensor, int]:
    """Whole prompts (prompt, token) that bring the blocks about as many rows as a sweep does, and the FLOPs of their products."""
    *of_blocks, _ = least_products(lm, lengths)
    of_row, n_tokens = _flops_of_row(lm.blocks), max(lengths)
    n_prompts = max(1, round(sum(product.flops for product in of_blocks) / of_row / n_tokens))
    ids = torch.arange(n_prompts * n_tokens, device=lm.device).reshape(n_prompts, n_tokens) % lm.vocab_size
    return ids, ids.numel() * of_row


@torch.inference_mode()
def seconds(products: Sequence[Product], n_times: int) -> list[float]:
    """How long the list takes, one product after the other, into memory that is there already."""
    sample = products[0].weight
    given, found = dict[int, int](), dict[int, int]()
    for product in products:
        n_in, n_out = product.weight.shape
        given[n_in] = max(given.get(n_in, 0), product.n_rows)
        found[n_out] = max(found.get(n_out, 0), product.n_rows)
    inputs = {width: torch.randn(n_rows, width, device=sample.device).to(sample) for width, n_rows in given.items()}
    outputs = {width: sample.new_zeros(n_rows, width) for width, n_rows in found.items()}

    def run() -> None:
        for product in products:
            n_in, n_out = product.weight.shape
            torch.mm(inputs[n_in][: product.n_rows], product.weight, out=outputs[n_out][: product.n_rows])

    return _seconds_of(run, n_times, sample.device)


@torch.inference_mode()
def seconds_of_pass(lm: LanguageModel, ids: Tensor, n_times: int) -> list[float]:
    """How long the model's own pass over ids (prompt, token) takes, without its output head."""
    return _seconds_of(lambda: lm.hf.base_model(input_ids=ids, use_cache=False), n_times, ids.device)


def _seconds_of(run: Callable[[], Any], n_times: int, device: torch.device) -> list[float]:
    """Warm."""
    taken = []
    for _ in range(1 + n_times):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[1:]
