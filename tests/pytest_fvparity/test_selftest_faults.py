"""Every fault of the catalogue is caught where it must be, and each way of planting one is sound without its mistake.

The catalogue is imported by the tests, not while they are collected: it brings torch and all that it breaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_fvparity.selftest.catalogue import Plant
    from pytest_fvparity.selftest.run import Row

# What the quick suite plants, on two families: one for each outcome at each key.
QUICK = (
    *(
        "F01",
        "F09",
        "F14",
        "F18",
        "F21",
        "F26",
        "F28",
        "F32",
        "F33",
        "F33-nf4",
        "F42",
        "F46",
        "F50-family",
        "F58-width",
    ),
    *("F59", "F66", "F71", "F72", "F74"),
)
ROOMS = ("prompts", "sampling", "slots", "activations", "effects", "vectors", "injection", "suite")
WORDS = {
    "F09": "splits differ",
    "F10": "trial 0: demos_corrupted",
    "F18": "no token is left of demonstration_2_token",
    "F70": "0:0/target_id",
    "F71": "mean_activations.safetensors: damaged",
}
NEED_A_GPU = {"F32", "F33-nf4"}


def wrong(row: Row) -> bool:
    import torch

    idle = row.fault.id in NEED_A_GPU and (row.fault.id == "F33-nf4" or not torch.cuda.is_available())
    word = WORDS.get(row.fault.id, "")
    return row.verdict not in ({"caught", "not run here"} if idle else {"caught"}) or any(
        word not in seen.message for seen in row.seen.values()
    )


@pytest.mark.parametrize("id", QUICK)
def test_a_fault_of_each_kind_is_caught(id: str) -> None:
    from pytest_fvparity.selftest.rig import rig_of
    from pytest_fvparity.selftest.run import Row, catalogue

    fault = catalogue()[id]
    row = Row(fault, {family: fault.observe(rig_of(family)) for family in fault.families[:2]})

    assert not wrong(row), row.seen


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_every_fault_is_caught_on_every_family(room: str) -> None:
    from importlib import import_module

    from pytest_fvparity.selftest.run import rows

    ids = list(import_module(f"pytest_fvparity.selftest.faults.{room}").PLANTS)

    assert {row.fault.id: row.seen for row in rows(ids) if wrong(row)} == {}


def test_the_catalogue_is_whole_and_the_quick_ones_stand_for_all_of_it() -> None:
    from importlib import import_module

    from pytest_fvparity.selftest.run import absent, catalogue

    known = catalogue()
    plants = [id for room in ROOMS for id in import_module(f"pytest_fvparity.selftest.faults.{room}").PLANTS]

    assert absent(known) == []
    assert list(known) == sorted(known) == sorted(plants)
    assert {known[id].expected for id in QUICK} == {fault.expected for fault in known.values()}


@pytest.mark.parametrize(
    "row_of", [lambda rows: dict(list(rows.items())[:-1]), lambda rows: {**rows, "F99": dict(rows["F01"])}]
)
def test_a_row_without_plants_or_plants_without_a_row_are_an_error(tmp_path, row_of) -> None:
    import yaml

    from pytest_fvparity.selftest.catalogue import ROWS, faults_of
    from pytest_fvparity.selftest.run import catalogue

    path = tmp_path / "faults.yaml"
    path.write_text(yaml.safe_dump(row_of(yaml.safe_load(ROWS.read_text()))))

    with pytest.raises(KeyError, match=r"faults\.yaml: F\d\d: a row and its plants belong together"):
        faults_of({id: fault.plants for id, fault in catalogue().items()}, path)


# ---------------------------------------------------------------- each way of planting, without a mistake


def controls() -> dict[str, Plant]:
    import torch

    from pytest_fvparity.selftest import mean_heads
    from pytest_fvparity.selftest.catalogue import replacing
    from pytest_fvparity.selftest.faults import activations, effects, injection, slots, vectors

    def right_projection(module, heads) -> Tensor:
        bias = getattr(module, "bias", None)
        return effects.without_bias(module, heads) + (0 if bias is None else bias)

    return {
        "nothing replaced": replacing(),
        "slots without guards": slots.unguarded(),
        "words averaged": activations.station(mean_heads.pooled_by(mean_heads.average)),
        "batched with mask and positions": activations.station(mean_heads.batched(mean_heads.padded_logits)),
        "first pass of kept references": activations.station(mean_heads.mean_of(activations.UnclonedHeads())),
        "each head replaced": effects.with_effect(lambda base, runs: runs - base),
        "projection recomputed": effects.recomputing(right_projection),
        "each head's term": vectors.with_term(
            lambda lm, layer, head, activation: vectors.projected(lm, layer, {head: activation})
        ),
        "last slot": vectors.from_slot(lambda own: -1),
        "block output edited": injection.hooked(),
        "edited at the end of a padded batch": injection.in_a_batch(lambda mask: torch.full((2,), mask.shape[1] - 1)),
    }


@pytest.mark.parametrize(
    "family", ["gpt2", "gptj", "qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gpt_neox"))]
)
def test_a_reimplementation_without_its_mistake_passes(family: str) -> None:
    from pytest_fvparity.selftest.rig import rig_of

    seen = {name: plant(rig_of(family)) for name, plant in controls().items()}

    assert {name: one for name, one in seen.items() if str(one) != "passes"} == {}


@pytest.mark.parametrize(
    ("tokenizer", "prepend_bos", "n_tokens", "n_labels", "predicts"),
    [("bos", False, 25, 24, "A"), ("plain", True, 24, 24, None)],
)
def test_what_does_not_fit_is_cut_as_the_reference_cuts_it(
    tokenizer: str, prepend_bos: bool, n_tokens: int, n_labels: int, predicts: str | None
) -> None:
    from types import SimpleNamespace

    from fvcore.embedded.random_models import toy_tokenizer
    from fvcore.prompts import PromptTemplate
    from fvcore.trials.fixed import PREFIXES, SEPARATORS, WordPair
    from pytest_fvparity.selftest.faults.slots import Unguarded

    lm = SimpleNamespace(tokenizer=toy_tokenizer(tokenizer))
    trials = SimpleNamespace(meta=SimpleNamespace(model_prepend_bos=prepend_bos, n_shots=2))
    template = PromptTemplate(PREFIXES, SEPARATORS)
    demos = (WordPair(input=" hot", output=" cold"), WordPair(input=" unhappy", output=" glad"))
    trial = SimpleNamespace(demos=demos, corrupted_demos=demos, query=WordPair(input=" sunny", output=" rainy"))
    station = type("OnTemplate", (Unguarded,), {"template": template})(lm, trials, None)

    mapped = station.slots(trial, "clean")

    ids = lm.tokenizer(template.text(demos, " sunny")).input_ids
    assert (len(ids), len(mapped.labels)) == (n_tokens, n_labels)
    assert len(mapped.idx_map) == len(station.dummy_labels)
    at = mapped.query_predictive_token
    assert (None if at < 0 else lm.tokenizer.decode([ids[at]])) == predicts


# ---------------------------------------------------------------- what the rig must hold for faults to show


def labels_on(family: str) -> list[tuple[str, ...]]:
    from pytest_fvparity.selftest.rig import rig_of

    rig = rig_of(family)
    return [rig.candidate().slots(trial, "clean").labels for trial in rig.trials.trials]


def test_words_of_one_and_of_several_tokens_stand_in_every_place() -> None:
    import re

    from pytest_fvparity.selftest.rig import FAMILIES

    places = {
        r"demonstration_\d_token": {"one", "several"},
        r"demonstration_\d_label_token": {"one", "several"},
        r"query_demonstration_token": {"several"},
    }
    for family in FAMILIES:
        for place, sizes in places.items():
            n_tokens = [
                labels.count(label)
                for labels in labels_on(family)
                for label in set(labels)
                if re.fullmatch(place, label)
            ]
            assert sizes <= {"one" if n == 1 else "several" for n in n_tokens}, (family, place)


def test_a_word_comes_twice_and_a_corrupted_label_stays() -> None:
    from pytest_fvparity.selftest.rig import FAMILIES, rig_of

    for family in FAMILIES:
        trials = rig_of(family).trials.trials
        words = [[word for pair in trial.demos for word in (pair.input, pair.output)] for trial in trials]
        pairs = [pair for trial in trials for pair in zip(trial.demos, trial.corrupted_labels, strict=True)]

        assert any(len(set(drawn)) < len(drawn) for drawn in words)
        assert any(demo.output == label for demo, label in pairs)
        assert len({trial.target_id for trial in trials}) == len(trials)


def test_inputs_and_outputs_swallow_the_newlines_after_them() -> None:
    from fvcore.embedded.random_models import RIG_TOKENIZERS
    from pytest_fvparity.selftest.rig import rig_of

    for family in (name for name, kind in RIG_TOKENIZERS.items() if kind != "gpt2"):  # that one keeps them apart
        rig = rig_of(family)
        notes = [note for trial in rig.trials.trials for note in rig.candidate().slots(trial, "clean").notes]

        assert any("'\\n' merged" in note for note in notes)
        assert any("'\\n\\n' merged" in note for note in notes)


def test_models_are_in_eval_mode_and_their_biases_are_drawn() -> None:
    from pytest_fvparity.selftest.rig import FAMILIES, rig_of

    for family in FAMILIES:
        hf = rig_of(family).lm.hf
        assert rig_of(family).family == family
        assert not hf.training
        assert all(bias.abs().max() > 0 for name, bias in hf.named_parameters() if name.endswith("bias"))


# ---------------------------------------------------------------- what a fault leaves behind


@pytest.mark.slow
def test_planting_leaves_the_rig_as_it_was() -> None:
    import torch

    from pytest_fvparity.selftest.catalogue import observed
    from pytest_fvparity.selftest.rig import FAMILIES, rig_of
    from pytest_fvparity.selftest.run import catalogue

    known = catalogue()
    for family in FAMILIES:
        rig = rig_of(family)
        before = {name: value.clone() for name, value in rig.lm.hf.state_dict().items()}

        for id in ("F27", "F29", "F33", "F34", "F36", "F46", "F48", "F61", "F74", "F74-silent"):
            if family in known[id].families:
                known[id].observe(rig)

        modules = list(rig.lm.hf.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks or module.training for module in modules)
        assert all(torch.equal(before[name], value) for name, value in rig.lm.hf.state_dict().items())
        assert str(observed(rig.judge(rig.candidate()))) == "passes"
