"""Faults of prompts, draws and slots, and around the checks: each is caught where it must be, on every family."""

from __future__ import annotations

import re

import pytest

from fvcore.embedded.random_models import BED_TOKENIZERS, JOINING
from fvcore.gates import Status
from pytest_fvparity.selftest.bed import bed
from pytest_fvparity.selftest.run import rows

CAUGHT = (
    *("F01", "F02", "F03", "F04", "F05", "F06", "F12", "F23"),
    *("F07", "F08", "F09", "F10", "F11", "F13"),
    *("F14", "F15", "F16", "F17", "F18", "F19", "F20", "F21", "F22", "F75"),
    *("F70", "F71", "F72", "F73"),
)

WORDS = {
    "F09": "splits differ",
    "F10": "trial 0: demos_corrupted",
    "F18": "no token is left of demonstration_2_token",
    "F70": "0:0/target_id",
    "F71": "mean_activations.safetensors: damaged",
}

per_family = pytest.mark.parametrize("family", BED_TOKENIZERS)


@pytest.mark.parametrize(
    "id",
    CAUGHT,
)
def test_the_fault_is_caught_on_every_family(id: str) -> None:
    (row,) = rows([id])

    assert row.verdict == "caught", row.seen
    assert tuple(row.seen) == tuple(row.fault.families)
    for seen in row.seen.values():
        assert WORDS.get(id, "") in seen.message


@per_family
def test_an_implementation_without_a_fault_passes_everywhere(family: str) -> None:
    there = bed(family)

    results = there.judge(there.candidate())

    assert [result.status for result in results] == [Status.PASS] * 6


# ---------------------------------------------------------------- what the bed must hold for faults to show


@per_family
@pytest.mark.parametrize(
    ("place", "sizes"),
    [
        (r"demonstration_\d_token", {"one", "several"}),
        (r"demonstration_\d_label_token", {"one", "several"}),
        (r"query_demonstration_token", {"several"}),
    ],
)
def test_words_of_one_and_of_several_tokens_stand_in_every_place(family: str, place: str, sizes: set[str]) -> None:
    there = bed(family)
    prompts = [there.candidate().slots(trial, "clean").labels for trial in there.trials.trials]
    found = [labels.count(label) for labels in prompts for label in set(labels) if re.fullmatch(place, label)]

    assert sizes <= {"one" if n == 1 else "several" for n in found}


@per_family
def test_a_word_comes_twice_and_a_corrupted_label_stays(family: str) -> None:
    trials = bed(family).trials.trials
    words = [[word for pair in trial.demos for word in (pair.input, pair.output)] for trial in trials]

    assert any(len(set(found)) < len(found) for found in words)
    assert any(
        pair.output == label
        for trial in trials
        for pair, label in zip(trial.demos, trial.corrupted_labels, strict=True)
    )
    assert len({trial.target_id for trial in trials}) == len(trials)


@pytest.mark.parametrize("family", JOINING)
def test_inputs_and_outputs_swallow_the_newlines_after_them(family: str) -> None:
    there = bed(family)
    notes = [note for trial in there.trials.trials for note in there.candidate().slots(trial, "clean").notes]

    assert any("'\\n' merged" in note for note in notes)
    assert any("'\\n\\n' merged" in note for note in notes)


@per_family
def test_the_model_is_in_eval_mode_and_its_biases_are_drawn(family: str) -> None:
    hf = bed(family).lm.hf

    assert not hf.training
    assert all(bias.abs().max() > 0 for name, bias in hf.named_parameters() if name.endswith("bias"))
