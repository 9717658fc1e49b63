"""Faults of station 6, injection."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fvcore import injection, pipeline
from fvcore.gates import StageResult
from fvcore.injection import Injection, Likelihood
from fvcore.model.hooks import add_to_residual
from fvcore.model.model import LanguageModel
from fvcore.pipeline import trial_keys
from fvcore.prompts import Prompt
from pytest_fvparity.selftest.catalogue import Look, Observed, Outcome, Plant, Plants, choosing, observed, on, patching
from pytest_fvparity.selftest.mean_heads import ids_of, left_padded, padded_logits
from pytest_fvparity.selftest.rig import Rig, changed

KEY = "injection_output"

Edit = Callable[[Any, Tensor, Any], Any]
"""A block's output, the vector and where to add it -> the edited output."""


def one_by_one(inject: Callable[..., Injection]) -> Callable[..., list[Injection]]:
    """`inject` of one prompt in place of `injections`."""

    def injections(
        lm: LanguageModel,
        prompts: Sequence[list[int]],
        targets: Sequence[int],
        vector: Tensor,
        layer: int,
        alpha: float,
        *engine: Any,
    ) -> list[Injection]:
        return [inject(lm, *asked, vector, layer, alpha) for asked in zip(prompts, targets, strict=True)]

    return injections


def with_adding(adding: Callable[..., AbstractContextManager[Any]], look: Look = observed) -> Plant:
    """`adding` in place of `add_to_residual`: model, layer, vector, token -> while the model runs.

    Nobody asks whether something moved: a candidate has no such guard, and the comparison must see it.
    """

    @torch.inference_mode()
    def inject(lm: LanguageModel, ids: list[int], target: int, vector: Tensor, layer: int, alpha: float) -> Injection:
        base = lm.logits(lm.ids(ids))[0, -1]
        with adding(lm, layer, alpha * vector):
            return Injection(target, base, lm.logits(lm.ids(ids))[0, -1])

    def plant(rig: Rig) -> Observed:
        with patch.object(pipeline, "injections", one_by_one(inject)):
            return patching(injection, "add_to_residual", adding, look)(rig)

    return plant


