"""Faults of station 5, the function vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
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
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.selftest.bed import Bed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, candidate_fault, fault, observed, varied
from pytest_fvparity.selftest.copies import bed_on, changed

KEY = "fv_vector"

BIASED = ("gpt2", "gpt_neox")
UNBIASED = ("llama", "gptj", "qwen3")

Heads = Sequence[Sequence[int]]
VectorOf = Callable[[LanguageModel, Tensor, Heads], Tensor]


@contextmanager
def with_vector(bed: Bed, vector_of: VectorOf) -> Iterator[Implementation]:
    """A candidate that sums its heads by `vector_of`: model, means (layer, head, slot, d_head), heads -> (d_model,)."""
    with patch.object(pipeline, "function_vector", vector_of):
        yield bed.candidate()


def bias_of(lm: LanguageModel, layer: int) -> Tensor:
    bias: Any = lm.o_proj(layer).bias
    assert isinstance(bias, Tensor)
    return bias


# ---------------------------------------------------------------- the projection's bias


@candidate_fault(
    "F53",
    "function vector without the projection's bias",
    "no head's term holds a bias",
    KEY,
    "off by the sum of the selected heads' biases",
    families=BIASED,
)
@contextmanager
def without_bias(bed: Bed) -> Iterator[Implementation]:
    no_bias = partial(head_term, bias="none")
    with patch.object(pipeline, "head_term", no_bias), with_vector(bed, partial(function_vector, bias="none")) as it:
        yield it


@candidate_fault(
    "F53-per-layer",
    "projection bias once per layer",
    "terms without bias are summed, then each layer's bias is added once",
    KEY,
    "off by the biases of the layers with several top heads",
    families=BIASED,
)
def bias_once_per_layer(bed: Bed) -> AbstractContextManager[Implementation]:
    def vector_of(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
        layers = {layer for layer, _ in heads}
        return function_vector(lm, means, heads, bias="none") + sum(bias_of(lm, layer) for layer in layers)

    return with_vector(bed, vector_of)


@candidate_fault(
    "F53-once",
    "projection bias once in total",
    "terms without bias are summed, then the last head's bias is added",
    KEY,
    "off by the biases of all top heads but one",
    families=BIASED,
)
def bias_once(bed: Bed) -> AbstractContextManager[Implementation]:
    def vector_of(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
        return function_vector(lm, means, heads, bias="none") + bias_of(lm, heads[-1][0])

    return with_vector(bed, vector_of)


def grouped_by_layer(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    """All of a layer's top heads go through its projection together."""
    total = torch.zeros(lm.d_model)
    for layer in sorted({layer for layer, _ in heads}):
        x = torch.zeros(lm.n_heads, lm.d_head)
        for head in (head for at, head in heads if at == layer):
            x[head] = means[layer, head, -1]
        total += lm.o_proj(layer)(x.reshape(1, 1, -1)).reshape(-1)
    return total


@candidate_fault(
    "F54",
    "heads grouped per layer before projecting",
    "one projection a layer, of all its top heads together",
    KEY,
    "off by the biases of the layers with several top heads",
    families=BIASED,
)
def grouped(bed: Bed) -> AbstractContextManager[Implementation]:
    return with_vector(bed, grouped_by_layer)


@fault(
    "F54-no-bias",
    "heads grouped per layer before projecting, without a bias",
    "one projection a layer, of all its top heads together",
    Outcome.PASSES,
    signature="a legal variation, up to 1e-6",
    families=UNBIASED,
)
def grouped_without_bias(bed: Bed) -> Observed:
    with with_vector(bed, grouped_by_layer) as candidate:
        return varied(bed.judge(candidate))


# ---------------------------------------------------------------- how the terms are summed


