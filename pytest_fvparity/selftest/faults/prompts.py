"""Faults of station 1, prompts and the token boundary."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenizers import processors

from fvcore.embedded.random_models import WITH_BOS, WITHOUT_BOS
from fvcore.pipeline import Pipeline
from fvcore.prompts import Prompt, prompt_at_boundary, trial_prompt
from fvcore.trials import Trial, WordPair
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.selftest.bed import Bed
from pytest_fvparity.selftest.catalogue import candidate_fault

KEY = "prompt_boundary"


@candidate_fault(
    "F01",
    "prompts built with a trailing space after the output prefix",
    "a space is appended to every prompt",
    KEY,
    "text and ids differ at their end",
)
def trailing_space(bed: Bed) -> Implementation:
    def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
        text = Pipeline.prompt(self, trial, regime).text
        return prompt_at_boundary(self.lm.tokenizer, f"{text} ", trial.query.output)

    return bed.candidate(prompt=prompt)


@candidate_fault(
    "F02",
    "double space at the boundary",
    "the prompt is joined by a space with an answer that brings its own",
    KEY,
    "the target is a token of white space",
)
def double_space(bed: Bed) -> Implementation:
    def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
        right = Pipeline.prompt(self, trial, regime)
        full = self.lm.tokenizer(f"{right.text} {trial.query.output}").input_ids
        return replace(right, answer_ids=tuple(full[right.boundary :]))

    return bed.candidate(prompt=prompt)


@candidate_fault(
    "F03",
    "target from tokenising the answer alone",
    "the stripped answer is tokenised by itself, without and with special tokens",
    KEY,
    "the target is a token without its space, or the BOS",
)
def answer_alone(bed: Bed) -> list[Implementation]:
    def alone(add_special_tokens: bool) -> Implementation:
        def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
            answer = self.lm.tokenizer(trial.query.output.strip(), add_special_tokens=add_special_tokens).input_ids
            return replace(Pipeline.prompt(self, trial, regime), answer_ids=tuple(answer))

        return bed.candidate(prompt=prompt)

    return [alone(False), alone(True)]


@candidate_fault(
    "F04",
    "BOS twice",
    "the BOS string is put in front of the text, and the tokenizer adds its own",
    KEY,
    "ids[0] == ids[1] == bos",
    families=WITH_BOS,  # elsewhere the string is the only BOS, which is F23
)
def bos_twice(bed: Bed) -> Implementation:
    def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
        text = Pipeline.prompt(self, trial, regime).text
        return prompt_at_boundary(self.lm.tokenizer, self.lm.tokenizer.bos_token + text, trial.query.output)

    return bed.candidate(prompt=prompt)


@candidate_fault(
    "F05",
    "BOS missing",
    "prompts are tokenised with add_special_tokens=False",
    KEY,
    "one token less",
    families=WITH_BOS,  # the other tokenizers add nothing that could be missing
)
def bos_missing(bed: Bed) -> Implementation:
    def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
        return trial_prompt(self.lm.tokenizer, trial, self.template, regime, add_special_tokens=False)

    return bed.candidate(prompt=prompt)


@candidate_fault(
    "F06",
    "tokenizer that appends EOS",
    "the tokenizer's template ends with </s>, and the boundary is taken without looking at the ids before it",
    KEY,
    "one token more; the target is the second answer token or EOS",
)
def appended_eos(bed: Bed) -> Implementation:
    tokenizer = _with_eos(bed.lm.tokenizer, bos=bed.family in WITH_BOS)

    def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
        text = Pipeline.prompt(self, trial, regime).text
        source, full = (tuple(tokenizer(part).input_ids) for part in (text, text + trial.query.output))
        return Prompt(text, source, full[len(source) :])

    return bed.candidate(prompt=prompt)


def _with_eos(tokenizer: Any, bos: bool) -> Any:
    """A copy of the tokenizer that puts EOS behind every text."""
    other = copy.deepcopy(tokenizer)
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}" if bos else f"$A {end}",
        special_tokens=[(begin, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)],
    )
    return other


@candidate_fault(
    "F12",
    "leading space dropped or doubled",
    "words are stripped, or given the space that the stored ones have already",
    KEY,
    "texts differ at every word",
)
def respaced_words(bed: Bed) -> list[Implementation]:
    def respaced(space: Callable[[str], str]) -> Implementation:
        def pair(of: WordPair) -> WordPair:
            return WordPair(input=space(of.input), output=space(of.output))

        def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
            words = replace(
                trial,
                demos=tuple(map(pair, trial.demos)),
                query=pair(trial.query),
                corrupted_labels=tuple(map(space, trial.corrupted_labels)),
            )
            return Pipeline.prompt(self, words, regime)

        return bed.candidate(prompt=prompt)

    return [respaced(str.strip), respaced(lambda word: f" {word}")]


@candidate_fault(
    "F23",
    "the public repository's BOS against a golden of profile src",
    "the candidate runs as todd_upstream and calls itself src",
    KEY,
    "one token more; seven where <|endoftext|> is no special token",
    families=WITHOUT_BOS,  # the text is written only where the tokenizer adds no BOS
)
def upstream_bos(bed: Bed) -> Implementation:
    return Pipeline(bed.lm, bed.trials, replace(bed.settings, reference_profile="todd_upstream"))
