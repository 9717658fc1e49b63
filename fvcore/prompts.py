"""Station 1: prompts and the token boundary.

A prompt is text and ids; its boundary is the first position after it, and the target token is found at that
boundary by tokenising prompt and answer together, never the answer alone
(`create_prompt`, `get_answer_id` in the reference's prompt_utils.py and eval_utils.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fvcore.formats import parting, sha256
from fvcore.model.tokenizer import BosFacts, Tokenizer
from fvcore.trials.draws import Splits
from fvcore.trials.fixed import (
    FixedTrials,
    Meta,
    TemplatePart,
    Trial,
    TrialRecord,
    TrialsError,
    TrialsFile,
    WordPair,
    file_name,
    sample,
    text_of,
)

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel

# The text the public reference puts in front of a prompt when the tokenizer adds no BOS by itself
# (its prompt_utils.py writes it out). Used by the `todd_upstream` profile alone.
UPSTREAM_BOS_TEXT = "<|endoftext|>"

REGIMES = ("clean", "corrupted")

Part: TypeAlias = tuple[str, str]
"""A part of a prompt: its text, and the label of the tokens that it makes."""


class BoundaryError(TrialsError):
    """Prompt and answer do not tokenise into the prompt's tokens followed by the answer's."""


class BosError(TrialsError):
    """The trials and the tokenizer disagree about a leading BOS token."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """What stands around the words of a prompt: before and behind inputs, outputs and instructions."""

    prefixes: TemplatePart
    separators: TemplatePart

    @classmethod
    def of(cls, meta: Meta, tokenizer: Tokenizer, bos_text: str = "") -> PromptTemplate:
        """The template of a trials file. A BOS string in front of the instructions is stripped once."""
        instructions = meta.prefixes.instructions.removeprefix(tokenizer.bos_token or tokenizer.eos_token or "")
        return cls(meta.prefixes.model_copy(update={"instructions": bos_text + instructions}), meta.separators)

    def text(self, demos: Sequence[WordPair], query: str) -> str:
        """The prompt up to and including the last output prefix; words carry their own leading space."""
        return "".join(part for group in self.parts(demos, query) for part, _ in group)

    def parts(self, demos: Sequence[WordPair], query: str) -> list[list[Part]]:
        """The prompt in labelled parts: the instructions' parts alone, six parts a demonstration, four for the query."""
        prefixes, separators = self.prefixes, self.separators
        groups = [[(prefixes.instructions, "bos_token")], [(separators.instructions, "separator_token")]]
        for k, demo in enumerate(demos, start=1):
            groups.append(
                [
                    (prefixes.input, "structural_token"),
                    (demo.input, f"demonstration_{k}_token"),
                    (separators.input, "separator_token"),
                    (prefixes.output, "structural_token"),
                    (demo.output, f"demonstration_{k}_label_token"),
                    (separators.output, "separator_token"),
                ]
            )
        groups.append(
            [
                (prefixes.input, "query_structural_token"),
                (query, "query_demonstration_token"),
                (separators.input, "query_separator_token"),
                (prefixes.output, "query_structural_token"),
            ]
        )
        return groups


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model reads it. `input_ids[:boundary]` is all of it; `target_id` comes next."""

    text: str
    input_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def boundary(self) -> int:
        return len(self.input_ids)

    @property
    def target_id(self) -> int:
        return self.answer_ids[0]


def prompt_at_boundary(tokenizer: Tokenizer, text: str, answer: str, add_special_tokens: bool = True) -> Prompt:
    """Tokenise `text` and `text + answer`; the answer's ids are what the second has more.

    Raises BoundaryError when the longer tokenisation does not begin with the shorter one.
    """
    if text.endswith(" ") and not answer.startswith(" "):
        text, answer = text[:-1], " " + answer
    source = tuple(tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
    full = tuple(tokenizer(text + answer, add_special_tokens=add_special_tokens).input_ids)
    tail = f"(prompt tail {text[-20:]!r}, answer {answer!r}, ids {list(source[-4:])} and {list(full[-6:])})"
    if not len(source) < len(full):
        raise BoundaryError(f"full tokenization does not extend prefix tokens {tail}")
    if len(full) >= tokenizer.model_max_length:
        limit = tokenizer.model_max_length
        raise BoundaryError(f"prompt and answer are {len(full)} tokens long, the model takes {limit}; use fewer shots")
    if full[: len(source)] != source:
        raise BoundaryError(
            f"prefix tokens mismatch full tokens at boundary {tail}; does the tokenizer append an end-of-text token?"
        )
    return Prompt(text, source, full[len(source) :])


def require_bos_agreement(tokenizer: Tokenizer, meta: Meta) -> BosFacts:
    """The trials' `model_prepend_bos` must be what the tokenizer does; raises BosError with the first ids."""
    facts = BosFacts.of(tokenizer)
    if facts.appends_eos:
        raise BosError(
            f"the tokenizer appends its end-of-text token (ids of 'Q: a': {list(facts.first_ids)}); the model would "
            "read past the end of the prompt. Use the model's tokenizer without an EOS template."
        )
    if facts.adds_bos != meta.model_prepend_bos:
        does, says = ("adds" if facts.adds_bos else "adds no"), meta.model_prepend_bos
        raise BosError(
            f"the tokenizer {does} BOS (ids of 'Q: a': {list(facts.first_ids)} with add_special_tokens, bos id "
            f"{facts.bos_token_id}), but the trials say model_prepend_bos = {str(says).lower()}: "
            f"the {'ids' if facts.adds_bos else 'slot labels'} would have one token more. These trials are for another tokenizer: make new ones "
            f"with `fvcore trials make --tokenizer ... --{'' if facts.adds_bos else 'no-'}prepend-bos`."
        )
    return facts


