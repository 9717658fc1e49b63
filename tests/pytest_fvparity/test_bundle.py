"""A failure in a file: the same key, place and words from the leaves alone; a right candidate agrees; strangers are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    import torch
    from typer.testing import CliRunner

    from fvcore.formats import FormatError, write_safetensors
    from fvcore.gates import Refused
    from fvcore.pipeline import Pipeline
    from pytest_fvparity import cli
    from pytest_fvparity.bundle import bundle as bundles
    from pytest_fvparity.bundle.replay import replayed, require_same, status_of, told
    from pytest_fvparity.selftest.catalogue import Outcome, observed
    from pytest_fvparity.selftest.rig import rig_of
    from pytest_fvparity.selftest.run import catalogue
    from tests.pytest_fvparity.kept import Kept
    from tests.pytest_fvparity.worlds import World, plant

EVERY = ("F06", "F14", "F17", "F20", "F26", "F40-sign", "F57", "F59", "F66", "F70")
QUICK = ("F06", "F17", "F26", "F40-sign", "F59")


def planted(id: str, folder: Path) -> tuple[Kept, Any]:
    """A rig on which a fault was planted, and what was seen of it."""
    plants = catalogue()[id].plants
    rig = Kept.of(rig_of(catalogue()[id].families[0]), folder)
    return rig, (plants[0] if isinstance(plants, tuple) else plants)(rig)


@pytest.mark.parametrize("id", slow_but(QUICK, EVERY))
def test_the_leaves_alone_give_the_same_key_place_and_words(id: str, tmp_path: Path) -> None:
    rig, seen = planted(id, tmp_path)
    (path,) = rig.files
    bundle = bundles.read(path)

    result = replayed(bundle)

    assert path.name == f"failure-{seen.key}.safetensors"
    assert observed([result]) == seen
    fails = seen.outcome is Outcome.FAILS
    assert status_of(bundle, result, False) == (1 if fails else 3)  # what a candidate raised takes the candidate
    first = result.verdict.first_mismatch
    if fails and first:
        assert bundle.first == bundles.First(**{name: getattr(first, name) for name in bundles.First.model_fields})
    assert any("as in the run" in line for line in told(bundle, result, False))


@pytest.mark.parametrize("id", slow_but(("F17", "F59"), QUICK))
def test_a_right_candidate_agrees_and_the_wrong_one_still_does_not(id: str, tmp_path: Path) -> None:
    rig, seen = planted(id, tmp_path)
    bundle = bundles.read(rig.files[0])
    right = Pipeline(rig.lm, bundle.fixed_trials, rig.settings)

    result = replayed(bundle, right, rig.lm)

    require_same(rig.lm, bundle)
    assert (status_of(bundle, result, True), result.verdict.mismatch_count) == (0, 0), result
    assert result.verdict.compared > 0
    wrong = type("Zero", (Pipeline,), {seen.key: lambda self, *inputs: {}})(rig.lm, bundle.fixed_trials, rig.settings)
    assert status_of(bundle, replayed(bundle, wrong, rig.lm), True) != 0


def test_of_many_trials_those_concerned_are_kept_and_each_keeps_its_name(tmp_path: Path) -> None:
    from fvcore.embedded.random_models import AWKWARD_PAIRS, trials_for
    from pytest_fvparity.selftest.rig import Rig

    few = rig_of("llama")
    trials = trials_for(few.lm, n_trials=7, n_shots=2, seed=1, pairs=AWKWARD_PAIRS)
    rig = Kept.of(Rig.recorded(few.lm, trials, few.settings), tmp_path)
    key = trials.trials[5].key

    def slot_map(self: Pipeline, prompts: Any) -> Any:
        return {**Pipeline.slot_map(self, prompts), f"{key}/clean/idx_avg": []}

    rig.judge(rig.candidate(slot_map=slot_map))
    bundle = bundles.read(rig.files[0])

    assert [trial.key for trial in bundle.fixed_trials.trials] == [trials.trials[at].key for at in (0, 1, 2, 5)]
    assert bundle.fixed_trials.trials[3] == trials.trials[5]
    assert {name.split("/")[2] for name in bundle.leaves if ":" in name} == {f"{at}:{at}" for at in (0, 1, 2, 5)}
    assert replayed(bundle).verdict.findings[0].where.startswith(f"{key}/clean/idx_avg")
    assert status_of(bundle, replayed(bundle, Pipeline(few.lm, bundle.fixed_trials, few.settings)), True) == 0


def test_what_the_leaves_do_not_show_is_not_said_to_be_judged(tmp_path: Path) -> None:
    rig, seen = planted("F73-state", tmp_path)
    bundle = bundles.read(rig.files[0])

    result = replayed(bundle)

    said = list(told(bundle, result, False))
    assert "the candidate left" in seen.message
    assert status_of(bundle, result, False) == 3
    assert any("the failure is not in the leaves" in line for line in said)
    assert any("candidate left" in line for line in said)


def test_the_worst_is_named_as_on_the_runs_terminal_and_what_was_said_then_stands_in(sound: bundles.Bundle) -> None:
    golden = sound.of("golden", "fv_vector")
    off = golden["function_vector"].clone()
    off[1], off[7] = off[1] + 1, off[7] + 2
    right = {f"candidate/fv_vector/{name}": leaf for name, leaf in golden.items()}
    leaves = sound.leaves | right | {"candidate/fv_vector/function_vector": off}
    other = sound.model_copy(update={"leaves": leaves, "signature": "every value is 2 times what is expected"})

    said = list(told(other, replayed(other), False))

    assert [line for line in said if line.startswith("  worst in function_vector at dim 7: expected ")]
    assert all(line.startswith("  ") for line in said[said.index("the run said:") + 1 :] if "whose fault" not in line)


def test_another_model_is_refused(tmp_path: Path) -> None:
    rig, _ = planted("F17", tmp_path)

    with pytest.raises(Refused, match="weights_sha"):
        require_same(rig_of("qwen3").lm, bundles.read(rig.files[0]))


def test_a_verdict_stands_where_its_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    rig = Kept.of(rig_of("llama"), tmp_path / "taken")

    (failed,) = [
        one for one in rig.judge(rig.candidate(slot_map=lambda self, prompts: {"x": 1})) if one.verdict.findings
    ]

    assert failed.key == "slot_map"
    assert failed.verdict.findings[-1].message.startswith("no bundle was written: ")
    assert not failed.verdict.findings[-1].blocking


# ---------------------------------------------------------------- what strangers send


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bundles.Bundle:
    rig, _ = planted("F59", tmp_path_factory.mktemp("sound"))
    return bundles.read(rig.files[0])


def put(path: Path, bundle: bundles.Bundle, change: Callable[[dict[str, Any]], object], **tensors: Any) -> Path:
    """The bundle with its text changed by hand."""
    bundles.write(path, bundle)
    fields = json.loads(bundles.safetensors_metadata(path)["bundle"])
    change(fields)
    held = {name: value for name, value in bundle.leaves.items() if isinstance(value, torch.Tensor)}
    write_safetensors(path, held | tensors, {"bundle": json.dumps(fields)})
    return path


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (lambda f: f.update(schema_version=2), "schema version 2, this version reads 1"),
    "a field more": (lambda f: f.update(hook="os.system"), "unknown key 'hook'"),
    "a field less": (lambda f: f.pop("allowed"), "missing key 'allowed'"),
    "a trial's field more": (lambda f: f["trials"]["trials"][0].update(x=1), "its trials hold what no trials file"),
    "another key": (lambda f: f.update(key="../../x"), "unknown check key"),
    "a path for a name": (lambda f: f["profile"]["identity"].update(dataset="../x"), "expected the name of a file"),
    "no side": (lambda f: f["leaves"].update({"/etc/passwd": 1}), "is of no side and key"),
    "a tensor of no file": (
        lambda f: f["leaves"].update({"golden/fv_vector/x": {"$tensor": ["float32", 9]}}),
        "stand in one",
    ),
    "another shape": (
        lambda f: f["leaves"].update({"golden/fv_vector/function_vector": {"$tensor": ["float32", 10**9]}}),
        "is described as",
    ),
    "an object": (lambda f: f["leaves"].update({"golden/fv_vector/norm": {"a": 1}}), "holds a builtins.dict"),
    "a tolerance of NaN": (lambda f: f["allowed"][0].update(atol=float("nan")), "finite number"),
    "trials without places": (lambda f: f.update(places=[0]), "places of"),
    "long words": (lambda f: f.update(candidate="x" * 5000), "at most 4000 characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence(name: str, sound: bundles.Bundle, tmp_path: Path) -> None:
    change, words = HOSTILE[name]

    with pytest.raises(FormatError, match=words) as raised:
        bundles.read(put(tmp_path / "x.safetensors", sound, change))

    assert "\n" not in str(raised.value)


def test_only_so_much_is_read(sound: bundles.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x.safetensors", sound, lambda fields: None)
    monkeypatch.setattr(bundles, "MOST_TEXT", 1000)
    with pytest.raises(FormatError, match="expected 1 to 1000"):
        bundles.read(path)
    with pytest.raises(FormatError, match="more than a bundle may hold"):
        bundles.write(path, sound)
    monkeypatch.setattr(bundles, "MOST_BYTES", 2000)
    with pytest.raises(FormatError, match="at most 2000 are read"):
        bundles.read(path)
    write_safetensors(path, {"x": torch.ones(2)}, {"bundle": "[" * 900})
    with pytest.raises(FormatError, match="not valid JSON"):
        bundles.read(path)


def test_names_of_leaves_are_no_patterns(sound: bundles.Bundle) -> None:
    evil = sound.model_copy(update={"allowed": [sound.allowed[0].model_copy(update={"leaf": "(.*)*norm"})]})

    assert str(evil.tolerances.of("fv_vector")("norm")) == "exact"
    assert replayed(evil).verdict.first_mismatch is not None


def test_words_of_a_file_act_nowhere(sound: bundles.Bundle, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    bundles.write(path, sound.model_copy(update={"candidate": "\x1b[2J::error::mine"}))

    result = CliRunner().invoke(cli.app, ["replay", str(path)])

    assert result.exit_code == 1, result.output
    assert "\x1b" not in result.output
    assert "\\x1b[2J" in result.output


def test_leaves_that_no_run_gives_are_refused(sound: bundles.Bundle) -> None:
    with pytest.raises(FormatError, match="leaves cannot be compared"):
        replayed(sound.model_copy(update={"key": "top_heads"}))


# ---------------------------------------------------------------- in a run


def test_a_red_run_writes_one_file_and_a_green_one_leaves_none(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "slot_map", "leaves['0:0/clean/idx_avg'] = []")
    words = ("-m", "parity", *world.options, "--fv-bundle=kept")
    other = pytester.path / "kept" / "pairs" / world.trials[0].stem / "failure-prompt_boundary.safetensors"
    other.parent.mkdir(parents=True)
    other.write_text("of another run")

    red = pytester.runpytest_inprocess(*words)

    (path,) = (pytester.path / "kept").rglob("*.safetensors")
    red.stdout.fnmatch_lines([f"  replay *fvparity replay *{path.name}"])
    assert path.name == "failure-slot_map.safetensors"
    (page,) = (pytester.path / "reports").rglob("src_vs_fv_diff_report.html")
    assert f"fvparity replay kept/pairs/{world.trials[0].stem}/{path.name}" in page.read_text()
    kept = bundles.read(path)
    assert status_of(kept, replayed(kept), False) == 1
    pytester.makeconftest("")
    pytester.runpytest_inprocess(*words).assert_outcomes(passed=6)
    assert not list((pytester.path / "kept").rglob("*.safetensors"))