def summed_in_model_dtype(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
    total = torch.zeros(lm.d_model, dtype=lm.hf.dtype)
    for layer, head in heads:
        total += head_term(lm, layer, head, means[layer, head, -1])
    return total


def in_half_precision(bed: Bed, dtype: torch.dtype) -> Observed:
    # Each head is one rounding more, so all of them are summed.
    half = bed_on(bed, changed(bed.lm, lambda hf: hf.to(dtype)), n_top_heads=bed.lm.n_layers * bed.lm.n_heads)
    with with_vector(half, summed_in_model_dtype) as candidate:
        return observed(half.judge(candidate))


@fault(
    "F55",
    "sum cast to bf16 inside the loop",
    "golden and candidate in bf16; the candidate's accumulator is bf16 too",
    Outcome.FAILS,
    KEY,
    "off by one or two units in the last place",
)
def cast_in_the_loop(bed: Bed) -> Observed:
    return in_half_precision(bed, torch.bfloat16)


@fault(
    "F55-fp16",
    "sum cast to fp16 inside the loop",
    "golden and candidate in fp16; the candidate's accumulator is fp16 too",
    Outcome.FAILS,
    KEY,
    "off by one or two units in the last place",
)
def cast_in_the_loop_fp16(bed: Bed) -> Observed:
    return in_half_precision(bed, torch.float16)


@candidate_fault(
    "F55-fp32",
    "terms cast to bf16 before they are summed, in an fp32 run",
    "golden in fp32; the candidate rounds each term to bf16",
    KEY,
    "off by about 1e-2",
)
def terms_rounded(bed: Bed) -> AbstractContextManager[Implementation]:
    def vector_of(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
        terms = [head_term(lm, layer, head, means[layer, head, -1]).bfloat16() for layer, head in heads]
        return torch.stack(terms).float().sum(dim=0)

    return with_vector(bed, vector_of)


@candidate_fault(
    "F59",
    "average instead of sum over heads",
    "the sum is divided by the number of heads",
    KEY,
    "a factor of k; the cosine is 1",
)
def averaged_over_heads(bed: Bed) -> AbstractContextManager[Implementation]:
    return with_vector(bed, lambda lm, means, heads: function_vector(lm, means, heads) / len(heads))


# ---------------------------------------------------------------- what is projected


@candidate_fault(
    "F56",
    "projection skipped",
    "the raw head slices of all layers are added up, each at its head's place, and taken for the vector",
    KEY,
    "another norm and direction; another length where heads x width is not d_model",
)
def head_space_vector(bed: Bed) -> AbstractContextManager[Implementation]:
    def vector_of(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
        by_layer = torch.zeros(lm.n_layers, lm.n_heads, lm.d_head)
        for layer, head in heads:
            by_layer[layer, head] = means[layer, head, -1]
        return by_layer.sum(dim=0).flatten()

    return with_vector(bed, vector_of)


def taken_from_slot(bed: Bed, slot: int) -> Implementation:
    """A candidate that takes the top heads' means at another slot than the last."""

    def fv_vector(self: Pipeline, mean_activations: Artifact, top_heads: Artifact) -> Artifact:
        means = tensor_leaf(mean_activations, "mean_activations")
        return Pipeline.fv_vector(self, {"mean_activations": means[:, :, [slot]]}, top_heads)

    return bed.candidate(fv_vector=fv_vector)


@candidate_fault("F57", "last slot but one taken", "means at slot -2", KEY, "another vector")
def last_slot_but_one(bed: Bed) -> Implementation:
    return taken_from_slot(bed, -2)


@candidate_fault("F57-query", "the query's slot taken", "means at query_demonstration_token", KEY, "another vector")
def query_slot(bed: Bed) -> Implementation:
    return taken_from_slot(bed, bed.candidate().dummy_labels.index("query_demonstration_token"))


@candidate_fault(
    "F57-dummy",
    "slot number of another dummy prompt",
    "means at the slot that is last in a dummy prompt with one demonstration less",
    KEY,
    "another vector",
)
def slot_of_another_dummy(bed: Bed) -> Implementation:
    own, meta = bed.candidate(), bed.trials.meta
    shorter = dummy_labels(bed.lm.tokenizer, own.template, meta.n_shots - 1, meta.model_prepend_bos)
    return taken_from_slot(bed, len(shorter) - 1)


@contextmanager
def with_term(bed: Bed, term_of: Callable[[LanguageModel, int, int, Tensor], Tensor]) -> Iterator[Implementation]:
    """A candidate whose heads write `term_of`: model, layer, head, activation (d_head,) -> (d_model,)."""

    def vector_of(lm: LanguageModel, means: Tensor, heads: Heads) -> Tensor:
        terms = [term_of(lm, layer, head, means[layer, head, -1]) for layer, head in heads]
        return torch.stack(terms).sum(dim=0)

    with patch.object(pipeline, "head_term", term_of), with_vector(bed, vector_of) as candidate:
        yield candidate


@candidate_fault(
    "F58",
    "head slice off by one head",
    "heads are taken as numbered from 1",
    KEY,
    "another vector",
)
def slice_off_by_one(bed: Bed) -> AbstractContextManager[Implementation]:
    def term_of(lm: LanguageModel, layer: int, head: int, activation: Tensor) -> Tensor:
        x = torch.zeros(lm.n_heads, lm.d_head)
        x[head - 1] = activation  # head 0 becomes the last one
        term: Tensor = lm.o_proj(layer)(x.reshape(1, 1, -1))
        return term.reshape(-1)

    return with_term(bed, term_of)


@candidate_fault(
    "F58-width",
    "slice width taken as hidden size / number of heads",
    "the slice is d_model // n_heads wide",
    KEY,
    "the mean of a head does not fit into its slice",
    Outcome.ERRORS,
    families=("qwen3",),  # everywhere else heads x width is d_model and the mistake is none
)
def width_from_hidden_size(bed: Bed) -> AbstractContextManager[Implementation]:
    def term_of(lm: LanguageModel, layer: int, head: int, activation: Tensor) -> Tensor:
        width = lm.d_model // lm.n_heads
        x = torch.zeros(lm.n_heads * lm.d_head)
        x[head * width : (head + 1) * width] = activation
        term: Tensor = lm.o_proj(layer)(x.reshape(1, 1, -1))
        return term.reshape(-1)

    return with_term(bed, term_of)
