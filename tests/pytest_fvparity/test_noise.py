"""The golden's noise: how it is measured, what it allows, and whom it does not concern."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import random_lm
from fvcore.formats import write_text
from fvcore.gates import Verdict
from pytest_fvparity.parity.checks import ParityRun
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.artifacts import Artifact
    from fvcore.compare import compare
    from fvcore.pipeline import Settings
    from pytest_fvparity.golden import golden
    from pytest_fvparity.parity.noise import RULE, Noise, has_other_instructions, measured, other_attention, variations
    from pytest_fvparity.parity.tolerances import HOOK, Tolerances
    from pytest_fvparity.reference import reference
    from pytest_fvparity.selftest import alarms
    from pytest_fvparity.selftest.rig import Recorded, Rig, changed, rig_of
    from tests.pytest_fvparity.stand_in import plant, saved, saved_trials


KEY = "mean_activations"
if RUNNING:
    # What a processor of which nothing more can be taken away is not varied in.
    INSTRUCTIONS = ["instructions=SSE41"] if has_other_instructions() else []
FLOOR = 1e-6  # of mean activations that are 0, fp32 on the CPU


def of(noise: float, key: str = KEY, leaf: str = KEY) -> Noise:
    return Noise(("a variation",), {key: {leaf: noise}})


def judged(difference: float, tolerances: Tolerances) -> Verdict:
    expected = {KEY: torch.zeros(2, 2, 3, 4, dtype=torch.float64)}
    actual = {KEY: expected[KEY].clone()}
    actual[KEY][1, 0, 2, 3] = difference
    return compare(expected, actual, tolerances.of(KEY))


# ---------------------------------------------------------------- the larger of both


@pytest.mark.parametrize(
    ("noise", "allowed", "rule"), [(0.0, FLOOR, "default rule 1"), (1e-7, FLOOR, "default rule 1"), (1e-3, 4e-3, None)]
)
def test_the_larger_of_floor_and_four_times_the_noise_decides_and_is_named(
    noise: float, allowed: float, rule: str | None
) -> None:
    rule = rule or RULE  # what the golden's noise decides
    tolerances = Tolerances.read(None, (), "fp32", "cpu", of(noise))

    assert judged(0.99 * allowed, tolerances).passed
    (finding,) = judged(1.01 * allowed, tolerances).findings
    assert f"(allowed: atol {allowed:g}" in finding.message
    assert f"; {rule};" in finding.message
    (row,) = tolerances.table(KEY, {KEY: torch.ones(2)})
    assert (row["atol"], row["rule"]) == (allowed, rule)


def test_noise_of_another_leaf_or_key_widens_nothing() -> None:
    for noise in (of(1.0, leaf="aie"), of(1.0, key="fv_vector")):
        assert not judged(1.01 * FLOOR, Tolerances.read(None, (), "fp32", "cpu", noise)).passed


def test_a_leaf_of_one_trial_has_the_noise_of_its_name() -> None:
    tolerances = Tolerances.read(None, (), "fp32", "cpu", of(1.0, "injection_output", "base_logprob"))

    for trial in ("0:0/", "7:9/"):
        assert tolerances.of("injection_output")(f"{trial}base_logprob").allowed(torch.zeros(())) == 4.0
        assert tolerances.of("injection_output")(f"{trial}with_logprob").allowed(torch.zeros(()).double()) == 4e-6


def test_where_a_floor_grows_with_the_values_each_element_has_the_larger_bound() -> None:
    tolerances = Tolerances.read(None, (), "bf16", "cpu", of(0.01))
    expected = torch.tensor([[1.0, 0.0], [100.0, 0.0]], dtype=torch.float64)  # floors: 0.05 and 5

    assert tolerances.of(KEY)(KEY).allowed(expected).amax(dim=-1).tolist() == [0.05, 5.0]
    wide = Tolerances.read(None, (), "bf16", "cpu", of(0.1))
    assert wide.of(KEY)(KEY).allowed(expected).amax(dim=-1).tolist() == [0.4, 5.0]
    (row,) = wide.table(KEY, {KEY: expected})
    assert (row["of_norm"], row["rule"]) == (0.05, f"default rule 21; {RULE} (0.4) where that is larger")
    assert compare({KEY: expected}, {KEY: expected + 0.41}, wide.of(KEY)).findings[0].message.count(f"; {RULE};") == 1


def test_what_a_user_says_is_never_widened(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_text(path, f"rules:\n  - {{key: {KEY}, atol: 1.0e-3}}\n")

    for tolerances in (
        Tolerances.read(path, (), "fp32", "cpu", of(1.0)),
        Tolerances.read(None, [{"key": KEY, "atol": 1e-3}], "fp32", "cpu", of(1.0)),
    ):
        assert judged(0.99e-3, tolerances).passed
        (finding,) = judged(1.01e-3, tolerances).findings
        assert RULE not in finding.message
    assert HOOK in finding.message


def test_beside_a_hook_s_rules_the_defaults_keep_their_noise() -> None:
    added = [{"key": "fv_vector", "atol": 0.0}]
    assert judged(3.9, Tolerances.read(None, added, "fp32", "cpu", of(1.0))).passed


def test_a_leaf_without_a_rule_stays_exact() -> None:
    assert not judged(1e-12, Tolerances.read(None, (), "fp32", "another device", of(1.0))).passed


# ---------------------------------------------------------------- in a check


@pytest.mark.parametrize(("share", "passes"), [(0.99, True), (1.01, False)])
def test_a_fault_just_above_four_times_the_noise_is_caught_and_one_below_passes(share: float, passes: bool) -> None:
    ours, noise = rig_of("llama"), 0.01
    tolerances = Tolerances.read(None, (), "fp32", "cpu", of(noise))

    def shifted(self: Any, prompts: Artifact, slot_map: Artifact) -> Artifact:
        means = ours.golden.mean_activations()[KEY]
        assert isinstance(means, torch.Tensor)
        return {KEY: means.double().add(share * 4 * noise).float()}

    run = ParityRun(ours.candidate(mean_activations=shifted), ours.golden, tolerances)

    assert run.chained(KEY).passed is passes


@pytest.mark.parametrize(("noise", "is_tie"), [(0.0, False), (1.0, True)])
def test_whether_a_swap_of_heads_is_a_tie_is_judged_by_the_noise_of_their_effects(noise: float, is_tie: bool) -> None:
    ours = rig_of("llama")
    expected = ours.golden.top_heads()
    cie, aie = expected["cie"], expected["aie"]
    heads: Any = expected["heads"]
    assert isinstance(cie, torch.Tensor)
    assert isinstance(aie, torch.Tensor)
    # The candidate's own effects rank the first two heads the other way round.
    first, second = (tuple(head) for head in heads[:2])
    swapped, shift = aie.clone(), torch.zeros_like(cie)
    swapped[first], swapped[second] = aie[second], aie[first]
    shift[:] = swapped - aie
    actual = {**expected, "cie": cie + shift, "aie": swapped, "heads": [heads[1], heads[0], *heads[2:]]}
    wide = Noise(("a variation",), {"top_heads": dict.fromkeys(("cie", "aie", "scores"), noise)})
    tolerances = Tolerances.read(None, (), "fp32", "cpu", wide)
    run = ParityRun(ours.candidate(), ours.golden, tolerances)

    verdict = run.compare("top_heads", actual)

    assert verdict.passed is is_tie
    assert ("top_heads" in run.memory.tied) is is_tie


# ---------------------------------------------------------------- measuring


def test_the_largest_difference_of_all_variations_and_trials_counts() -> None:
    recorded = {"injection_output": {"0:0/x": 1.0, "0:1/x": torch.tensor([2.0, 3.0]), "ids": [1, 2], "n": 3}}
    one = {"injection_output": {"0:0/x": 1.5, "0:1/x": torch.tensor([2.0, 3.0]), "ids": [1, 2], "n": 3}}
    other = {"injection_output": {"0:0/x": 1.25, "0:1/x": torch.tensor([2.0, 2.25]), "ids": [9, 2], "n": 4}}

    seen = measured(recorded, {"one": one, "other": other})

    assert seen == Noise(("one", "other"), {"injection_output": {"x": 0.75}})
    assert str(seen) == "noise under one, other: injection_output 0.8"


def test_each_family_is_varied_in_what_it_has() -> None:
    names = {family: [v["name"] for v in variations(random_lm(family))] for family in ("llama", "gptj")}

    assert names == {
        "llama": ["repeat", "attn_implementation=eager", "threads=2", *INSTRUCTIONS],
        "gptj": ["repeat", "threads=2", *INSTRUCTIONS],
    }


@pytest.mark.parametrize("now", ["eager", "sdpa"])
def test_the_other_attention_is_the_one_that_does_not_run(now: str) -> None:
    lm = random_lm("gpt2")
    lm.hf.set_attn_implementation(now)

    assert other_attention(lm) == [{"eager": "sdpa", "sdpa": "eager"}[now]]


@pytest.mark.slow
def test_what_stands_in_the_manifest_was_measured_on_the_reference_and_comes_out_again(tmp_path: Path) -> None:
    lm = saved("llama", tmp_path / "random-llama")
    trials, checkout = saved_trials(lm, tmp_path), plant(tmp_path)
    settings = Settings(edit_layer=1, n_top_heads=3)

    first = reference.run(checkout, lm, trials, settings)
    again = replace(reference.run(checkout, lm, trials, settings, with_noise=False), noise=first.noise)
    recordings = [first, again]
    for recording, name in zip(recordings, ("first", "second"), strict=True):
        (tmp_path / name).mkdir()
        golden.write(recording, tmp_path / name)

    manifest = json.loads((tmp_path / "first" / golden.MANIFEST).read_text())
    assert manifest["variations"] == ["repeat", "attn_implementation=eager", "threads=2", *INSTRUCTIONS]
    assert golden.differing_files(tmp_path / "first", tmp_path / "second") == []
    # The same with fvcore in the reference's place: another attention changes its numbers as much, other instructions more.
    case = alarms.with_noise(Rig(lm, trials, settings, Recorded(dict(recordings[0].artifacts))))
    assert set(manifest["noise"]) == set(case.noise.largest)
    for key, leaves in manifest["noise"].items():
        for leaf, seen in leaves.items():
            ours = case.noise.largest[key][leaf]
            assert 0.5 * ours - 1e-6 <= seen <= 5 * ours + 1e-5, f"{key} {leaf}"
    assert 0 < manifest["noise"][KEY][KEY] < 1e-4
    opened = golden.Golden.open(tmp_path / "first")
    assert opened.noise == recordings[0].noise


# ---------------------------------------------------------------- no false alarm


@pytest.mark.slow
def test_legal_variations_raise_no_alarm_and_the_table_says_so() -> None:
    found = list(alarms.rows(families=("llama", "gptj"), seeds=(0,), with_shipped=False))

    n_runs = {row.variation: len(row.seen) for row in found}
    assert n_runs == {v.name: 1 if v.attention else 2 for v in alarms.VARIATIONS}  # gptj has one attention
    assert [row.alarms for row in found] == [[]] * len(found)
    assert 0 < max(run.ratio for row in found for run in row.seen) < 1  # the variations do vary something
    page = alarms.page(found, []).splitlines()
    assert f"**{sum(n_runs.values())} runs, 0 alarms.**" in page
    (row,) = (line for line in page if line.startswith("| 2 families") and "run a second time" in line)
    assert row == "| 2 families x 1 trial seeds, floors alone | run a second time | 2 | 0 | 0 | - |"


def test_a_fault_is_an_alarm_at_its_key() -> None:
    def off(self: Any, prompts: Artifact, slot_map: Artifact) -> Mapping[str, Any]:
        means: Any = rig_of("llama").golden.mean_activations()[KEY]
        return {KEY: means + 1.0}

    fault = alarms.Variation("a fault", stations={"mean_activations": off})
    ours = rig_of("llama")

    seen = alarms.judge(ours, fault)

    assert seen.alarm == (KEY,)
    assert seen.ratio > 1
    (row,) = alarms.rows_of("one", [ours], [fault])
    assert row.alarms == [KEY]
    assert f"| 1 | 1 ({KEY} 1) |" in alarms.page([row], [])


def test_noise_makes_room_for_other_kernels_in_half_precision() -> None:
    ours = rig_of.__wrapped__(
        "gpt_neox"
    )  # one of its own: whatever ran before may have switched attention on the shared one
    half = changed(ours.lm, lambda hf: hf.to(torch.bfloat16))
    case = alarms.seeded(half, 0)

    floors, calibrated = alarms.judge(case, alarms.EAGER), alarms.judge(alarms.with_noise(case), alarms.EAGER)

    assert calibrated.ratio < floors.ratio
    assert calibrated.ratio <= 0.25 * 1.0001 or floors.ratio < 1
    assert replace(calibrated, alarm=()).ratio < 1
