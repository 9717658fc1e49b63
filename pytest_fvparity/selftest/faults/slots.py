"""Faults of station 2, the slot map.

fvcore refuses most of these prompts before it maps them. A candidate has no such guards, so these have none either:
what does not fit is cut to the shorter, as in the reference, and the comparison must see it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fvcore import artifacts, slots
from fvcore.artifacts import Artifact
from fvcore.embedded.random_models import JOINING, WITHOUT_BOS, trials_for
from fvcore.pipeline import Pipeline
from fvcore.prompts import REGIMES, PromptTemplate
from fvcore.slots import QUERY_PREDICTIVE, Part, SlotMap, token_labels
from fvcore.trials import PREFIXES, SEPARATORS, TemplatePart, Trial, WordPair
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.selftest.bed import TRIALS, Bed, Recorded, bed_of
from pytest_fvparity.selftest.catalogue import Observed, Outcome, candidate_fault, fault, observed

KEY = "slot_map"


class CutSlotMap(SlotMap):
    """A map that says something of every prompt: -1 where a token or a slot is not found."""

    @property
    def full_idx_map(self) -> dict[int, int]:
        found = {label: r for label, r in self.idx_avg.items() if r[0] in self.idx_map}
        whole = SlotMap(self.labels, self.idx_map, found, self.n_slots)
        return whole.full_idx_map

    @property
    def query_predictive_token(self) -> int:
        return self.labels.index(QUERY_PREDICTIVE) if QUERY_PREDICTIVE in self.labels else -1

    @property
    def query_predictive_slot(self) -> int:
        return self.idx_map.get(self.query_predictive_token, -1)


class Unguarded(Pipeline):
    """Station 2 as the reference has it. What a fault changes is a property here."""

    @property
    def prepend_bos(self) -> bool:
        return self.trials.meta.model_prepend_bos

    @property
    def label_template(self) -> PromptTemplate:
        return self.template

    @property
    def dummy_template(self) -> PromptTemplate:
        return self.label_template

    @cached_property
    def dummy_labels(self) -> list[str]:
        n_shots = self.trials.meta.n_shots
        return slots.dummy_labels(self.lm.tokenizer, self.dummy_template, n_shots, self.prepend_bos, ref_compat=True)

    def slots(self, trial: Trial, regime: str) -> SlotMap:
        found = slots.slot_map(
            self.lm.tokenizer,
            self.label_template,
            {"clean": trial.demos, "corrupted": trial.corrupted_demos}[regime],
            trial.query.input,
            self.dummy_labels,
            self.prepend_bos,
            ref_compat=True,
        )
        return CutSlotMap(**{field.name: getattr(found, field.name) for field in fields(found)})

    def slot_map(self, prompts: Artifact) -> Artifact:
        cut = dict(prompts)
        for trial in self.trials.trials:
            for regime in REGIMES:
                ids: Any = prompts[f"{trial.key}/{regime}/input_ids"]
                cut[f"{trial.key}/{regime}/input_ids"] = ids[: len(self.slots(trial, regime).labels)]
        return super().slot_map(cut)


def unguarded(bed: Bed, **stations: Any) -> Unguarded:
    planted: type[Unguarded] = type("Planted", (Unguarded,), stations)
    return planted(bed.lm, bed.trials, bed.settings)


@contextmanager
def labelled_by(bed: Bed, labels: Callable[..., Any]) -> Iterator[Implementation]:
    """A candidate whose token labels come from another function."""
    with patch.object(slots, "token_labels", labels):
        yield unguarded(bed)


Groups = Sequence[Sequence[Part]]


@candidate_fault(
    "F14",
    "mutable default label list shared between calls",
    "one list takes the labels of every prompt",
    KEY,
    "from the second prompt on, labels begin with those of the first",
)
def shared_label_list(bed: Bed) -> Any:
    shared = ["bos_token"] if bed.trials.meta.model_prepend_bos else []

    def labels(tokenizer: Any, groups: Groups, prepend_bos: bool, ref_compat: bool = False) -> Any:
        found = token_labels(tokenizer, groups, False, ref_compat)
        shared.extend(found.labels)
        return replace(found, labels=shared)

    return labelled_by(bed, labels)


@candidate_fault(
    "F15",
    "labels from character offsets",
    "a token gets the label of the part that its first character stands in",
    KEY,
    "GPT-2's second newline is separator instead of structural; elsewhere joined punctuation keeps the word's label",
)
def labels_by_offset(bed: Bed) -> Any:
    def labels(tokenizer: Any, groups: Groups, prepend_bos: bool, ref_compat: bool = False) -> Any:
        parts = [(part, label, position) for group in groups for position, (part, label) in enumerate(group)]
        owner = [number for number, (part, _, _) in enumerate(parts) for _ in part]
        text = "".join(part for part, _, _ in parts)
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        of_token = [owner[start] for start, _ in offsets]
        found = ["bos_token"] * prepend_bos
        for token, number in enumerate(of_token):
            _, label, position = parts[number]
            if position == 3 and number not in of_token[token + 1 :]:
                label = label.replace("structural", "predictive")
            if position == 5 and number not in of_token[:token]:
                label = "end_of_example_token"
            found.append(label)
        return replace(token_labels(tokenizer, [], prepend_bos), labels=found)

    return labelled_by(bed, labels)


@candidate_fault(
    "F16",
    "BOS flag mismatch, in both directions",
    "prepend_bos is flipped where tokens are labelled, and nowhere else",
    KEY,
    "where there is a BOS the last token has no label; where there is none no token predicts",
)
def flipped_bos_flag(bed: Bed) -> Implementation:
    return unguarded(bed, prepend_bos=property(lambda self: not self.trials.meta.model_prepend_bos))


@candidate_fault(
    "F17",
    "empty output prefix, so no token is marked as predicting",
    "the same text is declared as input separator '\\nA:' and an empty output prefix",
    KEY,
    "no query_predictive_token; chained, every indirect effect is 0",
)
def no_predictive_label(bed: Bed) -> Implementation:
    meta = bed.trials.meta
    template = PromptTemplate(
        meta.prefixes.model_copy(update={"output": ""}),
        meta.separators.model_copy(update={"input": meta.separators.input + meta.prefixes.output}),
    )
    return unguarded(bed, label_template=template)


@fault(
    "F18",
    "a demonstration that merges with the newline after it",
    "a demonstration's input is '?', which is one token together with its separator; the golden is upstream's, which "
    "lets it pass",
    Outcome.ERRORS,
    KEY,
    "one slot is missing; the error names trial, regime and demonstration",
    families=JOINING,  # GPT-2's tokenizer keeps the newline apart
)
def swallowed_demonstration(bed: Bed) -> Observed:
    word = bed.trials.trials[0].demos[1].input.strip()

    def edit(rows: list[WordPair]) -> None:
        rows[:] = [WordPair(input="?" if row.input == word else row.input, output=row.output) for row in rows]

    trials = trials_for(bed.lm, edit=edit, **TRIALS)
    upstream = Unguarded(bed.lm, trials, bed.settings)
    prompts = upstream.prompt_boundary()
    golden = Recorded({"prompt_boundary": prompts, "slot_map": upstream.slot_map(prompts)})
    return observed(replace(bed, trials=trials, golden=golden).judge(Pipeline(bed.lm, trials, bed.settings)))


@candidate_fault(
    "F19",
    "an output separator that merged with the word is treated as end_of_example",
    "whatever token the output separator ends in ends the example",
    KEY,
    "one label an example",
    families=JOINING,  # GPT-2's tokenizer keeps the separator apart
)
def merged_separator_ends_example(bed: Bed) -> Any:
    def labels(tokenizer: Any, groups: Groups, prepend_bos: bool, ref_compat: bool = False) -> Any:
        found = token_labels(tokenizer, groups, prepend_bos, ref_compat)
        text = ""
        for group in groups:
            for position, (part, _) in enumerate(group):
                text += part
                if position == 5:
                    found.labels[prepend_bos + len(tokenizer.tokenize(text)) - 1] = "end_of_example_token"
        return found

    return labelled_by(bed, labels)


@candidate_fault(
    "F20",
    "averaging ranges off by one",
    "ranges exclude their end; ranges begin at the second token",
    KEY,
    "a bound of every range",
)
def ranges_off_by_one(bed: Bed) -> list[Implementation]:
    def moved(by: tuple[int, int]) -> Implementation:
        def ranges(self: Unguarded, trial: Trial, regime: str) -> SlotMap:
            found = Unguarded.slots(self, trial, regime)
            moved = {label: (first + by[0], last + by[1]) for label, (first, last) in found.idx_avg.items()}
            return replace(found, idx_avg=moved)

        return unguarded(bed, slots=ranges)

    return [moved((0, 1)), moved((1, 0))]


@candidate_fault(
    "F21",
    "keys of idx_map become strings after JSON",
    "the candidate's slot map comes out of a file: in the harness's own form, and with its maps as JSON objects",
    KEY,
    "a false mismatch, if the form were compared and not the map",
    Outcome.PASSES,
)
def slot_map_from_json(bed: Bed) -> list[Implementation]:
    def through_a_file(self: Pipeline, prompts: Artifact) -> Artifact:
        with tempfile.TemporaryDirectory() as folder:
            artifacts.save(Pipeline.slot_map(self, prompts), Path(folder) / KEY)
            return artifacts.load(Path(folder) / KEY)

    def with_objects(self: Pipeline, prompts: Artifact) -> Artifact:
        found: dict[str, Any] = dict(Pipeline.slot_map(self, prompts))
        for leaf in found:
            if leaf.endswith("idx_map"):
                found[leaf] = dict(found[leaf])
            if leaf.endswith("idx_avg"):
                found[leaf] = {label: [first, last] for label, first, last in found[leaf]}
        read_back: dict[str, Any] = json.loads(json.dumps(found))
        return read_back

    return [bed.candidate(slot_map=through_a_file), bed.candidate(slot_map=with_objects)]


@fault(
    "F22",
    "dummy prompt built with the default template while trials use another",
    "trials say Input: and Output:, the dummy prompt Q: and A:",
    Outcome.FAILS,
    KEY,
    "number of slots",
)
def default_dummy(bed: Bed) -> Observed:
    other = TemplatePart(input="Input:", output="Output:", instructions="")
    there = bed_of(bed.family, bed.lm, trials_for(bed.lm, prefixes=other, **TRIALS), bed.settings)
    return observed(there.judge(unguarded(there, dummy_template=PromptTemplate(PREFIXES, SEPARATORS))))


@fault(
    "F75",
    "BOS string in real prompts but not in the dummy prompt",
    "golden and candidate are of profile todd_upstream; the candidate's dummy prompt lacks the string",
    Outcome.FAILS,
    KEY,
    "the map is as long as the dummy prompt, and the last token is in no slot",
    families=WITHOUT_BOS,  # the string is written only where the tokenizer adds no BOS
)
def dummy_without_bos(bed: Bed) -> Observed:
    settings = replace(bed.settings, reference_profile="todd_upstream")
    there = bed_of(bed.family, bed.lm, bed.trials, settings)
    plain = PromptTemplate.of(bed.trials.meta, bed.lm.tokenizer)
    return observed(there.judge(unguarded(there, dummy_template=plain)))
