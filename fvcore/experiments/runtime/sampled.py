"""sampled_trials.json: the trials of a run, frozen once and read by every later step.

Three sources give trials: a fixed-trials file, a dataset (`draw_dataset`, the draws of the format), and relations,
whose sampler lives with its experiment and hands its draws to `of_draws`. In the file words stand without their leading
space where `meta.prepend_space` says that the prompt puts it back.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from fvcore import trials
from fvcore.experiments.runtime.errors import StepError
from fvcore.formats import read_json, write_json
from fvcore.prompts import BosFacts, PromptTemplate, Tokenizer, prompt_at_boundary, require_verified
from fvcore.trials import PREFIXES, SEPARATORS, FixedTrials, TemplatePart, Trial, TrialsError, WordPair

ALL = "__all__"
"""The q_id of trials that belong to no relation."""

ATTEMPTS = 200

Source: TypeAlias = Literal["relation_csv", "fixed_trials_override", "dataset_sampled"]
QId = Annotated[str, BeforeValidator(lambda value: ALL if value is None else value)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class SampledMeta(_Record):
    """The plan's keys, then what it takes to write the prompts again."""

    source: Source
    relation_csv_path: str | None = None
    fixed_trials_path: str | None = None
    seed: int
    n_trials: int
    n_shots: int
    n_demos: int
    dataset_json: str | None = None
    prefixes: TemplatePart = PREFIXES
    separators: TemplatePart = SEPARATORS
    model_prepend_bos: bool = False
    prepend_bos_token_used: bool = False
    prepend_space: bool = True

    @property
    def is_relation(self) -> bool:
        return self.source == "relation_csv"

    @property
    def target_regime(self) -> str:
        """On which prompt the target was found: fixed trials take the clean one."""
        return "clean" if self.source == "fixed_trials_override" else "corrupted"

    def template(self, tokenizer: Tokenizer) -> PromptTemplate:
        return PromptTemplate.of(self.as_trials_meta(), tokenizer)

    def as_trials_meta(self) -> trials.Meta:
        return trials.Meta(
            prefixes=self.prefixes, separators=self.separators, model_prepend_bos=self.model_prepend_bos, seed=self.seed
        )


class SampledTrial(_Record):
    q_id: QId = ALL
    trial_idx: int
    clean_prompt_str: str
    corrupted_prompt_str: str
    corrupted_full_str: str
    target_str: str
    target_first_token_id: int
    target_token: str
    demos_clean: list[WordPair]
    demos_corrupted: list[WordPair]
    query: WordPair
    query_source_index: int | None = None
    demo_source_indices: list[int] | None = None
    demo_order: list[int] | None = None
    trial_id: int

    def as_trial(self, prepend_space: bool) -> Trial:
        """The trial as the stations take it, words with their leading space."""
        clean, corrupted = (
            [_spaced(pair, prepend_space) for pair in pairs] for pairs in (self.demos_clean, self.demos_corrupted)
        )
        return Trial(
            trial_id=self.trial_id,
            trial_idx=self.trial_idx,
            demos=tuple(clean),
            query=_spaced(self.query, prepend_space),
            corrupted_labels=tuple(pair.output for pair in corrupted),
            target_id=self.target_first_token_id,
            clean_prompt=self.clean_prompt_str,
            corrupted_prompt=self.corrupted_prompt_str,
        )


class SampledTrials(_Record):
    meta: SampledMeta
    trials: list[SampledTrial]

    @property
    def q_ids(self) -> list[str]:
        """Sorted as strings."""
        return sorted({trial.q_id for trial in self.trials})


def read(path: Path) -> SampledTrials:
    try:
        found = SampledTrials.model_validate(read_json(path))
    except ValidationError as error:
        problem = error.errors()[0]
        raise TrialsError(f"{path}: key {'.'.join(map(str, problem['loc']))!r}: {problem['msg'].lower()}") from None
    keys = [(trial.trial_id, trial.trial_idx) for trial in found.trials]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise TrialsError(f"{path}: (trial_id, trial_idx) {twice} stands twice; trials are matched by them")
    if not keys or len(keys) != found.meta.n_trials:
        raise TrialsError(f"{path}: holds {len(keys)} trials, meta.n_trials says {found.meta.n_trials}")
    return found


def write(path: Path, sampled: SampledTrials) -> None:
    write_json(path, sampled.model_dump(mode="json"))


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
    meta = meta.model_copy(update={"n_trials": len(draws), "model_prepend_bos": adds_bos})
    template = meta.template(tokenizer)

    def text(demos: Sequence[WordPair], query: WordPair) -> str:
        spaced = [_spaced(pair, meta.prepend_space) for pair in demos]
        return template.text(spaced, _spaced(query, meta.prepend_space).input)

    found = []
    for idx, draw in enumerate(draws):
        corrupted, target = text(draw.corrupted, draw.query), _spaced(draw.query, meta.prepend_space).output
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
        *demos, (query_row, query) = random.Random(seed + trial).sample(list(rows.values()), n_shots + 1)
        words = tuple(pair for _, pair in demos)
        labels = moved_labels([pair.output for pair in words], random.Random(seed + trial))
        draws.append(
            Draw(
                demos=words,
                corrupted=tuple(WordPair(input=p.input, output=o) for p, o in zip(words, labels, strict=True)),
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
    spaced = all(word.startswith(" ") for word in words)
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
        prepend_space=spaced,
    )

    def bare(pair: WordPair) -> WordPair:
        return WordPair(input=pair.input[1:], output=pair.output[1:]) if spaced else pair

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


def _spaced(pair: WordPair, prepend_space: bool) -> WordPair:
    return WordPair(input=f" {pair.input}", output=f" {pair.output}") if prepend_space else pair


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
