"""Samples from relations: trials of this project's files, or draws from the relations that the shipped models know."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from fvcore import shipped
from fvcore.embedded.words import GROUPS, group_of, relations
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.errors import OnTaskInvalid
from fvcore.experiments.select_kv.tokens import OffSample, OnSample, Segment, candidates, ids_of, on_sample
from fvcore.formats import read_json
from fvcore.prompts import PromptTemplate
from fvcore.trials import fixed as trials
from fvcore.trials import sampled
from fvcore.trials.fixed import PREFIXES, SEPARATORS, WordPair

ON_DRAW, OFF_DRAW = 1, 3
"""Which draws of the seed these are."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A relation shown and asked for. group: problems of one share their words, so that their answers are no accident"""

    group: str
    demos: tuple[WordPair, ...]
    query: WordPair
    template: PromptTemplate
    relation: str

    @property
    def answer(self) -> str:
        return self.query.output.strip()

    @property
    def labels(self) -> list[str]:
        return [pair.output.strip() for pair in self.demos]

    @property
    def text(self) -> str:
        return self.template.text(self.demos, self.query.input)

    @property
    def query_text(self) -> str:
        return "".join(text for text, _ in self.template.parts([], self.query.input)[-1])

    @property
    def segments(self) -> list[Segment]:
        """The demonstrations with their roles: the last character before a label is the arrow to it."""
        instructions, separator, *groups, _ = self.template.parts(self.demos, self.query.input)
        return [(text, "header") for text, _ in (*instructions, *separator)] + [
            segment for group in groups for segment in _segments([text for text, _ in group])
        ]


def _segments(parts: Sequence[str]) -> list[Segment]:
    question, word, between, before, label, end = parts
    arrow = max(len(before.rstrip()) - 1, 0)
    texts = (question, word, between, before[:arrow], before[arrow:], label, end)
    return list(zip(texts, ("header", "key", "newline", "header", "arrow", "value", "newline"), strict=True))


def on_samples(settings: Phase2, tokenizer: Any) -> list[OnSample]:
    n, on = settings.eval.on_samples, settings.data.on
    if on.path is None:
        problems = [_shipped(index, on.n_shots, settings.seed, ON_DRAW) for index in range(n)]
    else:
        problems = _first("eval.on_samples", n, of_files(on.path), on.path)
    apart = settings.eval.answer_scoring == "first_token"
    return [_on_sample(tokenizer, index, one, apart) for index, one in enumerate(problems)]


def _on_sample(tokenizer: Any, index: int, one: Problem, apart: bool) -> OnSample:
    found = on_sample(tokenizer, index, one.group, one.segments, one.query_text, one.answer, one.labels, apart)
    return replace(found, relation=one.relation)


def off_samples(settings: Phase2, tokenizer: Any) -> list[OffSample]:
    """Prompts whose own demonstrations fix their answer: what a state of another relation changes in them is a fault."""
    n, off = settings.eval.off_samples, settings.data.off
    if off.path is None:
        problems = _distinct(n, off.n_shots, settings.seed)
    else:
        read = of_files(off.path)
        problems = _first("eval.off_samples", n, read * (-(-n // len(read)) if off.allow_repeat else 1), off.path)
    return [_off_sample(tokenizer, index, one) for index, one in enumerate(problems)]


def _off_sample(tokenizer: Any, index: int, one: Problem) -> OffSample:
    # No OFF prompt is judged by its answer, so one that another label begins like may stay.
    answer = candidates(tokenizer, one.query_text, one.answer, one.labels, apart=False)
    return OffSample(index, f"off-{index:04}", one.group, one.text, ids_of(tokenizer, one.text), answer.first)


def _shipped(index: int, n_shots: int, seed: int, *draw: int) -> Problem:
    """Problem `index` takes the relation at that place, round and round, and draws its words."""
    known = relations()
    name = _in_turn()[index % len(known)]
    rows = list(known[name].items())
    if n_shots >= len(rows):
        raise OnTaskInvalid(f"{n_shots} shots and a query of {name}, which has {len(rows)} words; ask for fewer shots")
    rng = np.random.default_rng(np.random.SeedSequence([seed, *draw, index]))
    drawn = [rows[i] for i in rng.choice(len(rows), size=n_shots + 1, replace=False)]
    *demos, query = (WordPair(input=word, output=answer).spaced for word, answer in drawn)
    return Problem(group_of(known[name]), tuple(demos), query, PromptTemplate(PREFIXES, SEPARATORS), name)


@cache
def _in_turn() -> tuple[str, ...]:
    """The shipped relations, one of each group in turn, so that the first few samples are of all groups."""
    known = relations()
    groups = [[name for name, relation in known.items() if group_of(relation) == group] for group in GROUPS]
    return tuple(name for name in chain(*zip_longest(*groups)) if name is not None)


MANY_DRAWS = 100  # of one prompt, before it is said that there are no more


def _distinct(n: int, n_shots: int, seed: int) -> list[Problem]:
    found: dict[str, Problem] = {}
    for index in range(n):
        drawn = (_shipped(index, n_shots, seed, OFF_DRAW, again) for again in range(MANY_DRAWS))
        new = next((one for one in drawn if one.text not in found), None)
        if new is None:
            raise OnTaskInvalid(
                f"eval.off_samples is {n}, and the shipped relations give {len(found)} different prompts of {n_shots} shots; "
                "ask for fewer prompts or for more shots"
            )
        found[new.text] = new
    return list(found.values())


def of_files(path: Path) -> list[Problem]:
    """Of a trials file, or one of each in turn of all the sampled trials below a folder."""
    files = sorted(path.rglob(sampled.NAME)) if path.is_dir() else [path]
    if not files:
        raise OnTaskInvalid(f"{path}: expected trials, or a folder with {sampled.NAME} in it, found neither")
    return [one for one in chain(*zip_longest(*(list(_of_file(file)) for file in files))) if one is not None]


def _of_file(path: Path) -> Iterator[Problem]:
    path = shipped.file(path)
    value = read_json(path)
    if sampled.is_sampled(value):
        run = sampled.parse(value, str(path))
        names, fixed = [trial.q_id for trial in run.trials], sampled.as_fixed(run, path)
    else:
        fixed = trials.read(path)
        names = [fixed.dataset] * len(fixed.trials)
    template = PromptTemplate(fixed.meta.prefixes, fixed.meta.separators)
    for name, trial in zip(names, fixed.trials, strict=True):
        yield Problem(_group(trial, name), trial.demos, trial.query, template, name)


def _group(trial: trials.Trial, name: str) -> str:
    """The shipped words' group where a trial is of them; else what its file says it is of."""
    asked = {pair.input.strip() for pair in (*trial.demos, trial.query)}
    return next((group for group, words in GROUPS.items() if asked <= set(words)), name)


def _first(key: str, n: int, problems: Sequence[Problem], path: Path) -> list[Problem]:
    if n > len(problems):
        raise OnTaskInvalid(f"{key} is {n}, and {path} holds {len(problems)} trials; ask for as many or fewer")
    return list(problems[:n])
