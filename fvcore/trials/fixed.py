"""Fixed trials: the same in-context problems for every implementation, sampled once and kept in a file.

The random draws, their order and the bytes of the file are those of the original project's trial maker
(specification of the formats: `docs/formats.md`), so that a file made here equals one made there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from fvcore import names, shipped
from fvcore.formats import FormatError, json_text, read_json, read_text, sha256, twice, validated, write_text
from fvcore.profile import Seed
from fvcore.trials.draws import Splits, draws, split


class TrialsError(FormatError):
    """A trials file, or a dataset that trials are drawn from, is not usable."""


def _first(value: Any) -> Any:
    """Several answers given as a list, or a list of lists: the first counts."""
    while isinstance(value, list) and value:
        value = value[0]
    return value


Word = Annotated[str, BeforeValidator(_first)]


class FileRecord(BaseModel):
    """A part of a file that people exchange: what it says beside its fields is left alone."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


WORDS = ("input", "output")


class WordPair(FileRecord):
    input: Word
    output: Word

    @property
    def lacks(self) -> str:
        """What of the pair is empty, or nothing."""
        return next((name for name in WORDS if not getattr(self, name).strip()), "")

    @property
    def spaced(self) -> WordPair:
        """The pair as a prompt has it: each word behind a space."""
        return WordPair(input=f" {self.input}", output=f" {self.output}")


def labelled(demos: Sequence[WordPair], labels: Iterable[str]) -> list[WordPair]:
    """The same inputs with other labels, in their order."""
    return [WordPair(input=demo.input, output=label) for demo, label in zip(demos, labels, strict=True)]


class TemplatePart(FileRecord):
    """What stands around an input, an output and the instructions; as prefixes or as separators."""

    input: str
    output: str
    instructions: str


PREFIXES = TemplatePart(input="Q:", output="A:", instructions="")
SEPARATORS = TemplatePart(input="\n", output="\n\n", instructions="")


class PromptData(FileRecord):
    instructions: str
    separators: TemplatePart
    prefixes: TemplatePart
    query_target: WordPair
    examples: list[WordPair]


class TrialRecord(FileRecord):
    """One trial as the file holds it, keys in the file's order. Words carry their leading space."""

    model_config = ConfigDict(populate_by_name=True)

    trial_id: int
    demo_indices_in_train: list[int] | None = None
    query_index_in_valid: int | None = None
    demos_clean: list[WordPair]
    demos_corrupted: list[WordPair]
    query: WordPair
    prompt_data_clean: PromptData
    prompt_data_corrupted: PromptData
    clean_prompt_str: str
    corrupted_prompt_str: str
    target_str: Word
    answer_ids: list[int] | None = None
    first_token_id: int | None = None
    target_first_token_id: int = Field(validation_alias=AliasChoices("target_first_token_id", "target_id"))


class Meta(FileRecord):
    dataset_json: str = ""
    seed: Seed = 0
    n_trials: int = 10
    n_shots: int = 10
    test_split: float = Field(default=0.3, ge=0, le=1)
    prefixes: TemplatePart = PREFIXES
    separators: TemplatePart = SEPARATORS
    model_name_for_tokenizer: str = "gpt2"
    model_prepend_bos: bool = False
    prepend_bos_token_used: bool | None = False


class TrialsFile(FileRecord):
    meta: Meta
    splits: Splits | None = None
    trials: list[TrialRecord]


