"""Residual streams of many prompts at once, at tokens that stand for text; and what they may be mistaken for."""

from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor

from fvcore.embedded.words import relations
from fvcore.model.model import LanguageModel
from fvcore.model.residual import hidden_states, residual_stream
from fvcore.prompts import Prompt, PromptTemplate, prompt_at_boundary
from fvcore.trials.fixed import PREFIXES, SEPARATORS, WordPair

N_SHOTS = 10


def questions(lm: LanguageModel, n: int, rng: Random) -> Iterator[Prompt]:
    """Ten-shot prompts of every relation in turn."""
    template, tables = PromptTemplate(PREFIXES, SEPARATORS), list(relations().values())
    for number in range(n):
        *shots, (query, answer) = rng.sample(
            [(f" {q}", f" {a}") for q, a in tables[number % len(tables)].items()], N_SHOTS + 1
        )
        text = template.text([WordPair(input=q, output=a) for q, a in shots], query)
        yield prompt_at_boundary(lm.tokenizer, text, answer)


def by_length(prompts: Sequence[Sequence[int]], most: int = 64) -> Iterator[list[int]]:
    """Which prompts are of one length, at most so many at a time."""
    lengths = sorted({len(ids) for ids in prompts})
    for length in lengths:
        same = [number for number, ids in enumerate(prompts) if len(ids) == length]
        yield from (same[at : at + most] for at in range(0, len(same), most))


def counted(lm: LanguageModel, ids: Tensor) -> Tensor:
    """Which tokens stand for text, of the same shape: BOS has a norm of its own that nothing else has."""
    special = torch.tensor(lm.tokenizer.all_special_ids, device=ids.device)
    return ~torch.isin(ids, special)


def streams_of(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
    """Layer -> what leaves its block at every token of text (token, d_model)."""
    parts: dict[int, list[Tensor]] = {layer: [] for layer in range(lm.n_layers)}
    for numbers in by_length(prompts):
        ids = torch.tensor([list(prompts[number]) for number in numbers], device=lm.device)
        stream, of_text = residual_stream(lm, ids), counted(lm, ids)
        for layer, hidden in stream.items():
            parts[layer].append(hidden[of_text])
    return {layer: torch.cat(found) for layer, found in parts.items()}


def taken_for(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """What an autoencoder may have been trained on, by name: every layer, each of them normalised, and what the head reads."""
    found = {f"layer {at}": stream for at, stream in streams_of(lm, prompts).items()}
    width = lm.d_model**0.5
    normalised = {
        f"{name} at one length": width * torch.nn.functional.normalize(x, dim=-1) for name, x in found.items()
    }
    behind = []
    for numbers in by_length(prompts):
        ids = torch.tensor([list(prompts[number]) for number in numbers], device=lm.device)
        behind.append(hidden_states(lm, ids)[-1][counted(lm, ids)])
    return found | normalised | {"the final norm's output": torch.cat(behind)}
