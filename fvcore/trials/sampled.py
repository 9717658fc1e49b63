"""sampled_trials.json: the trials that a run froze, and the same trials as fixed trials.

In the file words stand without their leading space where `meta.prepend_space` says that the prompt puts it back. Read as
fixed trials they are what any other trials file is: the checks compare on them, and a golden is recorded of them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import quote

from pydantic import BeforeValidator, model_validator

from fvcore import names, shipped
from fvcore.formats import parting, read_json, sha256, twice, validated, write_json
from fvcore.model.tokenizer import Tokenizer
from fvcore.profile import Seed
from fvcore.prompts import PromptTemplate
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import (
    PREFIXES,
    SEPARATORS,
    FileRecord,
    FixedTrials,
    TemplatePart,
    Trial,
    TrialsError,
    WordPair,
)

ALL = "__all__"
"""The q_id of trials that belong to no relation."""

NAME = "sampled_trials.json"
SHOWN = 20  # characters on either side of where two texts part

Source: TypeAlias = Literal["relation_csv", "fixed_trials_override", "dataset_sampled"]
QId = Annotated[str, BeforeValidator(lambda value: ALL if value is None else value)]


class SampledMeta(FileRecord):
    """The plan's keys, then what it takes to write the prompts again. `tokenizer` is the last part of a file's name."""

    source: Source
    relation_csv_path: str | None = None
    fixed_trials_path: str | None = None
    seed: Seed
    n_trials: int
    n_shots: int
    n_demos: int
    dataset_json: str | None = None
    prefixes: TemplatePart = PREFIXES
    separators: TemplatePart = SEPARATORS
    model_prepend_bos: bool = False
    prepend_bos_token_used: bool = False
    prepend_space: bool = True
    tokenizer: str = ""

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
        """What a fixed-trials file would say; of a path its last part, for where a file lay decides nothing."""
        named = self.relation_csv_path if self.is_relation else self.dataset_json
        return trials.Meta(
            dataset_json=Path(named).name if named else "",
            seed=self.seed,
            n_trials=self.n_trials,
            n_shots=self.n_shots,
            prefixes=self.prefixes,
            separators=self.separators,
            model_name_for_tokenizer=self.tokenizer,
            model_prepend_bos=self.model_prepend_bos,
        )


class SampledTrial(FileRecord):
    """One trial. `trial_id` is the position where a file, as the original's, has none."""

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

    @model_validator(mode="before")
    @classmethod
    def _id_from_position(cls, value: Any) -> Any:
        return {"trial_id": value.get("trial_idx")} | value if isinstance(value, dict) else value

    def words(self, prepend_space: bool) -> tuple[list[WordPair], list[WordPair], WordPair]:
        """Demonstrations, corrupted ones and query, as the prompts have them."""
        clean, corrupted = (
            [spaced(pair, prepend_space) for pair in pairs] for pairs in (self.demos_clean, self.demos_corrupted)
        )
        return clean, corrupted, spaced(self.query, prepend_space)

    def as_trial(self, prepend_space: bool) -> Trial:
        """The trial as the stations take it, words with their leading space."""
        return Trial.of(self, self.trial_idx, *self.words(prepend_space))


class SampledTrials(FileRecord):
    meta: SampledMeta
    trials: list[SampledTrial]

    @property
    def q_ids(self) -> list[str]:
        """Sorted as strings."""
        return sorted({trial.q_id for trial in self.trials})


def read(path: Path) -> SampledTrials:
    return parse(read_json(path), str(path))


def parse(value: Any, name: str) -> SampledTrials:
    found = validated(SampledTrials, value, name, raises=TrialsError)
    if (key := twice((trial.trial_id, trial.trial_idx) for trial in found.trials)) is not None:
        raise TrialsError(f"{name}: (trial_id, trial_idx) {key} stands twice; trials are matched by them")
    if not found.trials or len(found.trials) != found.meta.n_trials:
        raise TrialsError(f"{name}: holds {len(found.trials)} trials, meta.n_trials says {found.meta.n_trials}")
    return found


def write(path: Path, sampled: SampledTrials) -> None:
    write_json(path, sampled.model_dump(mode="json"))