def trial_prompt(
    tokenizer: Tokenizer, trial: Trial, template: PromptTemplate, regime: str, add_special_tokens: bool = True
) -> Prompt:
    """A trial's prompt with its answer; regime: `clean`, `corrupted` or `zero_shot`. Raises BoundaryError, which names the trial."""
    demos = (trial.demos_by_regime | {"zero_shot": ()})[regime]
    try:
        text = template.text(demos, trial.query.input)
        return prompt_at_boundary(tokenizer, text, trial.query.output, add_special_tokens)
    except BoundaryError as error:
        raise BoundaryError(f"trial {trial.key}, {regime} prompt: {error}") from None


def sample_trials(tokenizer: Tokenizer, pairs: Sequence[WordPair], meta: Meta) -> TrialsFile:
    """Trials drawn from `pairs`, with prompts and target ids as this tokenizer makes them."""
    require_bos_agreement(tokenizer, meta)
    template = PromptTemplate.of(meta, tokenizer)
    return sample(pairs, meta, lambda *words: list(prompt_at_boundary(tokenizer, *words).answer_ids), template.text)


def make_trials(
    lm: LanguageModel,
    pairs: Iterable[tuple[str, str]],
    n_trials: int = 10,
    n_shots: int = 10,
    seed: int = 0,
    name: str = "pairs",
) -> FixedTrials:
    """Trials of a list of (word, answer), drawn as `fvcore trials make` draws them, for this model's tokenizer.

    Raises TrialsError for what is no such pair, and where there are too few of them.
    """
    rows = [_pair(number, pair) for number, pair in enumerate(pairs)]
    meta = Meta(
        dataset_json=f"{name}.json",
        seed=seed,
        n_trials=n_trials,
        n_shots=n_shots,
        model_name_for_tokenizer=lm.name,
        model_prepend_bos=BosFacts.of(lm.tokenizer).adds_bos,
    )
    file = sample_trials(lm.tokenizer, rows, meta)
    return FixedTrials(Path(file_name(meta)).stem, sha256(text_of(file).encode()), file)


def _pair(number: int, given: object) -> WordPair:
    match given:
        case (str(word), str(answer)) if word.strip() and answer.strip():
            return WordPair(input=word, output=answer)
    raise TrialsError(f"pair {number}: expected (word, answer), two texts of which none is empty, found {given!r:.60}")


def require_verified(trials: FixedTrials, tokenizer: Tokenizer) -> None:
    """Raise TrialsError with the first problem `verify` finds: no number is worth computing from such a file."""
    if problems := verify(trials, tokenizer):
        n = len(problems)
        raise TrialsError(f"{trials.id}: {problems[0]} ({n} problem(s) in all; `fvcore trials verify` lists them)")


def _empty(trial: Trial, record: TrialRecord, splits: Splits | None) -> str:
    """The first word of a trial that is empty, with the row of the dataset it was drawn from where the file says it."""
    drawn, asked = record.demo_indices_in_train, record.query_index_in_valid
    for k, demo in enumerate(trial.demos):
        if demo.lacks:
            row = splits.train_indices[drawn[k]] if splits and drawn else None
            return f"demonstration {k + 1}{_of_row(row)} has no {demo.lacks}"
    if trial.query.lacks:
        return f"the query{_of_row(splits.valid_indices[asked] if splits and asked is not None else None)} has no {trial.query.lacks}"
    return ""


def _of_row(row: int | None) -> str:
    return "" if row is None else f" (row {row} of the dataset)"


def verify(trials: FixedTrials, tokenizer: Tokenizer, first: int | None = None) -> list[str]:
    """What is wrong with a trials file under this tokenizer, one line each (empty: nothing)."""
    require_bos_agreement(tokenizer, trials.meta)
    template = PromptTemplate.of(trials.meta, tokenizer)
    problems = []
    for trial, record in list(zip(trials.trials, trials.file.trials, strict=True))[:first]:
        stored = {"clean": record.clean_prompt_str, "corrupted": record.corrupted_prompt_str}
        if empty := _empty(trial, record, trials.file.splits):
            problems.append(f"trial {trial.key}: {empty}")
            continue
        prompts = {regime: trial_prompt(tokenizer, trial, template, regime) for regime in REGIMES}
        for regime, prompt in prompts.items():
            if prompt.text != stored[regime]:
                shared = parting(prompt.text, stored[regime])
                at = "end" if shared in (len(prompt.text), len(stored[regime])) else shared
                problems.append(f"trial {trial.key}: {regime}_prompt_str differs from its parts at character {at}")
        answer = list(prompts[trials.target_regime].answer_ids)
        if record.answer_ids is not None and record.answer_ids != answer:
            problems.append(f"trial {trial.key}: answer_ids {record.answer_ids}, the tokenizer gives {answer}")
        if record.target_first_token_id != answer[0]:
            found = record.target_first_token_id
            problems.append(f"trial {trial.key}: target_first_token_id {found}, the tokenizer gives {answer[0]}")
        if record.target_str != record.query.output:
            problems.append(f"trial {trial.key}: target_str {record.target_str!r} is not the query's output")
    return problems
