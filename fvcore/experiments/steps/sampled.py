"""Where the trials of a run come from, before they are frozen in its sampled_trials.json (`fvcore.trials.sampled`).

Three sources give trials: a fixed-trials file, a dataset (`draw_dataset`, the draws of the format), and relations,
whose sampler lives with its experiment and hands its draws to `of_draws`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import ne
from pathlib import Path
from typing import Any

from fvcore.experiments.errors import StepError
from fvcore.formats import sha256_file
from fvcore.model.tokenizer import BosFacts, Tokenizer
from fvcore.prompts import prompt_at_boundary, require_verified
from fvcore.trials import fixed as trials
from fvcore.trials.draws import of_trial
from fvcore.trials.fixed import FixedTrials, TrialsError, WordPair, labelled, model_tag
from fvcore.trials.sampled import ALL, QId, SampledMeta, SampledTrial, SampledTrials, read, spaced, write

__all__ = ["ALL", "QId", "SampledMeta", "SampledTrial", "SampledTrials", "read", "write"]

ATTEMPTS = 200
OF_BOTH = ("seed", "n_shots", "dataset_json", "prefixes", "separators", "model_prepend_bos")
"""What the meta of fixed and of sampled trials both say, in one word."""


@dataclass(frozen=True)
class Draw:
    """The words of one trial, without leading space, before any tokenizer has seen them, and where they come from."""

    demos_clean: list[WordPair]
    demos_corrupted: list[WordPair]
    query: WordPair
    q_id: str = ALL
    query_source_index: int | None = None
    demo_source_indices: list[int] | None = None
    demo_order: list[int] | None = None

    @classmethod
    def of(
        cls, demos: Sequence[tuple[int, WordPair]], labels: Sequence[str], query: tuple[int, WordPair], q_id: str = ALL
    ) -> Draw:
        """Demonstrations and the query, each with its row, and the labels that the corrupted prompt shows."""
        words = [pair for _, pair in demos]
        return cls(
            demos_clean=words,
            demos_corrupted=labelled(words, labels),
            query=query[1],
            q_id=q_id,
            query_source_index=query[0],
            demo_source_indices=[row for row, _ in demos],
            demo_order=list(range(len(demos))),
        )

    def trial(
        self, trial_id: int, idx: int, prompts: tuple[str, str], target: str, target_id: int, tokenizer: Tokenizer
    ) -> SampledTrial:
        """As it is frozen, with its clean and its corrupted prompt."""
        clean, corrupted = prompts
        return SampledTrial(
            **vars(self),
            trial_idx=idx,
            clean_prompt_str=clean,
            corrupted_prompt_str=corrupted,
            corrupted_full_str=corrupted + target,
            target_str=target,
            target_first_token_id=target_id,
            target_token=tokenizer.decode([target_id]),
            trial_id=trial_id,
        )


def of_draws(draws: Sequence[Draw], tokenizer: Tokenizer, meta: SampledMeta) -> SampledTrials:
    """Prompts and targets of drawn words, in the order given; the target is found on the corrupted prompt."""
    adds_bos = BosFacts.of(tokenizer).adds_bos
    tag = model_tag(getattr(tokenizer, "name_or_path", ""))
    meta = meta.model_copy(update={"n_trials": len(draws), "model_prepend_bos": adds_bos, "tokenizer": tag})
    template = meta.template(tokenizer)

    def text(demos: Sequence[WordPair], query: WordPair) -> str:
        return template.text([spaced(pair, meta.prepend_space) for pair in demos], query.input)

    found = []
    for idx, draw in enumerate(draws):
        query = spaced(draw.query, meta.prepend_space)
        prompts = text(draw.demos_clean, query), text(draw.demos_corrupted, query)
        target_id = prompt_at_boundary(tokenizer, prompts[1], query.output).target_id
        found.append(draw.trial(idx, idx, prompts, query.output, target_id, tokenizer))
    return SampledTrials(meta=meta, trials=found)


def draw_dataset(pairs: Sequence[WordPair], n_trials: int, n_shots: int, seed: int) -> list[Draw]:
    """Trials from a dataset's rows: trial i has a generator of its own, seeded `seed + i`, for words and for labels.

    The source indices are row numbers of the dataset.
    """
    rows: dict[str, tuple[int, WordPair]] = {}
    for row, pair in enumerate(pairs):
        stripped = WordPair(input=pair.input.strip(), output=pair.output.strip())
        rows.setdefault(stripped.input, (row, stripped))
    if n_shots < 2:
        raise TrialsError(f"n_shots is {n_shots}; labels are moved among demonstrations, so at least 2 are needed")
    if len(rows) < n_shots + 1:
        raise TrialsError(f"{len(rows)} different inputs; {n_shots} shots and a query need {n_shots + 1} (--n-shots)")
    draws = []
    for trial in range(n_trials):
        *demos, query = of_trial(seed, trial).sample(list(rows.values()), n_shots + 1)
        labels = moved_labels([pair.output for _, pair in demos], of_trial(seed, trial))
        draws.append(Draw.of(demos, labels, query))
    return draws


def moved_labels(labels: Sequence[str], rng: random.Random) -> list[str]:
    """The labels in an order in which none, by value, stands where it stood; shuffled if there is no such order at hand."""
    orders = (rng.sample(range(len(labels)), len(labels)) for _ in range(ATTEMPTS))
    tried = chain(([labels[i] for i in order] for order in orders), [[*labels[1:], *labels[:1]]])
    if found := next((one for one in tried if all(map(ne, one, labels))), None):
        return found
    shuffled = list(labels)
    rng.shuffle(shuffled)
    return shuffled


def of_fixed(fixed: FixedTrials, tokenizer: Tokenizer) -> SampledTrials:
    """A fixed-trials file as it stands; its own number of shots and trials count. Raises what `verify` finds first."""
    try:
        require_verified(fixed, tokenizer)
    except TrialsError as error:
        raise StepError(str(error)) from None
    splits = fixed.file.splits
    pairs = [pair for one in fixed.file.trials for pair in (*one.demos_clean, *one.demos_corrupted, one.query)]
    has_space = all(word.startswith(" ") for pair in pairs for word in (pair.input, pair.output))
    meta = SampledMeta(
        source="fixed_trials_override",
        fixed_trials_path=None if fixed.path is None else trials.portable(fixed.path),
        n_trials=len(fixed.trials),
        n_demos=fixed.meta.n_shots,
        prepend_space=has_space,
        tokenizer=model_tag(fixed.meta.model_name_for_tokenizer),
        **{name: getattr(fixed.meta, name) for name in OF_BOTH},
    )

    def bare(pair: WordPair) -> WordPair:
        return WordPair(input=pair.input[1:], output=pair.output[1:]) if has_space else pair

    found = []
    for idx, record in enumerate(fixed.file.trials):
        query, demos = record.query_index_in_valid, record.demo_indices_in_train
        draw = Draw(
            demos_clean=[bare(pair) for pair in record.demos_clean],
            demos_corrupted=[bare(pair) for pair in record.demos_corrupted],
            query=bare(record.query),
            query_source_index=splits.valid_indices[query] if splits and query is not None else None,
            demo_source_indices=[splits.train_indices[at] for at in demos] if splits and demos is not None else None,
            demo_order=list(range(fixed.meta.n_shots)),
        )
        prompts, target = (record.clean_prompt_str, record.corrupted_prompt_str), record.target_str
        found.append(draw.trial(record.trial_id, idx, prompts, target, record.target_first_token_id, tokenizer))
    return SampledTrials(meta=meta, trials=found)


@dataclass(frozen=True, slots=True)
class FixedSource:
    path: Path

    def settings(self) -> dict[str, Any]:
        return {"source": "fixed_trials_override", "trials_sha256": trials.read(self.path).sha256}

    def sample(self, tokenizer: Tokenizer) -> SampledTrials:
        return of_fixed(trials.read(self.path), tokenizer)


@dataclass(frozen=True, slots=True)
class DatasetSource:
    path: Path
    n_trials: int = 10
    n_shots: int = 10
    seed: int = 0

    @property
    def _drawn(self) -> dict[str, Any]:
        return {"n_trials": self.n_trials, "n_shots": self.n_shots, "seed": self.seed}

    def settings(self) -> dict[str, Any]:
        return {"source": "dataset_sampled", "dataset_sha256": sha256_file(self.path), **self._drawn}

    def sample(self, tokenizer: Tokenizer) -> SampledTrials:
        dataset = trials.portable(self.path)
        meta = SampledMeta(source="dataset_sampled", n_demos=self.n_shots, dataset_json=dataset, **self._drawn)
        return of_draws(draw_dataset(trials.read_pairs(self.path), **self._drawn), tokenizer, meta)
