"""The place of what is written is as particular as what it says: nothing of one thing is written over that of another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.late import RUNNING

if RUNNING:
    from fvcore import names
    from fvcore.formats import read_json, write_json
    from fvcore.gates import Status
    from pytest_fvparity import cli
    from pytest_fvparity.milestones import run as milestones
    from pytest_fvparity.milestones.setup import MilestoneOutcome
    from pytest_fvparity.parity.implementation import CHECK_KEYS, LIVE
    from pytest_fvparity.parity.place import under_of
    from pytest_fvparity.report.merge import merge
    from pytest_fvparity.report.render import markdown, read_report, write_all
    from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of


if RUNNING:
    from fvcore.embedded.random_models import random_lm, toy_tokenizer
    from fvcore.model import audit
    from fvcore.model.spec import MODEL_SPECS
    from pytest_fvparity.golden import golden
    from pytest_fvparity.golden import manifest as manifests
    from tests.pytest_fvparity.worlds import World

if TYPE_CHECKING:
    pass


def test_profiles_of_the_same_trials_have_reports_of_their_own(tmp_path: Path) -> None:
    src = assemble(CHECK_KEYS, rows_of())
    upstream = src.model_copy(update={"under": "todd_upstream"})
    write_all([src], tmp_path)
    write_all([upstream], tmp_path)
    usual = tmp_path / "words" / "fixed_trials_x"
    assert read_report(usual / "src_vs_fv_diff_report.json") == src
    assert read_report(usual / "todd_upstream" / "src_vs_fv_diff_report.json") == upstream
    assert len(merge([("one", src), ("other", upstream)])) == 2
    write_all([src, upstream], tmp_path)
    links = [row["report"] for row in read_json(tmp_path / "summary.json")["runs"]]
    assert all((tmp_path / link).is_file() for link in links)
    assert len(set(links)) == 2


def test_a_run_in_the_other_profile_leaves_the_first_ones_report(pytester: pytest.Pytester, world: World) -> None:
    pytester.runpytest_inprocess("-m", "parity", "-k", "slot_map", *world.options)
    (first,) = pytester.path.glob("reports/*/*/src_vs_fv_diff_report.json")
    before = first.read_bytes()
    pytester.runpytest_inprocess(
        "-m", "parity", "-k", "slot_map", *world.options, "--fv-reference-profile=todd_upstream"
    )
    (second,) = pytester.path.glob("reports/*/*/todd_upstream/src_vs_fv_diff_report.json")
    assert first.read_bytes() == before
    assert read_report(second).overall_status == "FAIL"  # no golden of that profile


def test_reports_of_two_models_on_the_same_trials_have_places_of_their_own(
    pytester: pytest.Pytester, world: World
) -> None:
    shutil.copytree(world.model, pytester.path / "tuned-model")
    chosen = "-m", "parity", "-k", "prompt_boundary", *world.options
    pytester.runpytest_inprocess(*chosen)
    pytester.runpytest_inprocess(*chosen, "--fv-model=tuned-model")
    found = {
        path.parent.name: read_report(path) for path in pytester.path.glob("reports/**/src_vs_fv_diff_report.json")
    }
    assert {report.model for report in found.values()} == {world.model.name, "tuned-model"}
    assert found["tuned_model"].model == "tuned-model"
    assert found["tuned_model"].model_directory == names.word_of_directory(str(pytester.path / "tuned-model"))


def test_reports_of_two_directories_of_one_name_have_places_of_their_own(tmp_path: Path, world: World) -> None:
    (trials,) = world.trials
    out = tmp_path / "reports"
    models = [str(tmp_path / one / "model") for one in ("a", "b")]

    def report_of(model: str) -> str:
        Path(model).mkdir(parents=True, exist_ok=True)
        under_of.cache_clear()
        under = under_of(out, trials, "src", model)
        word = names.word_of_directory(model)
        write_json(out / "pairs" / trials.stem / under / "src_vs_fv_diff_report.json", {"model_directory": word})
        return under

    places = [report_of(model) for model in models]
    assert places[0] == "model"  # as ever
    assert places[1].startswith("model-")
    assert [report_of(model) for model in reversed(models)] == places[::-1]
    shutil.rmtree(out / "pairs" / trials.stem / "model")
    assert report_of(models[1]) == places[1]


def test_a_golden_of_another_model_lends_no_settings(pytester: pytest.Pytester, world: World) -> None:
    random_lm("llama", seed=1, directory=pytester.path / "tuned")
    # 2 layers of 4 heads: all of them, where the other's golden has three
    pytester.makepyfile(test_own="def test_own(fv_candidate): assert fv_candidate.settings.n_top_heads == 8")
    result = pytester.runpytest_inprocess("-k", "test_own", "test_own.py", *world.options, "--fv-model=tuned")
    result.assert_outcomes(passed=1)


def test_reduced_runs_of_two_models_have_places_of_their_own(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "model").mkdir(parents=True)
    models = ["tiny-llama", "EleutherAI/pythia-70m", str(tmp_path / "one/model"), str(tmp_path / "other/model")]
    places = [cli._place_of(model) for model in models]
    assert len(set(places)) == len(models)
    assert places[:2] == ["tiny_llama", "pythia_70m"]


def test_audits_of_two_models_of_a_family_leave_each_other_alone(tmp_path: Path) -> None:
    spec = MODEL_SPECS["llama"]

    def written(model: str) -> set[str]:
        bos = audit.bos_audit(toy_tokenizer("bos"), spec, model)
        return {path.name for path in audit.write(tmp_path, bos, audit.not_loaded(spec, model))} - {audit.SUMMARY}

    names = [written(model) for model in ("one/model", "other/model", "another/model")]
    assert names[0] == {"bos_audit_llama.json", "resolver_smoke_llama.json"}
    assert len(set.union(*names)) == 6
    assert written("one/model") == names[0]
    assert [row["hf_model_id"] for row in read_json(tmp_path / audit.SUMMARY)] == [
        "other/model",
        "another/model",
        "one/model",
    ]
    assert read_json(tmp_path / "bos_audit_llama.json")["hf_model_id"] == "one/model"


def test_a_golden_is_found_by_its_models_weights(tmp_path: Path, world: World) -> None:
    (manifest,) = world.golden.rglob("manifest.json")
    usual = manifest.parent.relative_to(world.golden)
    own = read_json(manifest)["profile"]["identity"]["weights_sha"]
    other = "0" * 64
    assert golden.place_for(world.golden, usual, own) == usual
    assert golden.place_for(world.golden, usual, other) == usual.with_name("src-00000000")
    assert golden.place_for(tmp_path, usual, other) == usual  # nobody's is there

    beside = world.golden / golden.own_place(usual, other)
    beside.mkdir()
    try:
        (beside / "manifest.json").write_text("{}")
        assert golden.locate([world.golden], usual, other) == beside
        assert golden.locate([world.golden], usual, own) == world.golden / usual
    finally:
        (beside / "manifest.json").unlink()
        beside.rmdir()

    # Of roots one after the other, that counts first which has this model's.
    copy = tmp_path / usual
    copy.mkdir(parents=True)
    value = read_json(manifest)
    value["profile"]["identity"]["weights_sha"] = other
    write_json(copy / manifest.name, manifests.sealed(value))
    assert golden.locate([tmp_path, world.golden], usual, own) == world.golden / usual
    assert golden.locate([tmp_path, world.golden], usual, other) == copy
    assert golden.locate([tmp_path, world.golden], usual, "1" * 64) == copy  # and is refused by name
    (copy / manifest.name).write_text("{}")
    assert golden.locate([tmp_path, world.golden], usual, own) == copy  # what is damaged is not passed over in silence


def test_a_run_beside_the_reference_as_it_runs_does_not_speak_of_a_golden() -> None:
    rows = rows_of(mean_activations=row_of("mean_activations", Status.FAIL, failed()))
    for row in rows.values():
        row["context"] |= {"golden_path": LIVE, "conditions": {"engine": ["exact", "fast"]}}
    report = assemble(CHECK_KEYS, rows)
    assert report.headline.startswith("FAIL at mean_activations: ")
    assert "golden" not in markdown(report, 100_000)
    assert "reference `exact` -> `fast` here" in markdown(report, 100_000)


def test_the_milestone_that_failed_first_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pytest_fvparity.milestones import cli as command

    def ends(failing: str) -> list[str]:
        def run(milestone: str, setup: object) -> MilestoneOutcome:
            return MilestoneOutcome(milestone != failing, f"what {milestone} says", [])

        monkeypatch.setattr(milestones, "run", run)
        return [name for name, _ in milestones.run_all(command.NAMES, None)]  # type: ignore[arg-type]

    assert ends("M0") == ["M0"]  # there is no report of M2 to read
    assert ends("M1") == ["M0", "M1"]
    assert ends("M2") == ["M0", "M1", "M2", "M5"]
