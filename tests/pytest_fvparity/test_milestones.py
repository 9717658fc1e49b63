"""The milestones: what each delivers, what stops the next, and what a lock profile refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from fvcore.embedded.random_models import PAIRS, random_lm
from fvcore.formats import FormatError, read_pt
from fvcore.trials import fixed as trials
from pytest_fvparity.milestones.lock import SHIPPED, Lock, Locked
from pytest_fvparity.milestones.setup import Failed, MilestoneOutcome, Setup
from pytest_fvparity.report.report import Check
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.model import model as models
    from pytest_fvparity.golden.golden import Golden
    from pytest_fvparity.milestones import m0_trials, m3_reference
    from pytest_fvparity.milestones.run import NotReady, ended_in, run, run_all
    from tests.pytest_fvparity.worlds import FAULTY, World


def lock_of(world: World, folder: Path, **locked: Any) -> str:
    """A profile of the small world's own plan."""
    value = yaml.safe_load(SHIPPED["antonym-lock"].read_text())
    fixed = trials.read(world.trials[0])
    meta = {name: getattr(fixed.meta, name) for name in ("seed", "n_shots")}
    value["locked"] |= {**meta, "n_trials": len(fixed.trials), **locked}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(value | {"name": "small"}))
    return str(path)


def setup_in(folder: Path, world: World) -> Setup:
    pairs = folder / "pairs.json"
    pairs.write_text(json.dumps([{"input": a, "output": b} for a, b in PAIRS]))
    return Setup(
        model=str(world.model),
        trials=world.trials[0],
        profile=lock_of(world, folder),
        out=folder,
        layout_kind="plan",
        dataset_json=pairs,
        golden=world.golden,
        topk=4,
        n_eval=5,
    )