def spaced(pair: WordPair, prepend_space: bool) -> WordPair:
    return pair.spaced if prepend_space else pair


def read_trials(path: Path | str) -> FixedTrials:
    """The trials of a file, which is a fixed-trials file or a run's sampled_trials.json."""
    path = shipped.file(path)
    value = read_json(path)
    return as_fixed(parse(value, str(path)), path) if is_sampled(value) else trials.read(path)


def is_sampled(value: Any) -> bool:
    """Whether a JSON file's content is of this kind: its meta says where the trials come from."""
    meta = value.get("meta") if isinstance(value, dict) else None
    return isinstance(meta, dict) and "source" in meta


def as_fixed(sampled: SampledTrials, path: Path | None = None) -> FixedTrials:
    """The same trials as a fixed-trials file holds them, every word with its leading space.

    Every file of a run is called alike, so the id is made from what is in it: a q_id, or where the trials come from, then
    their numbers and the tokenizer. The digest is that of the fixed-trials file they make, whatever paths the run wrote
    down. Raises TrialsError, naming the trial, where a stored string is not what the words give.
    """
    name, meta = str(path or NAME), sampled.meta.as_trials_meta()
    records = [_record(trial, idx, sampled.meta, meta, name) for idx, trial in enumerate(sampled.trials)]
    file = trials.parse({"meta": meta.model_dump(), "trials": [record.model_dump() for record in records]}, name)
    digest = sha256(trials.text_of(file).encode())
    return FixedTrials(_id(sampled, name), digest, file, path, sampled.meta.target_regime)


def _record(stored: SampledTrial, idx: int, meta: SampledMeta, file_meta: trials.Meta, name: str) -> trials.TrialRecord:
    where = f"{name}: trial {idx} (trial_id {stored.trial_id})"
    if stored.trial_idx != idx:
        raise TrialsError(
            f"{where}: trial_idx is {stored.trial_idx}, its position is {idx}; is the file a part of one?"
        )
    clean, corrupted, query = stored.words(meta.prepend_space)
    template = PromptTemplate(meta.prefixes, meta.separators)
    rebuilt = {
        "clean_prompt_str": template.text(clean, query.input),
        "corrupted_prompt_str": template.text(corrupted, query.input),
        "target_str": query.output,
    }
    rebuilt["corrupted_full_str"] = rebuilt["corrupted_prompt_str"] + rebuilt["target_str"]
    for field, text in rebuilt.items():
        if (found := getattr(stored, field)) != text:
            at = parting(text, found)
            around = slice(max(0, at - SHOWN), at + SHOWN)
            raise TrialsError(
                f"{where}: {field} is not what its words give: from character {at} on expected {text[around]!r}, found "
                f"{found[around]!r}"
            )

    return trials.TrialRecord(
        trial_id=stored.trial_id,
        demos_clean=clean,
        demos_corrupted=corrupted,
        query=query,
        prompt_data_clean=trials.prompt_data(clean, query, file_meta),
        prompt_data_corrupted=trials.prompt_data(corrupted, query, file_meta),
        clean_prompt_str=stored.clean_prompt_str,
        corrupted_prompt_str=stored.corrupted_prompt_str,
        target_str=stored.target_str,
        target_first_token_id=stored.target_first_token_id,
    )


def _id(sampled: SampledTrials, name: str) -> str:
    """Different for every q_id: what a file's name cannot hold is written as in a URL, not dropped."""
    meta, q_ids = sampled.meta, sampled.q_ids
    if meta.fixed_trials_path:
        return names.made(f"sampled_{Path(meta.fixed_trials_path).stem}")
    first = "sampled"
    if meta.is_relation:
        first = quote(q_ids[0], safe=" ") if len(q_ids) == 1 else f"{len(q_ids)}_q_ids"
    parts = [first, f"t{meta.n_trials}", f"s{meta.n_shots}", f"seed{meta.seed}", meta.tokenizer]
    id = "_".join(part for part in parts if part)
    return names.part(id, f"{name}: the name of these trials, by q_id and tokenizer,", TrialsError)
