"""Faults of station 6, injection."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fvcore import injection, pipeline
from fvcore.injection import Injection, Likelihood
from fvcore.model.hooks import add_to_residual
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, trial_keys
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.selftest.bed import Bed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, candidate_fault, fault, observed
from pytest_fvparity.selftest.copies import bed_in, bed_on, changed
from pytest_fvparity.selftest.faults.activations import ids_of, left_padded

KEY = "injection_output"

Adding = Callable[..., AbstractContextManager[None]]


@contextmanager
def with_adding(bed: Bed, adding: Adding) -> Iterator[Implementation]:
    """A candidate with `adding` in place of `add_to_residual`: model, layer, vector, token -> while the model runs."""
    with patch.object(injection, "add_to_residual", adding):
        yield bed.candidate()


@contextmanager
def hooked(module: Any, hook: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def added(output: Any, vector: Tensor, at: Any) -> Any:
    """A block's output, a tensor or a tuple, with the vector added to a copy of its hidden state (batch, token, d)."""
    hidden = (output[0] if isinstance(output, tuple) else output).clone()
    hidden[at] += vector.to(hidden)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def in_these_leaves_alone(bed: Bed, candidate: Implementation, *expected: str) -> Observed:
    """What was seen, if the key's other leaves are right on every trial."""
    results = bed.judge(candidate)
    seen = observed(results)
    differing = [f for result in results if result.key == KEY for f in result.verdict.findings if f.blocking]
    # A finding's place reads `0:0/with_generated[3]`.
    found = {finding.where.partition("[")[0].rpartition("/")[2] for finding in differing}
    if seen.key == KEY and found != set(expected):
        return Observed(Outcome.ERRORS, KEY, f"at {', '.join(sorted(found))} instead of {', '.join(expected)}")
    return seen


# ---------------------------------------------------------------- an injection that does nothing


@candidate_fault(
    "F60",
    "a callback that edits tuples only, on blocks that return tensors",
    "the hook passes by an output that is no tuple",
    KEY,
    "an error that names the layer: logits without and with the vector are equal",
    Outcome.ERRORS,
    families=("llama", "gpt2", "gpt_neox", "qwen3"),  # a block of gptj returns a tuple, and the callback edits it
)
def tuples_only(bed: Bed) -> AbstractContextManager[Implementation]:
    def adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> AbstractContextManager[None]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            return added(output, vector, (slice(None), token)) if isinstance(output, tuple) else output

        return hooked(lm.blocks[layer], hook)

    return with_adding(bed, adding)