@dataclass(frozen=True, slots=True)
class Trial:
    """One fixed in-context problem: demonstrations, a query, and the labels of its corrupted twin."""

    trial_id: int
    trial_idx: int
    demos: tuple[WordPair, ...]
    query: WordPair
    corrupted_labels: tuple[str, ...]
    target_id: int
    clean_prompt: str
    corrupted_prompt: str

    @classmethod
    def of(cls, record: Any, idx: int, clean: list[WordPair], corrupted: list[WordPair], query: WordPair) -> Trial:
        """Of a file's record, words with their leading space."""
        return cls(
            trial_id=record.trial_id,
            trial_idx=idx,
            demos=tuple(clean),
            query=query,
            corrupted_labels=tuple(pair.output for pair in corrupted),
            target_id=record.target_first_token_id,
            clean_prompt=record.clean_prompt_str,
            corrupted_prompt=record.corrupted_prompt_str,
        )

    @property
    def key(self) -> str:
        """`<trial_id>:<trial_idx>`: trials are matched by both and by nothing else."""
        return f"{self.trial_id}:{self.trial_idx}"

    @property
    def corrupted_demos(self) -> tuple[WordPair, ...]:
        return tuple(labelled(self.demos, self.corrupted_labels))

    @property
    def demos_by_regime(self) -> dict[str, tuple[WordPair, ...]]:
        return {"clean": self.demos, "corrupted": self.corrupted_demos}


@dataclass(frozen=True, slots=True)
class FixedTrials:
    """A trials file: its id (the file's stem), its digest, its settings and its trials.

    `target_regime` says on which prompt its makers found the target.
    """

    id: str
    sha256: str
    file: TrialsFile
    path: Path | None = None
    target_regime: str = "clean"

    def __repr__(self) -> str:
        return f"FixedTrials({self.id}: {len(self.file.trials)} trials of {self.meta.n_shots} shots)"

    @property
    def meta(self) -> Meta:
        return self.file.meta

    @property
    def dataset(self) -> str:
        """The dataset's name: the stem of the raw file."""
        return Path(self.meta.dataset_json).stem or self.id

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(
            Trial.of(record, idx, record.demos_clean, record.demos_corrupted, record.query)
            for idx, record in enumerate(self.file.trials)
        )


def read(path: Path | str) -> FixedTrials:
    """Read a fixed-trials file; every accepted variant of the format, and a located error for the rest."""
    path = shipped.file(path)
    text = read_text(path)
    id = names.part(path.stem, f"{path}: its name without the ending", TrialsError)
    return FixedTrials(id, sha256(text.encode()), parse(read_json(path), str(path)), path)


def parse(value: Any, name: str) -> TrialsFile:
    """`value` is the whole object, or a bare list, which then is the trials list."""
    if isinstance(value, list):
        value = {"meta": _meta_of(value), "trials": value}
    file = validated(TrialsFile, value, name, raises=TrialsError)
    if not file.trials:
        raise TrialsError(f"{name}: holds no trials; make some with `fvcore trials make`")
    dataset = Path(file.meta.dataset_json).stem
    if dataset and not names.is_part(dataset):
        raise TrialsError(
            f"{name}: meta.dataset_json {file.meta.dataset_json!r:.80} names no dataset: its goldens and reports lie in a "
            "folder of that name. Expected the path of a JSON file"
        )
    for idx, record in enumerate(file.trials):
        problem = _inconsistency(record, file.meta)
        if problem:
            raise TrialsError(f"{name}: trial {idx} (trial_id {record.trial_id}): {problem}")
    if len(file.trials) != file.meta.n_trials:
        n = len(file.trials)
        raise TrialsError(f"{name}: holds {n} trials, meta.n_trials says {file.meta.n_trials}; is the file truncated?")
    if (key := twice(record.trial_id for record in file.trials)) is not None:
        raise TrialsError(f"{name}: trial_id {key} stands twice; trials are matched by their ids")
    return file


def _meta_of(records: list[Any]) -> dict[str, Any]:
    """What a bare list says about itself: how many trials and shots, and the template of the first trial."""
    first = records[0] if records and isinstance(records[0], dict) else {}
    demos, data = first.get("demos_clean"), first.get("prompt_data_clean")
    template = {key: data[key] for key in ("prefixes", "separators") if key in data} if isinstance(data, dict) else {}
    return {"n_trials": len(records), "n_shots": len(demos) if isinstance(demos, list) else 0, **template}