@pytest.fixture
def setup(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.chdir(tmp_path)
    return setup_in(tmp_path, world)


@pytest.fixture(scope="module")
def walked(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Setup, dict[str, MilestoneOutcome]]:
    """The way gone once."""
    folder = tmp_path_factory.mktemp("walked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        setup = setup_in(folder, world)
        return setup, dict(run_all(["M0", "M1", "M2", "M3", "M4", "M5"], setup))


def mean_activations_off(folder: Path) -> None:
    fault = "leaves['mean_activations'] = leaves['mean_activations'] + 1"
    (folder / "conftest.py").write_text(FAULTY.format(method="mean_activations", fault=fault))


# ---------------------------------------------------------------- the way


def test_the_plans_way_delivers_the_plans_files(walked: tuple[Setup, dict[str, MilestoneOutcome]]) -> None:
    setup, outcomes = walked

    assert {name: outcome.passed for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, True)
    assert list(outcomes) == ["M0", "M1", "M2", "M3", "M4", "M5"]
    fixed = setup.fixed
    results, runs = (setup.root / top / fixed.dataset / fixed.id for top in ("results", "results_fv"))
    assert {path.name for path in results.iterdir()} == {
        f"{fixed.dataset}_mean_head_activations_FIXED.pt",
        f"{fixed.dataset}_dummy_labels.json",
        f"{fixed.dataset}_indirect_effect.pt",
        "src_reference_dump.json",
        "src_fv.pt",
        "top_heads_src.json",
    }
    assert read_pt(results / f"{fixed.dataset}_mean_head_activations_FIXED.pt").ndim == 4
    assert read_pt(results / f"{fixed.dataset}_indirect_effect.pt").ndim == 3
    log = (runs / "m0_prompt_slot_parity.log").read_text()
    assert "prompt_boundary: PASS, mismatch_count 0" in log
    assert "slot_map: PASS, mismatch_count 0" in log
    suite = json.loads((runs / "parity_suite_report.json").read_text())
    assert (suite["status"], len(suite["stages"])) == ("PASS", 6)
    diff = json.loads((setup.root / "results_fv" / fixed.dataset / "src_vs_fv_diff_report.json").read_text())
    assert diff["first_divergence"] is None
    known = ended_in(setup.layout.state)
    assert set(known) == {"M0", "M1", "M2", "M3", "M4", "M5"}
    assert all(len(digest) == 64 for ended in known.values() for digest in ended.files.values())


def test_the_runtime_delivers_from_both_kinds_of_trials(walked: tuple[Setup, dict[str, MilestoneOutcome]]) -> None:
    setup, outcomes = walked

    for source in ("fixed_trials", "dataset_sampled"):
        folder = setup.layout.runs / "runtime" / source / "artifacts"
        assert read_pt(folder / "mean_activations.pt").ndim == 4
        vector = read_pt(folder / "fv_global_resid.pt")["fv_global_resid"]
        assert vector.ndim == 1
        assert len(json.loads((folder / "top_heads.json").read_text())["heads"]) == 4
        for layer in range(2):
            written = {path.name for path in (folder / f"step6/layer_{layer}").iterdir()}
            assert {"eval_summary.json", "eval_trials.jsonl", "eval_meta.json"} < written
            assert any(name.startswith("step6_results_") for name in written)
    assert len(outcomes["M4"].files) == 2 * (7 + 2 * 4)


def test_the_runtime_is_refused_another_model_than_the_suite_saw(
    walked: tuple[Setup, dict[str, MilestoneOutcome]], setup: Setup, world: World
) -> None:
    shutil.copytree(walked[0].layout.runs, setup.layout.runs)
    shutil.rmtree(setup.layout.runs / "runtime")
    other = setup.root / "other"
    shutil.copytree(world.model, other)
    lm = models.load(str(other))
    with torch.no_grad():
        next(lm.hf.parameters()).mul_(1.001)
    lm.hf.save_pretrained(other)
    changed = replace(setup, model=str(other))
    known = {"M2": json.loads(setup.layout.state.read_text())["M2"]}
    known["M2"]["settings"]["model"] = str(other)
    setup.layout.state.write_text(json.dumps(known))
    with pytest.raises(NotReady, match=r"other settings \(weights_sha: "):
        run("M4", changed)

    known["M2"]["settings"] = changed.settings
    setup.layout.state.write_text(json.dumps(known))
    outcome = run("M4", changed)

    assert not outcome.passed
    assert "has other weights than the model that M2 compared" in outcome.message


def test_the_dump_says_of_every_trial_what_the_golden_says(world: World) -> None:
    fixed = trials.read(world.trials[0])
    golden = Golden.open(next(world.golden.glob(f"*/{fixed.id}/*")))

    dump = m3_reference.reference_dump(golden)

    keys = [(row["trial_id"], row["trial_idx"]) for row in dump["trials"]]
    assert keys == sorted((trial.trial_id, trial.trial_idx) for trial in fixed.trials)
    for row, trial in zip(dump["trials"], fixed.trials, strict=True):
        assert row["target_id"] == trial.target_id
        prompt = golden.stored("prompt_boundary")[f"{trial.key}/corrupted/input_ids"]
        assert isinstance(prompt, list)
        assert row["prompt"]["boundary_len"] == row["prompt"]["corrupted_n_tokens"] == len(prompt)
        assert row["delta_logprob"] == pytest.approx(row["with_logprob_fp32"] - row["base_logprob_fp32"], abs=1e-5)
    vector = golden.stored("fv_vector")["function_vector"]
    assert isinstance(vector, torch.Tensor)
    assert dump["fv"]["shape"] == [1, len(vector)]
    assert dump["fv"]["norm"] == pytest.approx(float(vector.norm()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "is missing"),
        (lambda rows: [*rows, rows[0]], "is there 2 times"),
        (lambda rows: [*rows[:-1], rows[-1] | {"target_id": None}], "has no target or no boundary"),
        (lambda rows: [*rows, rows[0] | {"trial_id": 99}], "is none of the file's"),
    ],
)
def test_a_dump_with_a_gap_or_a_double_is_refused(world: World, change: Any, message: str) -> None:
    fixed = trials.read(world.trials[0])
    golden = Golden.open(next(world.golden.glob(f"*/{fixed.id}/*")))
    dump = m3_reference.reference_dump(golden)

    with pytest.raises(Failed, match=message):
        m3_reference.require_whole(
            dump | {"trials": change(dump["trials"])}, {(trial.trial_id, trial.trial_idx) for trial in fixed.trials}
        )


# ---------------------------------------------------------------- a failure, and its repair


@pytest.mark.slow
def test_a_failing_suite_stops_what_builds_on_it_and_is_verified_once_repaired(setup: Setup) -> None:
    mean_activations_off(setup.root)

    outcomes = dict(run_all(["M2", "M3", "M4", "M5"], setup))

    assert {name: outcome.passed for name, outcome in outcomes.items()} == {"M2": False, "M5": True}
    assert "mean_activations" in outcomes["M5"].message
    repro = (setup.layout.diff / "repro_command.txt").read_text()
    assert repro.startswith("pytest ")
    assert "mean_activations" in repro
    for later in ("M3", "M4"):
        with pytest.raises(NotReady, match=r"builds on M2, which failed"):
            run(later, setup)

    still = run("M6", setup)
    assert not still.passed
    assert still.message.startswith("from mean_activations on: FAIL")

    (setup.root / "conftest.py").unlink()
    repaired = run("M6", setup)
    assert repaired.passed, repaired.message
    assert run("M3", setup).passed  # what M2 stopped goes on from the repaired suite
    record = json.loads((setup.layout.runs / "m6_reverify.json").read_text())
    assert record["from"] == "mean_activations"
    assert record["runs"][0] == record["runs"][1]


@pytest.mark.slow
def test_numbers_that_are_not_the_same_twice_do_not_pass(
    walked: tuple[Setup, dict[str, MilestoneOutcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, _ = walked
    monkeypatch.chdir(setup.root)
    fault = "leaves['mean_activations'] = leaves['mean_activations'] + float(torch.rand((), generator=D)) * 1e-6"
    text = FAULTY.format(method="mean_activations", fault=fault)
    (setup.root / "conftest.py").write_text(
        text.replace("class Faulty", "D = torch.Generator()\nD.seed()\n\nclass Faulty")
    )

    outcome = run("M6", setup)

    assert not outcome.passed
    assert outcome.message.startswith("a second run gave other numbers: mean_activations")


def test_a_milestone_knows_what_it_builds_on(setup: Setup, walked: tuple[Setup, dict[str, MilestoneOutcome]]) -> None:
    with pytest.raises(NotReady, match="M3 builds on M2, which was not run here"):
        run("M3", setup)

    shutil.copytree(walked[0].layout.runs, setup.layout.runs)
    with pytest.raises(NotReady, match=r"other settings \(edit_layer: 1 there, 0 here\)"):
        run("M3", replace(setup, edit_layer=0))
    (setup.layout.runs / "parity_suite.log").write_text("edited")
    with pytest.raises(NotReady, match=r"parity_suite.log is not what it wrote: run M2 again"):
        run("M3", setup)


def test_another_models_milestones_are_not_written_over(
    setup: Setup, walked: tuple[Setup, dict[str, MilestoneOutcome]], tmp_path: Path
) -> None:
    shutil.copytree(walked[0].layout.runs, setup.layout.runs)
    random_lm("llama", seed=1, directory=tmp_path / "tuned")
    other = replace(setup, model=str(tmp_path / "tuned"))
    before = bytes_under(setup.layout.runs)
    with pytest.raises(NotReady, match=r"holds the milestones of .*, another model: .*--out FOLDER"):
        run("M0", other)
    assert bytes_under(setup.layout.runs) == before

    # Under the project's own names each has a folder.
    own, others = (replace(one, layout_kind="own").layout for one in (setup, other))
    assert own.runs == setup.root / "milestones" / setup.fixed.dataset / setup.fixed.id
    assert others.runs == setup.root / "milestones" / "tuned" / setup.fixed.dataset / setup.fixed.id
    assert not others.reference.is_relative_to(own.runs)


def bytes_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- words


def test_a_trials_file_that_lies_fails_m0_and_its_log_says_how(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = setup.fixed
    monkeypatch.setattr(Setup, "parity", lambda *_: _words_agree(fixed))
    value = json.loads(setup.trials_file.read_text())
    trial = value["trials"][0]
    trial["target_first_token_id"] = trial["first_token_id"] = trial["answer_ids"][0] = trial["answer_ids"][0] + 1
    bad = setup.root / setup.trials_file.name
    bad.write_text(json.dumps(value))

    outcome = run("M0", replace(setup, trials=bad))

    assert not outcome.passed
    log = next(setup.root.glob("results_fv/*/*/m0_prompt_slot_parity.log")).read_text()
    assert "verify: mismatch_count 0" not in log
    assert "trial 0" in log


def test_draws_that_cannot_be_checked_are_no_pass(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = setup.fixed
    monkeypatch.setattr(Setup, "parity", lambda *_: _words_agree(fixed))

    assert run("M0", setup).passed
    outcome = run("M0", replace(setup, dataset_json=setup.root / "none.json"))

    assert not outcome.passed
    log = (setup.layout.runs / "m0_prompt_slot_parity.log").read_text()
    assert "the draws were not checked: the raw dataset" in log


def _words_agree(fixed: trials.FixedTrials) -> Any:
    checks = [Check(key=key, status="PASS", n_compared=1, mismatch_count=0) for key in m0_trials.WORDS]
    return SimpleNamespace(checks=checks, by_key={check.key: check for check in checks}, golden_path="golden")


def test_a_model_that_does_not_load_is_a_failed_milestone(setup: Setup) -> None:
    outcome = run("M0", replace(setup, model="no-such-model"))

    assert not outcome.passed
    assert "no model 'no-such-model'" in outcome.message
    assert not ended_in(setup.layout.state)["M0"].passed


def test_a_golden_of_another_model_is_none_of_this_ones(setup: Setup, tmp_path: Path) -> None:
    random_lm("llama", seed=1, directory=tmp_path / "tuned")
    other = replace(setup, model=str(tmp_path / "tuned"))

    assert setup.chosen("edit_layer") == 1  # its own golden's
    assert other.chosen("edit_layer") == other.lock.defaults.edit_layer
    outcome = run("M1", other)
    assert not outcome.passed
    assert "is of random-llama, other weights" in outcome.message
    assert not list(tmp_path.rglob("*.pt"))  # nothing of the other model's is exported


# ---------------------------------------------------------------- the lock


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 7), ("n_shots", 25), ("n_trials", 25), ("reference_profile", "todd_upstream")]
)
def test_a_lock_refuses_another_plan_by_the_fields_name(setup: Setup, world: World, field: str, value: Any) -> None:
    other = replace(setup, profile=lock_of(world, setup.root, **{field: value}))

    with pytest.raises(Locked, match=rf"small refuses this run: {field}: .* is locked, found"):
        run("M0", other)
    assert not list(setup.root.glob("results*"))


def test_a_lock_refuses_another_template(setup: Setup, world: World) -> None:
    prefixes = {"input": "In:", "output": "Out:", "instructions": ""}

    with pytest.raises(Locked, match="prefixes: "):
        run("M0", replace(setup, profile=lock_of(world, setup.root, prefixes=prefixes)))


def test_the_shipped_lock_is_the_plans() -> None:
    lock = Lock.load("antonym-lock")

    assert (lock.locked.seed, lock.locked.n_shots, lock.locked.n_trials) == (0, 10, 10)
    assert (lock.defaults.n_top_heads, lock.defaults.edit_layer, lock.defaults.max_trials) == (10, 9, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: x\n", "missing key 'locked'"), ("name: [\n", "not"), ("name: x\nseed: 1\n", "not a lock profile")],
)
def test_a_wrong_lock_names_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)

    with pytest.raises(FormatError, match=message) as caught:
        Lock.load(str(path))
    assert str(path) in str(caught.value)


def test_a_lock_that_is_nowhere_names_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="antonym-lock"):
        Lock.load(str(tmp_path / "none.yaml"))


def test_what_milestones_left_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "milestones.json"
    path.write_text('{"M0": 3}')

    with pytest.raises(FormatError, match="run them again from M0"):
        ended_in(path)
    assert ended_in(tmp_path / "none") == {}
