"""Station 6: injection, the function vector added to the residual stream at a block's output.

Three modes, each without and with the vector: the next token, the negative log-likelihood of a given answer, and greedy
generation (`function_vector_intervention` in the reference's intervention_utils.py). `inject*` take one prompt and are
the reference's arithmetic; `injections`, `likelihoods` and `generated_ids` take many, and so do `inject_logits` and
`answer_nlls`. Engine `fast` runs these in padded batches, and every vector at every layer as one more row of the same
pass; `exact` runs one prompt and one injection at a time.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product, takewhile
from typing import TypeVar

import torch
from torch import Tensor

from fvcore.effects import read_targets
from fvcore.fast.chunks import Advance, chunk_size, even, in_chunks, silent
from fvcore.fast.engines import chosen
from fvcore.fast.shared_prompt import Batch, SharedPrompt
from fvcore.fast.sweep import ROWS, alike, pass_bytes, rows_with_vectors_added, trial_bytes, variant_bytes
from fvcore.model.generation import end_ids, greedily
from fvcore.model.hooks import add_to_residual
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError
from fvcore.prompts import Prompt

LOSS_ROUNDING = 1e-4
"""How far a loss and the likelihood of the same logits in fp32 may be apart, relative where they are large: in 39 families to the bit alike."""

N_GENERATED = 16
LEAST_LOGPROB = -1e30
"""The log-probability of a token that a model holds impossible: files hold no infinity."""

Read = TypeVar("Read")


class NothingMoved(RuntimeError):
    """An injection changed no logit of any prompt: an intervention that does nothing is no result."""


@dataclass(frozen=True, slots=True)
class Injection:
    """One prompt without ("base") and with the vector. Log-probabilities are taken in fp32; logits are (vocab,)."""

    target_id: int
    base_logits: Tensor
    with_logits: Tensor

    @property
    def base_logprob(self) -> float:
        return _logprob(self.base_logits, self.target_id)

    @property
    def with_logprob(self) -> float:
        return _logprob(self.with_logits, self.target_id)

    @property
    def delta_logprob(self) -> float:
        return self.with_logprob - self.base_logprob


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean negative log-likelihood (nats per token) of an answer, without and with the vector."""

    base_nll: float
    with_nll: float


@dataclass(frozen=True, slots=True)
class Generation:
    """Greedily generated ids, without and with the vector."""

    base_ids: list[int]
    with_ids: list[int]


@dataclass(frozen=True, slots=True)
class InjectedReadings:
    """Readings (p, logit, logprob) of each prompt's target in fp32, and the token that the model prefers."""

    base: Tensor  # (prompt, 3)
    injected: Tensor  # (prompt, layer, 3)
    base_ids: Tensor  # (prompt,)
    injected_ids: Tensor  # (prompt, layer)


def _logprob(logits: Tensor, target_id: int) -> float:
    return float(torch.log_softmax(logits.float(), dim=-1)[target_id])


def _injected(
    lm: LanguageModel, vector: Tensor | None, edit_layer: int, alpha: float, token: int | slice = -1
) -> AbstractContextManager[None]:
    if vector is None:
        return nullcontext()
    _require(lm, vectors=[vector])
    # Alpha 1 keeps every bit of the vector, whatever its dtype: the reference's own addition.
    return add_to_residual(lm, edit_layer, alpha * vector, token)


def _require(lm: LanguageModel, prompts: Sequence[object] = (), vectors: Sequence[Tensor] = ()) -> None:
    """Raise ModelError for a text or a lone list of ids in place of prompts, and for numbers that would be added as they are to
    every width: what a lone tensor in place of a list of vectors comes apart into."""
    for prompt in (prompt for prompt in prompts if isinstance(prompt, str | int)):
        raise ModelError(
            f"a prompt is a list of token ids, as lm.tokenizer(text).input_ids gives them; found {prompt!r:.60}"
        )
    for vector in (vector for vector in vectors if vector.shape != (lm.d_model,)):
        raise ModelError(
            f"a vector has the shape ({lm.d_model},), d_model of {lm.name}; found {tuple(vector.shape)}, and several are a list"
        )


def inject(
    lm: LanguageModel, input_ids: Sequence[int], target_id: int, vector: Tensor, edit_layer: int, alpha: float = 1.0
) -> Injection:
    """Next-token logits with and without `alpha * vector` (d_model,) at the last token of block `edit_layer`."""
    return injections(lm, [input_ids], [target_id], vector, edit_layer, alpha, "exact")[0]


