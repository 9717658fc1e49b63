"""Faults of station 2, the slot map.

fvcore refuses most of these prompts before it maps them. A candidate has no such guards, so these have none either:
what does not fit is cut to the shorter, as in the reference, and the comparison must see it.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from fvcore import artifacts
from fvcore.artifacts import Artifact
from fvcore.embedded.random_models import trials_for
from fvcore.pipeline import Pipeline
from fvcore.prompts import REGIMES, Part, PromptTemplate
from fvcore.slots import DUMMY_WORD, QUERY_PREDICTIVE, SlotMap, token_labels, words_of
from fvcore.trials.fixed import PREFIXES, SEPARATORS, TemplatePart, Trial, WordPair
from pytest_fvparity.selftest.catalogue import Observed, Plant, Plants, observed, on, replacing
from pytest_fvparity.selftest.rig import TRIALS, Recorded, Rig

Groups = Sequence[Sequence[Part]]


class CutSlotMap(SlotMap):
    """A map that says something of every prompt: -1 where a token or a slot is not found."""

    @property
    def full_idx_map(self) -> dict[int, int]:
        mapped = {label: r for label, r in self.idx_avg.items() if r[0] in self.idx_map}
        whole = SlotMap(self.labels, self.idx_map, mapped, self.n_slots)
        return whole.full_idx_map

    @property
    def query_predictive_token(self) -> int:
        return self.labels.index(QUERY_PREDICTIVE) if QUERY_PREDICTIVE in self.labels else -1

    @property
    def query_predictive_slot(self) -> int:
        return self.idx_map.get(self.query_predictive_token, -1)


def labels_of(tokenizer: Any, groups: Groups, prepend_bos: bool) -> list[str]:
    return token_labels(tokenizer, groups, prepend_bos)[0]


class Unguarded(Pipeline):
    """Station 2 as the reference has it. What a fault changes is a property or a method here."""

    labels_of = staticmethod(labels_of)

    @property
    def prepend_bos(self) -> bool:
        return self.trials.meta.model_prepend_bos

    @property
    def label_template(self) -> PromptTemplate:
        return self.template

    @property
    def dummy_template(self) -> PromptTemplate:
        return self.label_template

    def labels(self, template: PromptTemplate, demos: Sequence[WordPair], query: str) -> list[str]:
        """Not more than there are tokens."""
        labels = self.labels_of(self.lm.tokenizer, template.parts(demos, query), self.prepend_bos)
        return labels[: len(self.lm.tokenizer(template.text(demos, query)).input_ids)]

    @cached_property
    def dummy_labels(self) -> list[str]:
        demos = [WordPair(input=DUMMY_WORD, output=DUMMY_WORD)] * self.trials.meta.n_shots
        return self.labels(self.dummy_template, demos, DUMMY_WORD)

    def slots(self, trial: Trial, regime: str) -> SlotMap:
        demos = {"clean": trial.demos, "corrupted": trial.corrupted_demos}[regime]
        labels = self.labels(self.label_template, demos, trial.query.input)
        kept, ranges = words_of(labels)
        n_slots = len(self.dummy_labels)
        return CutSlotMap(tuple(labels), dict(zip(kept, range(n_slots), strict=False)), ranges, n_slots)

    def slot_map(self, prompts: Artifact) -> Artifact:
        cut = dict(prompts)
        for trial in self.trials.trials:
            for regime in REGIMES:
                ids: Any = prompts[f"{trial.key}/{regime}/input_ids"]
                cut[f"{trial.key}/{regime}/input_ids"] = ids[: len(self.slots(trial, regime).labels)]
        return super().slot_map(cut)


def unguarded(**changes: Any) -> Plant:
    return replacing(base=Unguarded, **changes)


def shared_label_list(rig: Rig) -> Observed:
    shared = ["bos_token"] * rig.trials.meta.model_prepend_bos

    def labels(tokenizer: Any, groups: Groups, prepend_bos: bool) -> list[str]:
        shared.extend(labels_of(tokenizer, groups, False))
        return shared

    return unguarded(labels_of=staticmethod(labels))(rig)


def labels_by_offset(tokenizer: Any, groups: Groups, prepend_bos: bool) -> list[str]:
    parts = [(part, label, position) for group in groups for position, (part, label) in enumerate(group)]
    owner = [number for number, (part, _, _) in enumerate(parts) for _ in part]
    text = "".join(part for part, _, _ in parts)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    of_token = [owner[start] for start, _ in offsets]
    labels = ["bos_token"] * prepend_bos
    for token, number in enumerate(of_token):
        _, label, position = parts[number]
        if position == 3 and number not in of_token[token + 1 :]:
            label = label.replace("structural", "predictive")
        if position == 5 and number not in of_token[:token]:
            label = "end_of_example_token"
        labels.append(label)
    return labels


def merged_separator_ends_example(tokenizer: Any, groups: Groups, prepend_bos: bool) -> list[str]:
    labels, text = labels_of(tokenizer, groups, prepend_bos), ""
    for group in groups:
        for position, (part, _) in enumerate(group):
            text += part
            if position == 5:
                labels[prepend_bos + len(tokenizer.tokenize(text)) - 1] = "end_of_example_token"
    return labels


def prefix_in_the_separator(self: Pipeline) -> PromptTemplate:
    meta = self.trials.meta
    return PromptTemplate(
        meta.prefixes.model_copy(update={"output": ""}),
        meta.separators.model_copy(update={"input": meta.separators.input + meta.prefixes.output}),
    )


def swallowed_demonstration(rig: Rig) -> Observed:
    word = rig.trials.trials[0].demos[1].input.strip()

    def edit(rows: list[WordPair]) -> None:
        rows[:] = [WordPair(input="?" if row.input == word else row.input, output=row.output) for row in rows]

    trials = trials_for(rig.lm, edit=edit, **TRIALS)
    upstream = Unguarded(rig.lm, trials, rig.settings)
    prompts = upstream.prompt_boundary()
    golden = Recorded({"prompt_boundary": prompts, "slot_map": upstream.slot_map(prompts)})
    return observed(replace(rig, trials=trials, golden=golden).judge(rig.candidate(trials=trials)))


def ranges_moved(first_by: int, last_by: int) -> Plant:
    def slots(self: Unguarded, trial: Trial, regime: str) -> SlotMap:
        right = Unguarded.slots(self, trial, regime)
        moved = {label: (first + first_by, last + last_by) for label, (first, last) in right.idx_avg.items()}
        return replace(right, idx_avg=moved)

    return unguarded(slots=slots)


def through_a_file(self: Pipeline, prompts: Artifact) -> Artifact:
    with tempfile.TemporaryDirectory() as folder:
        artifacts.save(Pipeline.slot_map(self, prompts), Path(folder) / "slot_map")
        return artifacts.load(Path(folder) / "slot_map")


def through_json_objects(self: Pipeline, prompts: Artifact) -> Artifact:
    leaves: dict[str, Any] = dict(Pipeline.slot_map(self, prompts))
    for leaf in leaves:
        if leaf.endswith("idx_map"):
            leaves[leaf] = dict(leaves[leaf])
        if leaf.endswith("idx_avg"):
            leaves[leaf] = {label: [first, last] for label, first, last in leaves[leaf]}
    return cast("dict[str, Any]", json.loads(json.dumps(leaves)))


def worded_otherwise(rig: Rig) -> Rig:
    other = TemplatePart(input="Input:", output="Output:", instructions="")
    return Rig.recorded(rig.lm, trials_for(rig.lm, prefixes=other, **TRIALS), rig.settings)


PLANTS: dict[str, Plants] = {
    "F14": shared_label_list,
    "F15": unguarded(labels_of=staticmethod(labels_by_offset)),
    "F16": unguarded(prepend_bos=property(lambda self: not self.trials.meta.model_prepend_bos)),
    "F17": unguarded(label_template=property(prefix_in_the_separator)),
    "F18": swallowed_demonstration,
    "F19": unguarded(labels_of=staticmethod(merged_separator_ends_example)),
    "F20": (ranges_moved(0, 1), ranges_moved(1, 0)),
    "F21": (replacing(slot_map=through_a_file), replacing(slot_map=through_json_objects)),
    "F22": on(worded_otherwise, unguarded(dummy_template=PromptTemplate(PREFIXES, SEPARATORS))),
    "F75": on(
        lambda rig: rig.on(rig.lm, reference_profile="todd_upstream"),
        unguarded(dummy_template=property(lambda self: PromptTemplate.of(self.trials.meta, self.lm.tokenizer))),
    ),
}
