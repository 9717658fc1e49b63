"""Where the trials of a run come from, before they are frozen in its sampled_trials.json (`fvcore.trials.sampled`).

Three sources give trials: a fixed-trials file, a dataset (`draw_dataset`, the draws of the format), and relations,
whose sampler lives with its experiment and hands its draws to `of_draws`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore import trials
from fvcore.experiments.errors import StepError
from fvcore.prompts import BosFacts, Tokenizer, prompt_at_boundary, require_verified
from fvcore.trials import FixedTrials, TrialsError, WordPair, labelled, model_tag
from fvcore.trials.draws import of_trial
from fvcore.trials.sampled import ALL, QId, SampledMeta, SampledTrial, SampledTrials, read, spaced, write

__all__ = ["ALL", "QId", "SampledMeta", "SampledTrial", "SampledTrials", "read", "write"]

ATTEMPTS = 200


# ---------------------------------------------------------------- from draws


@dataclass(frozen=True, slots=True)
class Draw:
    """The words of one trial, without leading space, before any tokenizer has seen them, and where they come from."""

    demos: tuple[WordPair, ...]
    corrupted: tuple[WordPair, ...]
    query: WordPair
    q_id: str = ALL
    query_source_index: int | None = None
    demo_source_indices: tuple[int, ...] | None = None
    demo_order: tuple[int, ...] | None = None


def of_draws(draws: Sequence[Draw], tokenizer: Tokenizer, meta: SampledMeta) -> SampledTrials:
    """Prompts and targets of drawn words, in the order given; the target is found on the corrupted prompt."""
    adds_bos = BosFacts.of(tokenizer).adds_bos
    tag = model_tag(getattr(tokenizer, "name_or_path", ""))
    meta = meta.model_copy(update={"n_trials": len(draws), "model_prepend_bos": adds_bos, "tokenizer": tag})
    template = meta.template(tokenizer)

    def text(demos: Sequence[WordPair], query: WordPair) -> str:
        words = [spaced(pair, meta.prepend_space) for pair in demos]
        return template.text(words, spaced(query, meta.prepend_space).input)

    found = []
    for idx, draw in enumerate(draws):
        corrupted, target = text(draw.corrupted, draw.query), spaced(draw.query, meta.prepend_space).output
        target_id = prompt_at_boundary(tokenizer, corrupted, target).target_id
        found.append(
            SampledTrial(
                q_id=draw.q_id,
                trial_idx=idx,
                clean_prompt_str=text(draw.demos, draw.query),
                corrupted_prompt_str=corrupted,
                corrupted_full_str=corrupted + target,
                target_str=target,
                target_first_token_id=target_id,
                target_token=tokenizer.decode([target_id]),
                demos_clean=list(draw.demos),
                demos_corrupted=list(draw.corrupted),
                query=draw.query,
                query_source_index=draw.query_source_index,
                demo_source_indices=_list(draw.demo_source_indices),
                demo_order=_list(draw.demo_order),
                trial_id=idx,
            )
        )
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
        *demos, (query_row, query) = of_trial(seed, trial).sample(list(rows.values()), n_shots + 1)
        words = tuple(pair for _, pair in demos)
        labels = moved_labels([pair.output for pair in words], of_trial(seed, trial))
        draws.append(
            Draw(
                demos=words,
                corrupted=tuple(labelled(words, labels)),
                query=query,
                query_source_index=query_row,
                demo_source_indices=tuple(row for row, _ in demos),
                demo_order=tuple(range(n_shots)),
            )
        )
    return draws


def moved_labels(labels: Sequence[str], rng: random.Random) -> list[str]:
    """The labels in an order in which none, by value, stands where it stood; shuffled if there is no such order at hand."""

    def all_moved(order: Sequence[str]) -> bool:
        return all(new != old for new, old in zip(order, labels, strict=True))

    for _ in range(ATTEMPTS):
        found = [labels[i] for i in rng.sample(range(len(labels)), len(labels))]
        if all_moved(found):
            return found
    rotated = [*labels[1:], *labels[:1]]
    if all_moved(rotated):
        return rotated
    shuffled = list(labels)
    rng.shuffle(shuffled)
    return shuffled


# ---------------------------------------------------------------- from fixed trials


def of_fixed(fixed: FixedTrials, tokenizer: Tokenizer) -> SampledTrials:
    """A fixed-trials file as it stands; its own number of shots and trials count. Raises what `verify` finds first."""
    try:
        require_verified(fixed, tokenizer)
    except TrialsError as error:
        raise StepError(str(error)) from None
    splits = fixed.file.splits
    words = [
        word
        for record in fixed.file.trials
        for pair in (*record.demos_clean, *record.demos_corrupted, record.query)
        for word in (pair.input, pair.output)
    ]
    has_space = all(word.startswith(" ") for word in words)
    meta = SampledMeta(
        source="fixed_trials_override",
        fixed_trials_path=None if fixed.path is None else fixed.path.as_posix(),
        seed=fixed.meta.seed,
        n_trials=len(fixed.trials),
        n_shots=fixed.meta.n_shots,
        n_demos=fixed.meta.n_shots,
        dataset_json=fixed.meta.dataset_json,
        prefixes=fixed.meta.prefixes,
        separators=fixed.meta.separators,
        model_prepend_bos=fixed.meta.model_prepend_bos,
        prepend_space=has_space,
        tokenizer=model_tag(fixed.meta.model_name_for_tokenizer),
    )

    def bare(pair: WordPair) -> WordPair:
        return WordPair(input=pair.input[1:], output=pair.output[1:]) if has_space else pair

    def rows(split: Sequence[int], positions: Sequence[int] | None) -> list[int] | None:
        return None if positions is None else [split[at] for at in positions]

    found = []
    for idx, record in enumerate(fixed.file.trials):
        query_at = None if record.query_index_in_valid is None else [record.query_index_in_valid]
        query_row = rows(splits.valid_indices, query_at) if splits else None
        found.append(
            SampledTrial(
                trial_idx=idx,
                clean_prompt_str=record.clean_prompt_str,
                corrupted_prompt_str=record.corrupted_prompt_str,
                corrupted_full_str=record.corrupted_prompt_str + record.target_str,
                target_str=record.target_str,
                target_first_token_id=record.target_first_token_id,
                target_token=tokenizer.decode([record.target_first_token_id]),
                demos_clean=[bare(pair) for pair in record.demos_clean],
                demos_corrupted=[bare(pair) for pair in record.demos_corrupted],
                query=bare(record.query),
                query_source_index=query_row[0] if query_row else None,
                demo_source_indices=rows(splits.train_indices, record.demo_indices_in_train) if splits else None,
                demo_order=list(range(fixed.meta.n_shots)),
                trial_id=record.trial_id,
            )
        )
    return SampledTrials(meta=meta, trials=found)


def _list(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else list(values)


# ---------------------------------------------------------------- sources


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

    def settings(self) -> dict[str, Any]:
        from fvcore.formats import sha256_file

        drawn = {"n_trials": self.n_trials, "n_shots": self.n_shots, "seed": self.seed}
        return {"source": "dataset_sampled", "dataset_sha256": sha256_file(self.path), **drawn}

    def sample(self, tokenizer: Tokenizer) -> SampledTrials:
        meta = SampledMeta(
            source="dataset_sampled",
            seed=self.seed,
            n_trials=self.n_trials,
            n_shots=self.n_shots,
            n_demos=self.n_shots,
            dataset_json=self.path.as_posix(),
        )
        return of_draws(
            draw_dataset(trials.read_pairs(self.path), self.n_trials, self.n_shots, self.seed), tokenizer, meta
        )