@candidate_fault(
    "F61",
    "a copy edited and not returned",
    "the hook adds the vector to a clone and returns nothing",
    KEY,
    "an error that names the layer: logits without and with the vector are equal",
    Outcome.ERRORS,
)
def copy_not_returned(bed: Bed) -> AbstractContextManager[Implementation]:
    def adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> AbstractContextManager[None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            added(output, vector, (slice(None), token))

        return hooked(lm.blocks[layer], hook)

    return with_adding(bed, adding)


@candidate_fault(
    "F74",
    "hook on a module that never runs",
    "the vector is added to a block of a copy of the model, through fvcore's hooks",
    KEY,
    "an error that names the layer whose hook never fired",
    Outcome.ERRORS,
)
def wrong_module(bed: Bed) -> AbstractContextManager[Implementation]:
    other = changed(bed.lm, lambda hf: None)
    return with_adding(bed, lambda lm, *where: add_to_residual(other, *where))


@candidate_fault(
    "F74-silent",
    "hook on a module that never runs, and nobody counts",
    "the same with a hook of the candidate's own",
    KEY,
    "an error that names the layer: logits without and with the vector are equal",
    Outcome.ERRORS,
)
def wrong_module_silently(bed: Bed) -> AbstractContextManager[Implementation]:
    blocks = copy.deepcopy(bed.lm.blocks)

    def adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> AbstractContextManager[None]:
        return hooked(blocks[layer], lambda module, args, output: added(output, vector, (slice(None), token)))

    return with_adding(bed, adding)


# ---------------------------------------------------------------- the wrong place


@candidate_fault(
    "F62",
    "hook at the attention projection instead of the block",
    "the vector is added to what the attention writes",
    KEY,
    "base equal, with differs",
    # In gptj and gpt_neox the MLP reads the block's input, so both places are one.
    families=("llama", "gpt2", "qwen3"),
)
def at_attention(bed: Bed) -> AbstractContextManager[Implementation]:
    def adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> AbstractContextManager[None]:
        return hooked(lm.o_proj(layer), lambda module, args, output: added(output, vector, (slice(None), token)))

    return with_adding(bed, adding)


@candidate_fault(
    "F63",
    "layer off by one",
    "the layer is taken as an index of hidden_states, where 0 is the embedding",
    KEY,
    "base equal, with differs",
)
def layer_off_by_one(bed: Bed) -> AbstractContextManager[Implementation]:
    return with_adding(bed, lambda lm, layer, *rest: add_to_residual(lm, layer - 1, *rest))


def at_positions(bed: Bed, positions: slice) -> Observed:
    """What is seen when the vector is added at these tokens of the first block."""

    def adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> AbstractContextManager[None]:
        return hooked(lm.blocks[layer], lambda module, args, output: added(output, vector, (slice(None), positions)))

    # After the last block a token's logits depend on no other token, and the fault would hide.
    early = bed_on(bed, bed.lm, edit_layer=0)
    with with_adding(early, adding) as candidate:
        return observed(early.judge(candidate))


@fault(
    "F64",
    "vector added at all positions",
    "the whole hidden state of the first block is edited",
    Outcome.FAILS,
    KEY,
    "base equal, with differs",
)
def all_positions(bed: Bed) -> Observed:
    return at_positions(bed, slice(None))


@fault(
    "F64-first",
    "vector added at the first position",
    "token 0 of the first block is edited",
    Outcome.FAILS,
    KEY,
    "base equal, with differs",
)
def first_position(bed: Bed) -> Observed:
    return at_positions(bed, slice(0, 1))


@fault(
    "F65",
    "likelihood of an answer with the vector at the last position",
    "position -1 in every mode, also where the answer follows the prompt",
    Outcome.FAILS,
    KEY,
    "the likelihood with the vector alone; it equals the one without",
)
def likelihood_at_last_position(bed: Bed) -> Observed:
    def adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> AbstractContextManager[None]:
        return add_to_residual(lm, layer, vector, -1)

    with with_adding(bed, adding) as candidate:
        return in_these_leaves_alone(bed, candidate, "with_nll")


def likelihood_of_all_tokens(
    lm: LanguageModel, ids: list[int], answer: list[int], vector: Tensor, layer: int, alpha: float
) -> Likelihood:
    """The answer's length is measured on a prompt that holds it already, and comes out as 0."""
    n_answer = 0
    row = lm.ids([*ids, *answer])
    labels = row.clone()
    labels[:, :-n_answer] = -100  # an empty range: nothing is masked

    def nll() -> float:
        return float(lm.hf(input_ids=row, labels=labels, use_cache=False).loss)

    base = nll()
    with add_to_residual(lm, layer, alpha * vector, -1 - n_answer):
        return Likelihood(base, nll())


@fault(
    "F65-unmasked",
    "likelihood of the prompt instead of the answer",
    "an answer length of 0 masks nothing",
    Outcome.FAILS,
    KEY,
    "both likelihoods alone",
)
def nothing_masked(bed: Bed) -> Observed:
    with torch.inference_mode(), patch.object(pipeline, "inject_nll", likelihood_of_all_tokens):
        return in_these_leaves_alone(bed, bed.candidate(), "base_nll", "with_nll")


@fault(
    "F66",
    "generation with the vector in the first step only",
    "the hook edits once; with the key-value cache every step is a pass of its own",
    Outcome.FAILS,
    KEY,
    "the generated ids with the vector alone, from the second on",
)
def first_step_only(bed: Bed) -> Observed:
    def adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> AbstractContextManager[None]:
        passes = iter([True])

        def hook(module: Any, args: Any, output: Any) -> Any:
            return added(output, vector, (slice(None), token)) if next(passes, False) else output

        return hooked(lm.blocks[layer], hook)

    with with_adding(bed, adding) as candidate:
        return in_these_leaves_alone(bed, candidate, "with_generated")


def batched_with_longest(longest: list[int], position: Callable[[Tensor], Tensor]) -> Callable[..., Injection]:
    """`inject` in a left-padded batch with the longest prompt; `position` gives each row's token from its mask."""

    def inject_batched(
        lm: LanguageModel, ids: list[int], target: int, vector: Tensor, layer: int, alpha: float
    ) -> Injection:
        rows, mask = left_padded([longest, ids])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)

        def logits() -> Tensor:
            output: Tensor = lm.hf(
                input_ids=rows, attention_mask=mask.long(), position_ids=positions, use_cache=False
            ).logits
            return output[1, -1].clone()

        base, at = logits(), (torch.arange(2), position(mask))
        with hooked(lm.blocks[layer], lambda module, args, output: added(output, alpha * vector, at)):
            return Injection(target, base, logits())

    return inject_batched


