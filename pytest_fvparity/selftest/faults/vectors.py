"""Faults of station 5, the function vector."""

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fvcore import pipeline
from fvcore.artifacts import Artifact, tensor_leaf
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline
from fvcore.slots import dummy_labels
from fvcore.vectors import function_vector, head_term
from pytest_fvparity.selftest.catalogue import Look, Observed, Plant, Plants, observed, on, patching, replacing, varied
from pytest_fvparity.selftest.rig import Rig

Heads = Sequence[Sequence[int]]
VectorOf = Callable[[LanguageModel, Tensor, Heads], Tensor]
"""Model, means (layer, head, slot, d_head) and heads -> (d_model,)."""

TermOf = Callable[[LanguageModel, int, int, Tensor], Tensor]
"""Model, layer, head and its activation (d_head,) -> (d_model,)."""


def with_vector(vector_of: VectorOf, look: Look = observed) -> Plant:
    return patching(pipeline, "function_vector", vector_of, look)


def with_term(term_of: TermOf) -> Plant:
    """A candidate whose heads write `term_of`, and whose vector is their sum."""

    def vector_of(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
        return torch.stack([term_of(lm, layer, head, means[layer, head, -1]) for layer, head in heads]).sum(dim=0)

    def plant(rig: Rig) -> Observed:
        with patch.object(pipeline, "head_term", term_of):
            return with_vector(vector_of)(rig)

    return plant


def bias_of(lm: LanguageModel, layer: int) -> Tensor:
    bias: Any = lm.o_proj(layer).bias
    assert isinstance(bias, Tensor)
    return bias


def without_bias(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    return function_vector(lm, means, heads) - sum(bias_of(lm, layer) for layer, _ in heads)


def bias_once_per_layer(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    return without_bias(lm, means, heads) + sum(bias_of(lm, layer) for layer in {layer for layer, _ in heads})


def grouped_by_layer(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    """All of a layer's top heads go through its projection together."""
    total = torch.zeros(lm.d_model)
    for layer in sorted({layer for layer, _ in heads}):
        x = torch.zeros(lm.n_heads, lm.d_head)
        for head in (head for at, head in heads if at == layer):
            x[head] = means[layer, head, -1]
        total += projected(lm, layer, x)
    return total


def projected(lm: LanguageModel, layer: int, heads: Tensor) -> Tensor:
    term: Tensor = lm.o_proj(layer)(heads.reshape(1, 1, -1))
    return term.reshape(-1)


def summed_in_model_dtype(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    total = torch.zeros(lm.d_model, dtype=lm.hf.dtype)
    for layer, head in heads:
        total += head_term(lm, layer, head, means[layer, head, -1])
    return total


def in_half_precision(dtype: torch.dtype) -> Plant:
    def half(rig: Rig) -> Rig:  # each head is one rounding more, so all of them are summed
        return rig.in_dtype(dtype, n_top_heads=rig.lm.n_layers * rig.lm.n_heads)

    return on(half, with_vector(summed_in_model_dtype))


def terms_rounded(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    terms = [head_term(lm, layer, head, means[layer, head, -1]).bfloat16() for layer, head in heads]
    return torch.stack(terms).float().sum(dim=0)


def in_head_space(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    by_layer = torch.zeros(lm.n_layers, lm.n_heads, lm.d_head)
    for layer, head in heads:
        by_layer[layer, head] = means[layer, head, -1]
    return by_layer.sum(dim=0).flatten()


def from_slot(slot_of: Callable[[Pipeline], int]) -> Plant:
    """A candidate that takes the top heads' means at another slot than the last."""

    def fv_vector(self: Pipeline, mean_activations: Artifact, top_heads: Artifact) -> Artifact:
        means = tensor_leaf(mean_activations, "mean_activations")[:, :, [slot_of(self)]]
        return Pipeline.fv_vector(self, {"mean_activations": means}, top_heads)

    return replacing(fv_vector=fv_vector)


def last_slot_of_a_shorter_dummy(own: Pipeline) -> int:
    meta = own.trials.meta
    return len(dummy_labels(own.lm.tokenizer, own.template, meta.n_shots - 1, meta.model_prepend_bos)) - 1


def slice_off_by_one(lm: LanguageModel, layer: int, head: int, activation: Tensor) -> Tensor:
    x = torch.zeros(lm.n_heads, lm.d_head)
    x[head - 1] = activation  # head 0 becomes the last one
    return projected(lm, layer, x)


def width_from_hidden_size(lm: LanguageModel, layer: int, head: int, activation: Tensor) -> Tensor:
    width = lm.d_model // lm.n_heads
    x = torch.zeros(lm.n_heads * lm.d_head)
    x[head * width : (head + 1) * width] = activation
    return projected(lm, layer, x)


PLANTS: dict[str, Plants] = {
    "F53": with_term(lambda lm, layer, head, activation: head_term(lm, layer, head, activation) - bias_of(lm, layer)),
    "F53-per-layer": with_vector(bias_once_per_layer),
    "F53-once": with_vector(lambda lm, means, heads: without_bias(lm, means, heads) + bias_of(lm, heads[-1][0])),
    "F54": with_vector(grouped_by_layer),
    "F54-no-bias": with_vector(grouped_by_layer, varied),
    "F55": in_half_precision(torch.bfloat16),
    "F55-fp16": in_half_precision(torch.float16),
    "F55-fp32": with_vector(terms_rounded),
    "F56": with_vector(in_head_space),
    "F57": from_slot(lambda own: -2),
    "F57-query": from_slot(lambda own: own.dummy_labels.index("query_demonstration_token")),
    "F57-dummy": from_slot(last_slot_of_a_shorter_dummy),
    "F58": with_term(slice_off_by_one),
    "F58-width": with_term(width_from_hidden_size),
    "F59": with_vector(lambda lm, means, heads: function_vector(lm, means, heads) / len(heads)),
}