def injections(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[int],
    vector: Tensor,
    edit_layer: int,
    alpha: float = 1.0,
    engine: str = "fast",
    max_memory: int | None = None,
) -> list[Injection]:
    """Of every prompt what `inject` says of one. Raises NothingMoved where no logit of a prompt changes."""
    logits = inject_logits(lm, prompts, [vector], [edit_layer], alpha, engine, max_memory)
    still = [row for row, (base, injected) in enumerate(logits) if torch.equal(base, injected)]
    if still and alpha and bool(vector.any()):
        raise _nothing_moved([edit_layer], vector, alpha, f"for prompt {', '.join(map(str, still))}")
    return [Injection(target, *rows) for target, rows in zip(targets, logits, strict=True)]


def _nothing_moved(layers: Sequence[int], vector: Tensor, alpha: float, where: str) -> NothingMoved:
    return NothingMoved(
        f"injection had no effect at layer {', '.join(map(str, layers))}: logits without and with the vector (norm "
        f"{float(vector.float().norm()):.3g}, alpha {alpha:g}) are equal {where}; a hook that does nothing, or an addition that "
        "rounds away"
    )


def inject_logits(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    vectors: Sequence[Tensor],
    layers: Sequence[int],
    alpha: float = 1.0,
    engine: str = "fast",
    max_memory: int | None = None,
) -> Tensor:
    """Next-token logits without a vector, and with `alpha` times each vector at the last token behind each layer.

    vectors: each (d_model,)     layers: rising     max_memory: bytes beside the weights, half of what is free by default
    returns: (prompt, 1 + len(vectors) * len(layers), vocab) on the CPU; all layers of the first vector come first

    Raises NothingMoved where an injection changes no logit although vector and alpha are not zero; ModelError for a layer that
    there is not, a text in place of ids, and a vector of another shape.
    """
    parts = read_injected(lm, prompts, vectors, layers, lambda logits, _: logits.cpu(), alpha, engine, max_memory)
    return torch.cat(parts)


def inject_readings(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[int],
    vector: Tensor,
    layers: Sequence[int],
    alpha: float = 1.0,
    engine: str = "fast",
    max_memory: int | None = None,
    advance: Advance = silent,
) -> InjectedReadings:
    """What `inject_logits` says of each prompt's target, with one vector; the vector is taken in the model's dtype."""

    def read(logits: Tensor, rows: range) -> tuple[Tensor, Tensor]:
        wanted = torch.tensor([targets[row] for row in rows])[:, None].expand(-1, logits.shape[1])
        readings = read_targets(logits.float(), wanted).cpu(), logits.argmax(-1).cpu()
        advance(layers[-1], len(rows) * len(layers))
        return readings

    own = vector.to(lm.device, lm.hf.dtype)
    parts = read_injected(lm, prompts, [own], layers, read, alpha, engine, max_memory)
    readings, preferred = (torch.cat(each) for each in zip(*parts, strict=True))
    return InjectedReadings(readings[:, 0], readings[:, 1:], preferred[:, 0], preferred[:, 1:])


