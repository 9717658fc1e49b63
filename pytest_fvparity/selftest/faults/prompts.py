"""Faults of station 1, prompts and the token boundary."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from tokenizers import processors

from fvcore.pipeline import Pipeline
from fvcore.prompts import Prompt, prompt_at_boundary, trial_prompt
from fvcore.trials.fixed import Trial, WordPair
from pytest_fvparity.selftest.catalogue import Plant, Plants, choosing, replacing

PromptOf = Callable[[Any, Trial, Prompt], Prompt]
"""Tokenizer, trial and the right prompt -> the faulty one."""


def prompting(prompt_of: PromptOf) -> Plant:
    return replacing(prompt=prompted_by(prompt_of))


def prompted_by(prompt_of: PromptOf) -> Callable[[Pipeline, Trial, str], Prompt]:
    """The pipeline's method."""
    return lambda self, trial, regime: prompt_of(self.lm.tokenizer, trial, Pipeline.prompt(self, trial, regime))


def answer_alone(tokenizer: Any, trial: Trial, right: Prompt, add_special_tokens: bool = False) -> Prompt:
    answer = tokenizer(trial.query.output.strip(), add_special_tokens=add_special_tokens).input_ids
    return replace(right, answer_ids=tuple(answer))


def appended_eos(tokenizer: Any, trial: Trial, right: Prompt) -> Prompt:
    """The boundary taken without looking at the ids before it."""
    with_eos = copy.deepcopy(tokenizer)
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    adds_bos = tokenizer("").input_ids == [tokenizer.bos_token_id]
    with_eos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}" if adds_bos else f"$A {end}",
        special_tokens=[(begin, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)],
    )
    source, full = (tuple(with_eos(text).input_ids) for text in (right.text, right.text + trial.query.output))
    return Prompt(right.text, source, full[len(source) :])


def respaced(space: Callable[[str], str]) -> Plant:
    def pair(of: WordPair) -> WordPair:
        return WordPair(input=space(of.input), output=space(of.output))

    def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
        labels = tuple(map(space, trial.corrupted_labels))
        demos = tuple(map(pair, trial.demos))
        words = replace(trial, demos=demos, query=pair(trial.query), corrupted_labels=labels)
        return Pipeline.prompt(self, words, regime)

    return replacing(prompt=prompt)


def without_last_demo(self: Pipeline, trial: Trial, regime: str) -> Prompt:
    shorter = replace(trial, demos=trial.demos[:-1], corrupted_labels=trial.corrupted_labels[:-1])
    return Pipeline.prompt(self, shorter, regime)


PLANTS: dict[str, Plants] = {
    "F01": prompting(
        lambda tokenizer, trial, right: prompt_at_boundary(tokenizer, f"{right.text} ", trial.query.output)
    ),
    "F02": prompting(
        lambda tokenizer, trial, right: replace(
            right, answer_ids=tuple(tokenizer(f"{right.text} {trial.query.output}").input_ids[right.boundary :])
        )
    ),
    "F03": (prompting(answer_alone), prompting(partial(answer_alone, add_special_tokens=True))),
    "F04": prompting(
        lambda tokenizer, trial, right: prompt_at_boundary(
            tokenizer, tokenizer.bos_token + right.text, trial.query.output
        )
    ),
    "F05": replacing(
        prompt=lambda self, trial, regime: trial_prompt(
            self.lm.tokenizer, trial, self.template, regime, add_special_tokens=False
        )
    ),
    "F06": prompting(appended_eos),
    "F12": (respaced(str.strip), respaced(lambda word: f" {word}")),
    "F12-demo": replacing(prompt=without_last_demo),
    "F23": choosing(reference_profile="todd_upstream"),
}