def added(output: Any, vector: Tensor, at: Any) -> Any:
    """A block's output, a tensor or a tuple, with the vector added to a copy of its hidden state (batch, token, d)."""
    hidden = (output[0] if isinstance(output, tuple) else output).clone()
    hidden[at] += vector.to(hidden)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def hooked(
    module_of: Callable[[LanguageModel, int], nn.Module] = lambda lm, layer: lm.blocks[layer], edit: Edit = added
) -> Plant:
    """A hook of the candidate's own on what leaves a module."""

    def adding(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> RemovableHandle:
        at = (slice(None), token)
        return module_of(lm, layer).register_forward_hook(lambda module, args, output: edit(output, vector, at))

    return with_adding(adding)


def these_leaves_alone(*expected: str) -> Look:
    """What was seen, if the key's other leaves are right on every trial."""

    def look(results: Sequence[StageResult]) -> Observed:
        seen = observed(results)
        differing = [f for result in results if result.key == KEY for f in result.verdict.findings if f.blocking]
        # A finding's place reads `0:0/with_generated[3]`.
        leaves = {finding.where.partition("[")[0].rpartition("/")[2] for finding in differing}
        if seen.key == KEY and leaves != set(expected):
            return Observed(Outcome.ERRORS, KEY, f"at {', '.join(sorted(leaves))} instead of {', '.join(expected)}")
        return seen

    return look


def beside_a_copy(planted: Callable[[LanguageModel], Plant]) -> Plant:
    """Planted with a copy of the model at hand, which is not the one that is run."""
    return lambda rig: planted(changed(rig.lm))(rig)


def not_returned(output: Any, vector: Tensor, at: Any) -> None:
    added(output, vector, at)


def at_positions(positions: slice) -> Plant:
    """The vector added at these tokens of the first block."""
    # After the last block a token's logits depend on no other token, and the fault would hide.
    return on(
        lambda rig: rig.on(rig.lm, edit_layer=0),
        hooked(edit=lambda output, vector, at: added(output, vector, (slice(None), positions))),
    )


@torch.inference_mode()
def likelihoods_of_all_tokens(
    lm: LanguageModel, prompts: Sequence[Prompt], vector: Tensor, layer: int, alpha: float, *engine: Any
) -> list[Likelihood]:
    """The answer's length is measured on a prompt that holds it already, and comes out as 0."""
    n_answer = 0

    def nll(row: Tensor) -> float:
        labels = row.clone()
        labels[:, :-n_answer] = -100  # an empty range: nothing is masked
        return float(lm.hf(input_ids=row, labels=labels, use_cache=False).loss)

    rows = [lm.ids([*prompt.input_ids, *prompt.answer_ids]) for prompt in prompts]
    base = list(map(nll, rows))
    with add_to_residual(lm, layer, alpha * vector, -1 - n_answer):
        injected = list(map(nll, rows))
    return [Likelihood(*pair) for pair in zip(base, injected, strict=True)]


def in_the_first_step_only(lm: LanguageModel, layer: int, vector: Tensor, token: int = -1) -> RemovableHandle:
    passes = iter([True])

    def hook(module: Any, args: Any, output: Any) -> Any:
        return added(output, vector, (slice(None), token)) if next(passes, False) else output

    return lm.blocks[layer].register_forward_hook(hook)


def in_a_batch(position: Callable[[Tensor], Tensor]) -> Plant:
    """`inject` in a left-padded batch with the longest prompt; `position` gives each row's token from its mask."""

    def plant(rig: Rig) -> Observed:
        prompts = rig.golden.prompt_boundary()
        longest = max((ids_of(prompts, key, "corrupted") for key in trial_keys(prompts)), key=len)

        @torch.inference_mode()
        def inject(
            lm: LanguageModel, ids: list[int], target: int, vector: Tensor, layer: int, alpha: float
        ) -> Injection:
            rows, mask = left_padded([longest, ids])
            base, at = padded_logits(lm, rows, mask)[1, -1], (torch.arange(2), position(mask))
            with lm.blocks[layer].register_forward_hook(lambda _, args, output: added(output, alpha * vector, at)):
                return Injection(target, base, padded_logits(lm, rows, mask)[1, -1])

        return patching(pipeline, "injections", one_by_one(inject))(rig)

    return plant


def logprob_in_dtype_of(logits: Tensor, target: int) -> float:
    return float(torch.log_softmax(logits, dim=-1)[target])


def shipping_a_penalty(rig: Rig) -> Rig:
    """The same model, as if it had been released with a generation setting that greedy decoding must not hear of."""
    return rig.on(changed(rig.lm, lambda hf: hf.generation_config.update(repetition_penalty=1.5)))


PLANTS: dict[str, Plants] = {
    "F60": hooked(edit=lambda output, vector, at: added(output, vector, at) if isinstance(output, tuple) else output),
    "F61": hooked(edit=not_returned),
    "F62": hooked(lambda lm, layer: lm.o_proj(layer)),
    "F63": with_adding(lambda lm, layer, *rest: add_to_residual(lm, layer - 1, *rest)),
    "F64": at_positions(slice(None)),
    "F64-first": at_positions(slice(0, 1)),
    "F65": with_adding(
        lambda lm, layer, vector, token=-1: add_to_residual(lm, layer, vector, -1), these_leaves_alone("with_nll")
    ),
    "F65-unmasked": patching(
        pipeline, "likelihoods", likelihoods_of_all_tokens, these_leaves_alone("base_nll", "with_nll")
    ),
    "F66": with_adding(in_the_first_step_only, these_leaves_alone("with_generated")),
    "F67": in_a_batch(lambda mask: mask.sum(dim=1) - 1),
    "F68": on(lambda rig: rig.in_dtype(torch.float16), patching(injection, "_logprob", logprob_in_dtype_of)),
    "F68-fp32": patching(injection, "_logprob", lambda logits, target: logprob_in_dtype_of(logits.half(), target)),
    "F69": choosing(alpha=2.0),
    "F69-normalised": with_adding(
        lambda lm, layer, vector, *rest: add_to_residual(lm, layer, vector / vector.norm(), *rest)
    ),
    "F76": on(
        shipping_a_penalty,
        patching(
            injection, "greedily", lambda hf: nullcontext(), these_leaves_alone("base_generated", "with_generated")
        ),
    ),
    "F74": beside_a_copy(lambda other: with_adding(lambda lm, *where: add_to_residual(other, *where))),
    "F74-silent": beside_a_copy(lambda other: hooked(lambda lm, layer: other.blocks[layer])),
}