@torch.inference_mode()
def read_injected(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    vectors: Sequence[Tensor],
    layers: Sequence[int],
    read: Callable[[Tensor, range], Read],
    alpha: float = 1.0,
    engine: str = "fast",
    max_memory: int | None = None,
) -> list[Read]:
    """What `read` makes of the logits that `inject_logits` gives, as many prompts at a time as fit the memory.

    read: logits (some prompts, 1 + len(vectors) * len(layers), vocab) in the model's dtype, and which prompts they are of
    """
    _require(lm, prompts, vectors)
    for layer in layers:
        lm.require_layer(layer)
    if list(layers) != sorted(set(layers)):
        raise ValueError(f"layers {list(layers)} do not rise; each is computed once, from the first to the last")
    fast, added = chosen(lm, engine) != "exact", [alpha * vector for vector in vectors]
    n_variants, longest = len(added) * len(layers), max(map(len, prompts))
    n_rows = longest + min(n_variants, max(alike(lm), len(layers)))
    each = pass_bytes(lm, n_rows) + (1 + n_variants) * variant_bytes(lm, 1)
    at_most = even(len(prompts), max(1, ROWS // n_rows))
    size = chunk_size(each, lm.device, at_most, max_memory) if fast else 1

    def run(rows: Sequence[int]) -> tuple[Read, Tensor]:
        logits, moved = (_fast if fast else _exact)(lm, [prompts[row] for row in rows], added, layers)
        moved = moved & (logits[:, 1:] != logits[:, :1]).any(-1).any(0).cpu()
        return read(logits, range(rows[0], rows[-1] + 1)), moved

    parts = list(in_chunks(range(len(prompts)), size, run))
    moved = torch.stack([moved for _, moved in parts]).any(0).view(len(added), len(layers))
    for vector, of_layers in zip(vectors, moved.tolist(), strict=True):
        idle = [layer for layer, has in zip(layers, of_layers, strict=True) if not has]
        if idle and alpha and bool(vector.any()):
            raise _nothing_moved(idle, vector, alpha, "on every prompt")
    return [part for part, _ in parts]


def _fast(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], added: Sequence[Tensor], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Logits (prompt, arm, vocab), and whether each addition changed the residual stream: logits of rows that ran beside
    others differ by rounding alone. As many vectors at a time as their rows may look at one another."""
    size = max(1, alike(lm) // max(1, len(layers)))
    groups = [added[at : at + size] for at in range(0, max(1, len(added)), size)]
    (logits, moved), *more = (_together(lm, prompts, group, layers) for group in groups)
    if not more:
        return logits, moved
    return torch.cat([logits, *(rows[:, 1:] for rows, _ in more)], dim=1), torch.cat([moved, *(one for _, one in more)])


def _together(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], added: Sequence[Tensor], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    suffix = SharedPrompt.along(lm, prompts, len(added) * len(layers))
    rows, moved = rows_with_vectors_added(suffix, layers, added)
    order = torch.arange(len(layers) * len(added)).view(len(layers), len(added)).T.flatten()  # by vector, then by layer
    logits = suffix.prompt.logits(torch.cat([rows[:, :1], rows[:, 1 + order.to(rows.device)]], dim=1))
    return logits, torch.tensor(moved, dtype=torch.bool).flatten()[order]


def _exact(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], added: Sequence[Tensor], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The same of one prompt, each row from a pass of its own; what did not move shows in the logits."""
    ids = lm.ids(prompts[0])
    rows = [lm.logits(ids)[0, -1]]
    for vector, layer in product(added, layers):
        with add_to_residual(lm, layer, vector):
            rows.append(lm.logits(ids)[0, -1])
    return torch.stack(rows)[None], torch.ones(len(rows) - 1, dtype=torch.bool)


def inject_nll(
    lm: LanguageModel,
    input_ids: Sequence[int],
    answer_ids: Sequence[int],
    vector: Tensor,
    edit_layer: int,
    alpha: float = 1.0,
) -> Likelihood:
    """Mean NLL of `answer_ids` after the prompt; the vector is added at the prompt's last token only."""
    if not answer_ids:
        raise ValueError("the answer has no tokens; its likelihood is undefined")
    return likelihoods(lm, [Prompt("", tuple(input_ids), tuple(answer_ids))], vector, edit_layer, alpha, "exact")[0]


def _loss(lm: LanguageModel, input_ids: Sequence[int], answer_ids: Sequence[int]) -> float:
    """The model's own loss on an answer, as the reference takes it; its likelihood where that is more or another thing.

    Some families add how evenly experts are used, or compare each token's logits with that token.
    """
    ids = lm.ids([*input_ids, *answer_ids])
    labels = ids.clone()
    labels[:, : -len(answer_ids)] = -100  # ignored by the loss
    output = lm.hf(input_ids=ids, labels=labels, use_cache=False)
    loss, (nll,) = float(output.loss), _nlls(output.logits, [answer_ids])
    return loss if math.isclose(loss, nll, rel_tol=LOSS_ROUNDING, abs_tol=LOSS_ROUNDING) else nll


def likelihoods(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    vector: Tensor,
    edit_layer: int,
    alpha: float = 1.0,
    engine: str = "fast",
    max_memory: int | None = None,
) -> list[Likelihood]:
    """Of every prompt's answer what `inject_nll` says of one."""
    base, injected = (_losses(lm, prompts, each, edit_layer, alpha, engine, max_memory) for each in (None, vector))
    return [Likelihood(*pair) for pair in zip(base, injected, strict=True)]


def answer_nlls(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    vector: Tensor | None = None,
    edit_layer: int = 0,
    alpha: float = 1.0,
    engine: str = "fast",
    max_memory: int | None = None,
) -> list[float]:
    """Mean NLL (nats per token) of each prompt's answer; the vector is added at the prompt's last token only.

    Engine `exact` takes the model's own loss, a prompt at a time: the very numbers of `inject_nll`. One that is infinite is
    as large as files may hold.
    """
    return [min(nll, -LEAST_LOGPROB) for nll in _losses(lm, prompts, vector, edit_layer, alpha, engine, max_memory)]


@torch.inference_mode()
def _losses(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    vector: Tensor | None,
    edit_layer: int,
    alpha: float,
    engine: str,
    max_memory: int | None,
) -> list[float]:
    """Prompts run together with those whose answers have as many tokens: their last tokens then stand in one column."""
    exact = chosen(lm, engine) == "exact"
    nlls = [0.0] * len(prompts)
    for n in sorted({len(prompt.answer_ids) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt.answer_ids) == n]
        longest = n + max(len(prompts[row].input_ids) for row in rows)
        each = trial_bytes(lm, longest) + longest * lm.itemsize * lm.vocab_size
        size = 1 if exact else chunk_size(each, lm.device, len(rows), max_memory)

        def run(some: Sequence[int], n: int = n) -> list[float]:
            with _injected(lm, vector, edit_layer, alpha, -1 - n):
                if exact:
                    return [_loss(lm, prompts[some[0]].input_ids, prompts[some[0]].answer_ids)]
                batch = Batch.of([[*prompts[row].input_ids, *prompts[row].answer_ids] for row in some], lm)
                logits = lm.hf(**batch.inputs(), use_cache=False).logits
                return _nlls(logits, [prompts[row].answer_ids for row in some])

        of_length = [nll for part in in_chunks(rows, size, run) for nll in part]
        for row, nll in zip(rows, of_length, strict=True):
            nlls[row] = nll
    return nlls


def _nlls(logits: Tensor, answers: Sequence[Sequence[int]]) -> list[float]:
    """Of answers of n tokens each, at the ends of what logits (row, token, vocab) are of."""
    ids = torch.tensor(answers, device=logits.device)
    every = torch.log_softmax(logits[:, -1 - ids.shape[1] : -1].float(), dim=-1)
    nlls: list[float] = (-every.gather(-1, ids[..., None])[..., 0].mean(dim=1)).tolist()
    return nlls


def inject_generate(
    lm: LanguageModel,
    input_ids: Sequence[int],
    vector: Tensor,
    edit_layer: int,
    alpha: float = 1.0,
    n_tokens: int = N_GENERATED,
) -> Generation:
    """Greedy generation; with the key-value cache the vector is added at the last position of every step."""
    base, injected = (_generate(lm, [input_ids], each, edit_layer, alpha, n_tokens)[0] for each in (None, vector))
    return Generation(base, injected)


def generated_ids(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    vector: Tensor | None = None,
    edit_layer: int = 0,
    alpha: float = 1.0,
    engine: str = "fast",
    max_memory: int | None = None,
    n_tokens: int = N_GENERATED,
) -> list[list[int]]:
    """What follows each prompt, up to the end-of-text token and with it, as `inject_generate` says it."""
    each = trial_bytes(lm, n_tokens + max(map(len, prompts), default=0)) + variant_bytes(lm, 1)
    size = 1 if chosen(lm, engine) == "exact" else chunk_size(each, lm.device, len(prompts), max_memory)

    def run(some: Sequence[Sequence[int]]) -> list[list[int]]:
        return _generate(lm, some, vector, edit_layer, alpha, n_tokens)

    return [ids for part in in_chunks(prompts, size, run) for ids in part]


def before_end(lm: LanguageModel, ids: Sequence[int]) -> list[int]:
    """Generated ids without the end-of-text token and what stands behind it."""
    ends = end_ids(lm.hf)
    return list(takewhile(lambda token: token not in ends, ids))


@torch.inference_mode()
def _generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    vector: Tensor | None,
    edit_layer: int,
    alpha: float,
    n_tokens: int,
) -> list[list[int]]:
    _require(lm, prompts)
    # The last token that is generated is not read any more.
    batch = Batch.of(prompts, lm, n_tokens - 1)
    # Rows that have ended are filled up behind their end. A model's own id may be a list, or missing.
    pad = next(iter(end_ids(lm.hf)), 0)
    with _injected(lm, vector, edit_layer, alpha), greedily(lm.hf):
        output = lm.hf.generate(batch.ids, attention_mask=batch.mask, max_new_tokens=n_tokens, pad_token_id=pad)
    ids: list[list[int]] = output[:, batch.n_tokens :].tolist()
    # Behind its end a row is filled up, as long as another one goes on.
    return [row[: len(before_end(lm, row)) + 1] for row in ids]


@torch.inference_mode()
def continuation_logits(
    lm: LanguageModel,
    input_ids: Sequence[int],
    generated: Sequence[int],
    vector: Tensor | None,
    edit_layer: int,
    alpha: float = 1.0,
) -> Tensor:
    """Logits (vocab,) of the token that follows `generated`, in one pass over prompt and generated ids.

    The vector is added where cached generation has added it: at the prompt's last token and every one since.
    """
    ids, since = lm.ids([*input_ids, *generated]), slice(len(input_ids) - 1, None)
    with _injected(lm, vector, edit_layer, alpha, since):
        return lm.logits(ids)[0, -1].cpu()
