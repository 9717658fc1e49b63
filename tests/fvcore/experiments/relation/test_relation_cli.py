"""`fvcore relation ...` as it is called: options, environment, single steps, exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fvcore import cli
from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import files
from fvcore.experiments.relation.gates import QIdStatus
from fvcore.experiments.steps import layout
from fvcore.formats import read_csv, read_json
from fvcore.model.spec import ModelError
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.relation import report
    from fvcore.experiments.steps import stepd
    from fvcore.model import model as models
    from fvcore.model.model import LanguageModel
    from tests.fvcore.experiments.relation.worlds import SMALL_PAIRS, write_csv


SETTINGS = ["--n-trials", "4", "--n-demos", "3", "--topk", "4", "--n-eval", "3", "--n-random", "2", "--no-pictures"]


@pytest.fixture(autouse=True)
def _loaded(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded once for all tests."""
    monkeypatch.setattr(models, "load", lambda *args, **options: llama)
    for name in ("FV_MODEL", "FV_MODEL_SPEC", "FV_DEVICE", "FV_DTYPE", "FV_QUANT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "small.csv", SMALL_PAIRS)
    return tmp_path


def _fvcore(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["relation", *arguments])


def _run(*arguments: str) -> Result:
    return _fvcore("run", "--model", "tiny-llama", "--relation-csv", "small.csv", *SETTINGS, *arguments)


def test_a_run_says_what_became_of_every_q_id(where: Path) -> None:
    found = _run("--layout", "plan")

    assert found.exit_code == 0, found.output
    assert "Q3: skipped, insufficient rows (3 < 4)" in found.output
    assert "Q10: completed, all stages completed" in found.output
    assert "3 completed, 1 skipped, 0 failed, in results_fv/relation_qwise/small" in found.output
    assert (where / "results_fv/relation_qwise/small/Q1/artifacts/qid_status.json").is_file()
    again = _run("--layout", "plan")
    assert "Q10: completed, already done, not run again" in again.output


def test_q_restricts_a_run(where: Path) -> None:
    assert _run("--q", "Q10, Q3", "--out", "out").exit_code == 0

    assert list(QIdStatus.all_of(where / "out")) == ["Q10", "Q3"]


def test_the_default_folder_is_by_relation_and_model(where: Path) -> None:
    assert _run("--q", "Q3").exit_code == 0

    assert (where / "reports/relation/small/tiny-llama/Q3/artifacts/qid_status.json").is_file()


def test_a_failure_is_exit_status_1_and_the_report_is_named(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepd, "run", lambda *args: 1 / 0)

    found = _run("--out", "out")

    assert found.exit_code == 1
    assert "0 completed, 1 skipped, 3 failed" in found.output
    assert set(read_json(where / "out" / files.FAILURES)["by_cause"]) == {"numeric"}
    stopped = _run("--out", "other", "--stop-on-error")
    assert stopped.exit_code == 1
    assert "0 completed, 0 skipped, 1 failed; stopped at the first failure" in stopped.output


def test_other_settings_are_exit_status_2(where: Path) -> None:
    _run("--out", "out", "--q", "Q1")

    found = _run("--out", "out", "--q", "Q1", "--seed", "5")

    assert found.exit_code == 2
    assert "seed is 0, now 5" in found.output


def test_more_heads_than_there_are_is_refused_with_the_options_name(where: Path) -> None:
    with pytest.raises(ModelError, match=r"top 25 heads asked for.* 24 heads.*--top-heads"):
        raise _run("--topk", "25", "--out", "out").exception  # type: ignore[misc]

    assert not (where / "out").exists()


def test_options_of_the_model_are_read_from_the_environment(
    where: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def load(name: str, device: Any, dtype: Any, **options: Any) -> LanguageModel:
        seen.update(name=name, device=device, dtype=dtype, **options)
        return llama

    monkeypatch.setattr(models, "load", load)
    environment = {
        "FV_MODEL": "tiny-gpt2", "FV_MODEL_SPEC": "llama", "FV_DEVICE": "cuda:1", "FV_DTYPE": "bf16", "FV_QUANT": "4bit",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    _fvcore("run", "--relation-csv", "small.csv", "--q", "Q3", "--out", "out", *SETTINGS)

    assert seen == {
        "name": "tiny-gpt2", "device": "cuda:1", "dtype": "bf16", "seed": 0, "spec": "llama", "quant": "4bit",
    }  # fmt: skip
    _fvcore("run", "--relation-csv", "small.csv", "--q", "Q3", "--out", "out", "--dtype", "fp32", *SETTINGS)
    assert seen["dtype"] == "fp32"
    monkeypatch.setenv("FV_QUANT", "auto")
    _fvcore("run", "--relation-csv", "small.csv", "--q", "Q3", "--out", "out", *SETTINGS)
    assert seen["quant"] is None  # nothing is quantised unasked


def test_a_small_model_computes_in_one_thread_unless_it_is_said(where: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        _run("--out", "out", "--q", "Q3", "--threads", "2")
        assert torch.get_num_threads() == 2
        _run("--out", "out", "--q", "Q3")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_each_step_alone_gives_the_files_of_the_whole(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert _run("--out", "whole", "--q", "Q2").exit_code == 0
    common = ["--model", "tiny-llama", "--relation-csv", "small.csv", "--out", "steps", "--q", "Q2"]

    for step in (
        ["stepd", "--n-trials", "4", "--n-demos", "3"],
        ["stepe", "--topk", "4"],
        ["zeroshot"],
        *(["step6", "--edit-layer", str(layer), "--n-eval", "3"] for layer in range(6)),
    ):
        found = _fvcore(step[0], *common, *step[1:])
        assert found.exit_code == 0, found.output

    whole, steps = where / "whole" / "Q2", where / "steps" / "Q2"
    for name in (
        layout.SAMPLED, layout.CIE, layout.AIE, layout.TRIAL_METRICS, layout.TOP_HEADS, layout.FV, layout.FV_BY_LAYER,
        layout.ZERO_SHOT,
    ):  # fmt: skip
        assert (steps / name).read_bytes() == (whole / name).read_bytes(), name
    for layer in range(6):  # one layer at a time is computed in other batches
        own, all_at_once = (read_json(at / f"{layout.layer_dir(layer)}/eval_summary.json") for at in (steps, whole))
        assert own == pytest.approx(all_at_once, abs=1e-5)
    assert read_json(steps / layout.ALL_LAYERS)["missing_layers"] == []
    assert _run("--out", "steps", "--q", "Q2").exit_code == 0  # and a run takes them up


def test_stepd_can_be_limited(where: Path) -> None:
    found = _fvcore(
        "stepd", "--model", "tiny-llama", "--relation-csv", "small.csv", "--out", "out", "--q", "Q2,Q1", "--layers", "1-2",
        "--heads", "0,3", "--n-trials", "2", "--n-demos", "2", "--score-key", "mean_delta_logit",
    )  # fmt: skip

    assert found.exit_code == 0, found.output
    for q_id in ("Q1", "Q2"):
        _, rows = read_csv(where / "out" / q_id / layout.AIE)
        assert {(row["layer"], row["head"]) for row in rows} == {("1", "0"), ("1", "3"), ("2", "0"), ("2", "3")}
        scores = [float(row["mean_delta_logit"]) for row in rows]
        assert scores == sorted(scores, reverse=True)


def test_a_heat_map_is_drawn_under_the_name_asked_for(where: Path) -> None:
    _run("--out", "out", "--q", "Q2")

    common = ["--relation-csv", "small.csv", "--out", "out", "--q", "Q2"]
    assert _fvcore("heatmap", *common, "--topk", "4").exit_code == 0
    assert (
        _fvcore("heatmap", *common, "--metric", "mean_delta_logit", "--topk", "2", "--out-name", "x.png").exit_code == 0
    )

    artifacts = where / "out" / "Q2" / "artifacts"
    assert (artifacts / "aie_heatmap_Q2.png").is_file()
    assert (artifacts / "aie_heatmap_x.png").is_file()
    assert not QIdStatus.all_of(where / "out")["Q2"].damage(Folder(where / "out" / "Q2"))


def test_a_heat_map_of_another_choice_leaves_the_runs_own_alone(where: Path) -> None:
    _run("--out", "out", "--q", "Q2")
    common = ["--relation-csv", "small.csv", "--out", "out", "--q", "Q2"]

    assert _fvcore("heatmap", *common, "--topk", "3").exit_code == 0

    artifacts = where / "out" / "Q2" / "artifacts"
    assert (artifacts / "aie_heatmap_Q2_mean_delta_p_top3.png").is_file()
    assert not QIdStatus.all_of(where / "out")["Q2"].damage(Folder(where / "out" / "Q2"))


def test_a_run_without_pictures_claims_none_that_is_gone(where: Path) -> None:
    _run("--out", "out", "--q", "Q2", "--pictures")
    (where / "out" / "Q2" / "artifacts" / "aie_heatmap_Q2.png").unlink()

    assert _run("--out", "out", "--q", "Q2", "--no-pictures").exit_code == 0

    found = QIdStatus.all_of(where / "out")["Q2"]
    assert found.status == "completed"
    assert not found.damage(Folder(where / "out" / "Q2"))


def test_a_step_of_no_q_id_is_an_error(where: Path) -> None:
    found = _fvcore("heatmap", "--relation-csv", "small.csv", "--out", "out", "--q", " ")

    assert found.exit_code != 0
    assert "no q_id asked for" in str(found.exception)


def test_what_is_damaged_has_no_numbers_and_ends_no_run(where: Path) -> None:
    _run("--out", "out", "--q", "Q1,Q2")
    (where / "out" / "Q2" / layout.TOP_HEADS).unlink()

    assert _run("--out", "out", "--q", "Q1").exit_code == 0

    rows = {row["q_id"]: row for row in report.rows(where / "out")}
    assert rows["Q2"]["status"] == "damaged"
    assert "top_heads.json is missing or was changed since" in rows["Q2"]["reason"]
    assert "aie" not in rows["Q2"]
    assert rows["Q1"]["status"] == "completed"


def test_status_shows_what_is_damaged_too(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _run("--out", "out")
    (where / "out" / "Q2" / layout.TOP_HEADS).unlink()

    found = _fvcore("status", "--out", "out")

    assert found.exit_code == 0
    lines = {line.split()[0]: line for line in found.output.splitlines() if line.strip()}
    assert "completed" in lines["Q1"]
    assert "skipped" in lines["Q3"]
    assert "damaged" in lines["Q2"]
    assert "top_heads.json" in lines["Q2"]


def test_the_report_is_made_again_without_a_model(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run("--out", "out", "--q", "Q1")
    monkeypatch.setattr(models, "load", lambda *args, **options: pytest.fail("a model was loaded"))

    assert _fvcore("report", "--out", "out").exit_code == 0

    assert "of 1 relations" in (where / "out" / files.REPORT).read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--q", "Q99"], "no q_id 'Q99'"),
        (["--layout", "other"], "--layout: input should be 'own' or 'plan' (found 'other')"),
        (["--confidence", "2"], "--confidence"),
        (["--relation-csv", "none.csv"], "relation CSV not found: none.csv"),
        (["--score-key", "best"], "unknown score 'best'"),
    ],
)
def test_a_wrong_option_is_one_plain_error(where: Path, arguments: list[str], says: str) -> None:
    assert says in str(_run(*arguments).exception)