def judged_in_a_batch(bed: Bed, position: Callable[[Tensor], Tensor]) -> Observed:
    prompts = bed.golden.prompt_boundary()
    longest = max((ids_of(prompts, key, "corrupted") for key in trial_keys(prompts)), key=len)
    with torch.inference_mode(), patch.object(pipeline, "inject", batched_with_longest(longest, position)):
        return observed(bed.judge(bed.candidate()))


@fault(
    "F67",
    "last token of a left-padded row taken as mask sum - 1",
    "prompts in batches of two, the vector added where a right-padded row would end",
    Outcome.FAILS,
    KEY,
    "every prompt shorter than its neighbour",
)
def mask_sum_index(bed: Bed) -> Observed:
    return judged_in_a_batch(bed, lambda mask: mask.sum(dim=1) - 1)


# ---------------------------------------------------------------- the wrong number


def logprob_in_dtype_of(logits: Tensor, target: int) -> float:
    return float(torch.log_softmax(logits, dim=-1)[target])


@fault(
    "F68",
    "log-probability taken in half precision",
    "golden and candidate in fp16; the candidate's log_softmax is in the logits' dtype",
    Outcome.FAILS,
    KEY,
    "log-probabilities by up to 2e-3, logits equal",
)
def logprob_in_half(bed: Bed) -> Observed:
    half = bed_in(bed, torch.float16)
    with patch.object(injection, "_logprob", logprob_in_dtype_of):
        return observed(half.judge(half.candidate()))


@candidate_fault(
    "F68-fp32",
    "log-probability taken in half precision, in an fp32 run",
    "the candidate casts logits to fp16 before log_softmax",
    KEY,
    "log-probabilities by up to 2e-3, logits equal",
)
@contextmanager
def logits_cast_to_half(bed: Bed) -> Iterator[Implementation]:
    with patch.object(injection, "_logprob", lambda logits, target: logprob_in_dtype_of(logits.half(), target)):
        yield bed.candidate()


@candidate_fault(
    "F69",
    "alpha other than 1",
    "the candidate adds twice the vector under a profile that says alpha 1",
    KEY,
    "base equal, with differs",
)
def other_alpha(bed: Bed) -> Implementation:
    return Pipeline(bed.lm, bed.trials, replace(bed.settings, alpha=2.0))


@candidate_fault(
    "F69-normalised",
    "the function vector normalised",
    "the vector is divided by its norm before it is added",
    KEY,
    "base equal, with differs",
)
def normalised(bed: Bed) -> AbstractContextManager[Implementation]:
    return with_adding(bed, lambda lm, layer, vector, *rest: add_to_residual(lm, layer, vector / vector.norm(), *rest))