def _inconsistency(record: TrialRecord, meta: Meta) -> str | None:
    for name in ("demos_clean", "demos_corrupted"):
        n = len(getattr(record, name))
        if n != meta.n_shots:
            return f"{name} has {n} demonstrations, meta.n_shots says {meta.n_shots}"
    for clean, corrupted in zip(record.demos_clean, record.demos_corrupted, strict=True):
        if clean.input != corrupted.input:
            return f"demos_corrupted has input {corrupted.input!r} where demos_clean has {clean.input!r}"
    for regime in ("clean", "corrupted"):
        data: PromptData = getattr(record, f"prompt_data_{regime}")
        if data.instructions:
            return (
                f"prompt_data_{regime}.instructions is {data.instructions!r}; instructions have no slots in the "
                "one-token-per-word prompt, so means over them would be misaligned. Leave them empty."
            )
        if (data.prefixes, data.separators) != (meta.prefixes, meta.separators):
            return f"prompt_data_{regime} has another template than meta (prefixes, separators)"
    ids = {"target_first_token_id": record.target_first_token_id, "first_token_id": record.first_token_id}
    if record.answer_ids is not None:
        if not record.answer_ids:
            return "answer_ids is empty"
        ids["answer_ids[0]"] = record.answer_ids[0]
    known = {name: value for name, value in ids.items() if value is not None}
    if len(set(known.values())) > 1:
        return "the first answer token has several values: " + ", ".join(f"{k} {v}" for k, v in known.items())
    return None


def text_of(file: TrialsFile) -> str:
    """The file's exact bytes: key order of the format, indent 2, ASCII, no final newline."""
    return json_text(file.model_dump(mode="json"))


def write(path: Path, file: TrialsFile) -> None:
    write_text(path, text_of(file))


def raw_file(given: Path | str) -> Path:
    """A raw dataset's file: as given, or what ships under that name or path."""
    return shipped.file(given)


def read_pairs(path: Path, without_empty: bool = False) -> list[WordPair]:
    """A raw dataset: a JSON list of {"input", "output"} rows, in file order; numbers as the reference writes them.

    without_empty: rows without input or answer are left out; otherwise they are refused, by the number of the first
    """
    rows = read_json(raw_file(path))
    if not isinstance(rows, list):
        raise TrialsError(f"{path}: expected a list of {{input, output}} rows, found {type(rows).__name__}")
    pairs = validated(list[WordPair], _with_text(rows), path, raises=TrialsError)
    empty = [row for row, pair in enumerate(pairs) if pair.lacks]
    if empty and not without_empty:
        raise TrialsError(
            f"{path}: row {empty[0]} has no {pairs[empty[0]].lacks} ({len(empty)} of {len(pairs)} rows lack one); a prompt "
            "cannot end in it. Take such rows out, or leave them out with --without-empty-rows"
        )
    return [pair for pair in pairs if not pair.lacks]


def _with_text(rows: list[Any]) -> list[Any]:
    """Numbers as text. The reference reads a column as a whole: where all are numbers and one is none of the integers, all
    are written as such."""
    kinds = {key: {type(_first(row.get(key))) for row in rows if isinstance(row, dict)} for key in WORDS}

    def text(key: str, value: Any) -> Any:
        value = _first(value)
        if type(value) not in {int, float}:
            return value
        return str(float(value) if float in kinds[key] <= {int, float} else value)

    return [{key: text(key, row[key]) for key in WORDS if key in row} if isinstance(row, dict) else row for row in rows]


