"""Faults of station 5, the function vector."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast
from unittest.mock import patch

import torch
from torch import Tensor

from fvcore import pipeline, vectors
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

    def plant(rig: Rig) -> Observed:
        with patch.object(vectors, "head_term", term_of):
            return patching(pipeline, "head_term", term_of)(rig)

    return plant


def bias_of(lm: LanguageModel, layer: int) -> Tensor:
    return cast("Tensor", lm.o_proj(layer).bias)


def without_bias(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    return function_vector(lm, means, heads) - sum(bias_of(lm, layer) for layer, _ in heads)


def grouped_by_layer(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    """All of a layer's top heads go through its projection together."""
    by_layer = {layer: {head: means[layer, head, -1] for at, head in heads if at == layer} for layer, _ in heads}
    return torch.stack([projected(lm, layer, by_layer[layer]) for layer in sorted(by_layer)]).sum(dim=0)


def projected(lm: LanguageModel, layer: int, heads: Mapping[int, Tensor]) -> Tensor:
    x = torch.zeros(1, 1, lm.n_heads, lm.d_head)
    for head, activation in heads.items():
        x[0, 0, head] = activation
    return cast("Tensor", lm.o_proj(layer)(x.flatten(2))).flatten()


def summed_in_model_dtype(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    total = torch.zeros(lm.d_model, dtype=lm.hf.dtype)
    for layer, head in heads:
        total += head_term(lm, layer, head, means[layer, head, -1])
    return total


def in_half_precision(dtype: torch.dtype) -> Plant:
    def half(rig: Rig) -> Rig:  # each head is one rounding more, so all of them are summed
        return rig.in_dtype(dtype, n_top_heads=rig.lm.n_layers * rig.lm.n_heads)

    return on(half, with_vector(summed_in_model_dtype))


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


def width_from_hidden_size(lm: LanguageModel, layer: int, head: int, activation: Tensor) -> Tensor:
    width = lm.d_model // lm.n_heads
    x = torch.zeros(1, 1, lm.n_heads * lm.d_head)
    x[0, 0, head * width : (head + 1) * width] = activation
    return cast("Tensor", lm.o_proj(layer)(x)).flatten()


PLANTS: dict[str, Plants] = {
    "F53": with_term(lambda lm, layer, head, activation: head_term(lm, layer, head, activation) - bias_of(lm, layer)),
    "F53-per-layer": with_vector(
        lambda lm, means, heads: without_bias(lm, means, heads) + sum(bias_of(lm, at) for at in {at for at, _ in heads})
    ),
    "F53-once": with_vector(lambda lm, means, heads: without_bias(lm, means, heads) + bias_of(lm, heads[-1][0])),
    "F54": with_vector(grouped_by_layer),
    "F54-no-bias": with_vector(grouped_by_layer, varied),
    "F55": in_half_precision(torch.bfloat16),
    "F55-fp16": in_half_precision(torch.float16),
    "F55-fp32": patching(vectors, "head_term", lambda *of: head_term(*of).bfloat16()),  # of the vector's sum alone
    "F55-terms": with_term(lambda *of: head_term(*of).half().float()),
    "F56": with_vector(in_head_space),
    "F57": from_slot(lambda own: -2),
    "F57-query": from_slot(lambda own: own.dummy_labels.index("query_demonstration_token")),
    "F57-dummy": from_slot(last_slot_of_a_shorter_dummy),
    "F58": with_term(lambda lm, layer, head, activation: projected(lm, layer, {head - 1: activation})),  # 0 is the last
    "F58-width": with_term(width_from_hidden_size),
    "F59": with_vector(lambda lm, means, heads: function_vector(lm, means, heads) / len(heads)),
}