def sample(
    pairs: Sequence[WordPair],
    meta: Meta,
    answer_ids: Callable[[str, str], list[int]],
    prompt_text: Callable[[Sequence[WordPair], str], str],
) -> TrialsFile:
    """Sample a whole trials file.

    `answer_ids(prompt, answer)` tokenises the answer at the prompt's boundary; `prompt_text(demos, query)`
    writes a prompt. Both are handed in because a trial's words do not depend on a tokenizer.
    """
    splits = split(len(pairs), meta.test_split, meta.seed)
    n_train, n_valid = len(splits.train_indices), len(splits.valid_indices)
    if n_train < meta.n_shots or n_valid < 1:
        raise TrialsError(
            f"{meta.dataset_json}: {len(pairs)} rows give {n_train} training and {n_valid} validation rows; "
            f"{meta.n_shots} shots need at least {meta.n_shots} and 1. Use fewer shots or a larger dataset."
        )
    if meta.n_trials < 1:
        raise TrialsError(f"n_trials is {meta.n_trials}; at least one trial is needed")
    records = []
    for trial_id, draw in enumerate(draws(n_train, n_valid, meta.n_trials, meta.n_shots, meta.seed)):
        demos = [pairs[splits.train_indices[i]].spaced for i in draw.demos]
        query = pairs[splits.valid_indices[draw.query]].spaced
        corrupted = labelled(demos, [demos[i].output for i in draw.label_order])
        clean_prompt = prompt_text(demos, query.input)
        ids = answer_ids(clean_prompt, query.output)
        records.append(
            TrialRecord(
                trial_id=trial_id,
                demo_indices_in_train=list(draw.demos),
                query_index_in_valid=draw.query,
                demos_clean=demos,
                demos_corrupted=corrupted,
                query=query,
                prompt_data_clean=prompt_data(demos, query, meta),
                prompt_data_corrupted=prompt_data(corrupted, query, meta),
                clean_prompt_str=clean_prompt,
                corrupted_prompt_str=prompt_text(corrupted, query.input),
                target_str=query.output,
                answer_ids=ids,
                first_token_id=ids[0],
                target_first_token_id=ids[0],
            )
        )
    return TrialsFile(meta=meta, splits=splits, trials=records)


def prompt_data(demos: list[WordPair], query: WordPair, meta: Meta) -> PromptData:
    return PromptData(
        instructions="", separators=meta.separators, prefixes=meta.prefixes, query_target=query, examples=demos
    )


def model_tag(name: str) -> str:
    """`meta-llama/Llama-3.1-8B` -> `llama_3_1_8b`: the last part of a trials file's name."""
    return re.sub(r"[^a-z0-9]+", "_", Path(name.rstrip("/")).name.lower()).strip("_")


def portable(path: str | Path) -> str:
    """A path as a file may hold it that people exchange: from the current folder on, and of one outside of it its name.

    A shipped name or a hub id stays as it is, and a file that ships has its path in the project.
    """
    given = Path(path).expanduser()
    if not given.is_absolute() and ".." not in given.parts:
        return given.as_posix()
    full, homes = given.resolve(), (Path.cwd().resolve(), shipped.root().resolve())
    return next((full.relative_to(home).as_posix() for home in homes if full.is_relative_to(home)), full.name)


def file_name(meta: Meta) -> str:
    dataset, tag = Path(meta.dataset_json).stem, model_tag(meta.model_name_for_tokenizer)
    return f"fixed_trials_{dataset}_t{meta.n_trials}_s{meta.n_shots}_seed{meta.seed}_{tag}.json"


def same_draws(file: TrialsFile, pairs: Sequence[WordPair], first: int | None = None) -> list[str]:
    """Sample again from the raw rows; what differs from the file, trial by trial (empty: nothing)."""
    again = sample(pairs, file.meta, answer_ids=lambda prompt, answer: [0], prompt_text=lambda demos, query: "")
    problems = [] if file.splits in (None, again.splits) else ["splits differ from a fresh split of the dataset"]
    fields = ("demo_indices_in_train", "query_index_in_valid", "demos_clean", "demos_corrupted", "query")
    for idx, (have, want) in enumerate(zip(file.trials[:first], again.trials, strict=False)):
        for name in fields:
            if getattr(have, name) != getattr(want, name):
                problems.append(f"trial {idx}: {name} differs from a fresh sample with seed {file.meta.seed}")
    return problems
