"""A run in its folder: resumed to the same bytes, never mixed, and stopped by every planted fault."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fvcore.cli import app
from fvcore.experiments.config import ConfigError, resolve
from fvcore.experiments.errors import OtherSettings, StepError
from fvcore.experiments.folder import WRITERS, Folder
from fvcore.experiments.progress import Shown
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.sampled import FixedSource
from fvcore.experiments.steps.settings import StepSettings
from fvcore.formats import FormatError, read_csv, read_json, read_pt, write_json, write_pt
from fvcore.model.spec import ModelError
from tests.fvcore.experiments.conftest import ROOT, trials_path
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import injection
    from fvcore.experiments.steps import step6, stepd
    from fvcore.experiments.steps.run import run
    from fvcore.fast import engines
    from fvcore.model import model as models
    from fvcore.model.model import LanguageModel


SETTINGS = StepSettings(top_heads=7)


def bytes_of(folder: Folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in folder.names("**/*") if (folder / name).is_file()}


@pytest.fixture(scope="module")
def made(llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A run whose clock stands still."""
    folder = Folder(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "0")
        run(llama, folder.root, SETTINGS, FixedSource(trials_path("tiny-llama")))
    return folder


@pytest.fixture
def copy(made: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    shutil.copytree(made.root, tmp_path / "run")
    return Folder(tmp_path / "run")


class Seen:
    """Which stages ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def running(self, step: str, total: int | None) -> Any:
        from contextlib import nullcontext

        self.ran.append(step)
        self.rows = 0

        def tell(layer: int, n_rows: int) -> None:
            self.rows += n_rows

        self.total = total
        return nullcontext(tell)

    def already(self, step: str) -> None:
        pass


def again(lm: LanguageModel, folder: Folder, settings: StepSettings = SETTINGS) -> list[str]:
    seen = Seen()
    run(lm, folder.root, settings, FixedSource(trials_path("tiny-llama")), progress=seen)
    return seen.ran


# ---------------------------------------------------------------- resumed


def test_what_is_done_is_not_run_again(llama: LanguageModel, copy: Folder) -> None:
    before = bytes_of(copy)
    assert again(llama, copy) == []
    assert bytes_of(copy) == before


@pytest.mark.parametrize(
    ("name", "ran"),
    [
        (layout.SAMPLED, ["sample"]),
        (layout.CIE, ["stepd"]),
        (layout.FV, ["stepe"]),
        (layout.ZERO_SHOT, ["zeroshot"]),
        ("artifacts/step6/layer_2/eval_trials.jsonl", ["step6"]),
        (layout.ALL_LAYERS, ["step6/summary"]),
        (layout.heatmap("all"), ["heatmap"]),
    ],
)
@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_stage_whose_file_is_lost_gives_the_same_bytes_again(
    llama: LanguageModel, copy: Folder, name: str, ran: list[str], harm: str
) -> None:
    before = bytes_of(copy)
    (copy / name).unlink() if harm == "gone" else (copy / name).write_bytes(b"{}")

    assert again(llama, copy) == ran
    assert bytes_of(copy) == before


def test_a_run_killed_in_a_stage_goes_on_to_the_same_bytes(
    llama: LanguageModel, made: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    folder = Folder(tmp_path / "run")
    write, written = WRITERS[".jsonl"], []

    def killed(path: Path, rows: Any) -> None:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(path, rows)

    with monkeypatch.context() as patch:
        patch.setitem(WRITERS, ".jsonl", killed)
        with pytest.raises(KeyboardInterrupt):
            again(llama, folder)

    assert again(llama, folder) == ["step6", "step6/summary"]
    assert bytes_of(folder) == bytes_of(made)


def test_a_changed_input_runs_what_reads_it(llama: LanguageModel, copy: Folder) -> None:
    write_pt(copy / layout.FV, {"fv_global_resid": 2 * read_pt(copy / layout.FV)["fv_global_resid"]})

    seen = Seen()
    run(llama, copy.root, SETTINGS, steps=["step6"], progress=seen)
    assert seen.ran == ["step6", "step6/summary"]


def test_progress_counts_every_row(llama: LanguageModel, tmp_path: Path) -> None:
    seen = Seen()
    run(llama, tmp_path, SETTINGS, FixedSource(trials_path("tiny-llama")), ["sample", "stepd"], seen)
    assert seen.rows == seen.total == 10 * llama.n_layers * llama.n_heads


def test_a_terminal_shows_step_layer_and_time_left(llama: LanguageModel, tmp_path: Path) -> None:
    text = io.StringIO()
    shown = Shown(Console(file=text, force_terminal=True, width=100), "Q3")
    run(llama, tmp_path, SETTINGS, FixedSource(trials_path("tiny-llama")), ["sample", "stepd"], shown)
    run(llama, tmp_path, SETTINGS, FixedSource(trials_path("tiny-llama")), ["sample"], shown)

    assert "Q3 stepd, layer 5" in text.getvalue()
    assert "time left" in text.getvalue()
    assert "Q3 sample: already done" in text.getvalue()


# ---------------------------------------------------------------- never mixed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_heads": 8}, r"topk is 7, now 8 \(heatmap, stepe\)"),
        ({"alpha": 2.0}, r"alpha is 1\.0, now 2\.0 \(stepe, step6\)"),
        ({"seed": 1}, r"seed is 0, now 1 \(stepd, stepe, step6\)"),
        ({"n_eval": 3}, r"n_eval is 50, now 3 \(step6\)"),
        ({"zeroshot_trailing_space": True}, "zeroshot_trailing_space is False, now True"),
        ({"layers": (0, 1, 2, 3)}, r"layers is None, now \[0, 1, 2, 3\] \(stepd\)"),
        ({"engine": "exact"}, "engine is 'fast', now 'exact'"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_touched(
    llama: LanguageModel, copy: Folder, change: dict[str, Any], message: str
) -> None:
    before = bytes_of(copy)
    with pytest.raises(OtherSettings, match=message):
        again(llama, copy, SETTINGS.model_copy(update=change))
    assert bytes_of(copy) == before


def test_another_model_is_refused(llama: LanguageModel, copy: Folder) -> None:
    other = models.load("tiny-llama")
    with torch.no_grad():
        other.hf.get_output_embeddings().weight[0, 0] += 1
    with pytest.raises(OtherSettings, match="weights_sha"):
        again(other, copy)


def test_a_layer_alone_shares_its_settings_with_all(llama: LanguageModel, copy: Folder) -> None:
    before = bytes_of(copy)
    one = SETTINGS.model_copy(update={"edit_layer": 3})
    assert again(llama, copy, one) == []
    with pytest.raises(OtherSettings, match=r"alpha is 1\.0, now 2\.0 \(step6\)"):
        run(llama, copy.root, one.model_copy(update={"alpha": 2.0}), steps=["step6"])
    assert {k: v for k, v in bytes_of(copy).items() if k != layout.RUN_META} == {
        k: v for k, v in before.items() if k != layout.RUN_META
    }


def test_layers_one_by_one_make_the_summary_of_all(llama: LanguageModel, copy: Folder) -> None:
    shutil.rmtree(copy / "artifacts/step6")
    for layer in (4, 1):
        run(llama, copy.root, SETTINGS.model_copy(update={"edit_layer": layer}), steps=["step6"])

    value = read_json(copy / layout.ALL_LAYERS)
    assert value["completed_layers"] == [1, 4]
    assert value["missing_layers"] == [0, 2, 3, 5]


# ---------------------------------------------------------------- planted faults


def test_a_changed_target_stops_step6_and_leaves_a_debug_file(llama: LanguageModel, copy: Folder) -> None:
    value = read_json(copy / layout.ZERO_SHOT)
    for row in value["trials"]:
        row["target_first_token_id"] = 17
    write_json(copy / layout.ZERO_SHOT, value)

    with pytest.raises(StepError, match=r"target_first_token_id is 17, the tokenizer gives \d+; see .*debug_0.json"):
        step6.run(llama, SETTINGS, copy)

    debug = read_json(copy / "artifacts/step6/step6_target_id_debug_0.json")
    assert debug["stored_target_id"] == 17
    assert debug["recomputed_target_id"] != 17
    assert debug["boundary_prefix"].endswith("A:")
    assert debug["prefix_tail"].endswith(debug["boundary_prefix"])


def means_of(folder: Folder, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    value = read_pt(folder / layout.GLOBAL_MEAN)
    write_pt(folder / layout.GLOBAL_MEAN, value | {"clean_mean": change(value["clean_mean"])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mean: mean[:, :, :16], r"\(6, 4, 16\), tiny-llama has \(6, 4, 32\)"),
        (lambda mean: mean[:5], r"\(5, 4, 32\), tiny-llama has"),
        (lambda mean: mean[0], r"found a tensor of shape \(4, 32\)"),
        (lambda mean: mean * float("nan"), "not finite"),
    ],
)
def test_means_of_another_shape_stop_stepe(
    llama: LanguageModel, copy: Folder, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    means_of(copy, change)
    with pytest.raises(StepError, match=message):
        run(llama, copy.root, SETTINGS, steps=["stepe"])


@pytest.mark.parametrize(
    ("size", "value", "message"),
    [
        (64, 0.0, r"expected a vector of 128 numbers for tiny-llama, found \(64,\)"),
        (128, float("inf"), "not finite"),
    ],
)
def test_a_vector_that_is_not_the_models_stops_step6(
    llama: LanguageModel, copy: Folder, size: int, value: float, message: str
) -> None:
    write_pt(copy / layout.FV, {"fv_global_resid": torch.full((size,), value)})
    with pytest.raises(StepError, match=message):
        run(llama, copy.root, SETTINGS, steps=["step6"])


@pytest.mark.parametrize("engine", ["fast", "exact"])
def test_an_injection_that_does_nothing_is_no_result(
    llama: LanguageModel, copy: Folder, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    def idle(lm: LanguageModel, prompts: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [lm.logits(lm.ids(ids))[0, -1:].repeat(2, 1) for ids in prompts]
        return torch.stack(rows), torch.tensor([True])

    monkeypatch.setattr(injection, f"_{engine}", idle)
    with pytest.raises(injection.NothingMoved, match="injection had no effect at layer 2"):
        step6.run(llama, SETTINGS.model_copy(update={"edit_layer": 2, "engine": engine}), copy)


def test_numbers_that_are_none_stop_stepd(llama: LanguageModel, copy: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "target_readings", lambda *_: torch.full((10, 25, 3), float("nan")))
    from fvcore.experiments.steps import sampled

    with pytest.raises(StepError, match="not a finite number"):
        stepd.run(llama, sampled.read(copy / layout.SAMPLED), SETTINGS, copy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (StepSettings(top_heads=25), "top 25 heads asked for, the sweep over tiny-llama has 24 heads.*--top-heads"),
        (StepSettings(layers=(0,)), "top 20 heads asked for, the sweep over tiny-llama has 4 heads.*--top-heads"),
        (StepSettings(edit_layer=6), r"edit_layer out of range: 6 not in \[0, 5\].*--edit-layer"),
        (StepSettings(heads=(4,)), r"head 4 is not in \[0, 3\] \(--heads\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    llama: LanguageModel, tmp_path: Path, settings: StepSettings, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        run(llama, tmp_path / "run", settings, FixedSource(trials_path("tiny-llama")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "known"), [("score_key", "mean_delta_p"), ("step6_score_key", "delta_acc")])
def test_a_score_that_is_none_is_refused_with_those_that_are(name: str, known: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: unknown score 'nothing'.*{known}"):
        resolve(StepSettings, {name: "nothing"})


def test_a_step_without_the_earlier_ones_says_what_is_missing(llama: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"sampled_trials.json: no such file; the step stepd samples the trials"):
        run(llama, tmp_path / "run", SETTINGS, steps=["stepe"])
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- options of the plan


def test_the_plans_literal_prompt_ends_with_a_space_and_keeps_the_target(
    llama: LanguageModel, copy: Folder, tmp_path: Path
) -> None:
    plain = read_json(copy / layout.ZERO_SHOT)["trials"]
    shutil.copytree(copy / "artifacts", tmp_path / "literal" / "artifacts")
    folder = Folder(tmp_path / "literal")
    (folder / layout.RUN_META).unlink()
    run(llama, folder.root, SETTINGS.model_copy(update={"zeroshot_trailing_space": True}), steps=["zeroshot", "step6"])

    literal = read_json(folder / layout.ZERO_SHOT)["trials"]
    for one, other in zip(plain, literal, strict=True):
        assert other["corrupted_prompt_str"] == one["corrupted_prompt_str"] + " "
        assert other["target_str"] == one["target_str"].strip()
        assert other["target_first_token_id"] == one["target_first_token_id"]
        assert one["corrupted_full_str"] == other["corrupted_full_str"]
    row = json.loads((folder / "artifacts/step6/layer_0/eval_trials.jsonl").read_text().splitlines()[0])
    ids = llama.tokenizer(row["prompt"]).input_ids
    expected = float(llama.logits(llama.ids(ids))[0, -1, row["target_id"]])
    assert row["prompt"].endswith("A: ")
    assert row["logit_base"] == pytest.approx(expected, abs=2e-5)  # the model reads the space


def test_with_replacement_there_are_as_many_as_asked(llama: LanguageModel, copy: Folder) -> None:
    shutil.rmtree(copy / "artifacts/step6")
    (copy / layout.RUN_META).unlink()
    settings = SETTINGS.model_copy(update={"with_replacement": True, "n_eval": 12, "edit_layer": 1})
    run(llama, copy.root, settings, steps=["step6"])

    assert copy.names("artifacts/step6/layer_1/step6_results_*") == [
        "artifacts/step6/layer_1/step6_results_tiny-llama_layer1_n12.json"
    ]


# ---------------------------------------------------------------- the command line


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["runtime", *map(str, arguments)])


def test_commands_one_by_one_give_what_run_gives(made: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    common = ("--model", "tiny-llama", "--out", tmp_path)
    for command in (
        ("stepd", "--trials", trials_path("tiny-llama")), ("stepe", "--topk", 7), ("zeroshot",), ("step6",)
    ):  # fmt: skip
        result = invoke(*command, *common)
        assert result.exit_code == 0, result.output
    result = invoke("heatmap", "--out", tmp_path, "--topk", 7, "--out-name", "aie_heatmap_Q1.png")

    assert result.exit_code == 0, result.output
    found = bytes_of(Folder(tmp_path))
    assert found.pop(layout.heatmap("Q1")).startswith(b"\x89PNG")
    expected = bytes_of(made)
    assert "behind layer" in found.pop("report.html").decode()  # of the command alone
    for name in (layout.RUN_META, layout.heatmap("all")):
        expected.pop(name), found.pop(name, None)
    assert found == expected


def test_sampled_trials_run_from_a_dataset(tmp_path: Path) -> None:
    dataset = ROOT / "datasets" / "tiny_antonym" / "raw" / "tiny_antonym.json"
    result = invoke(
        "run", "--dataset-json", dataset, "--model", "tiny-gpt2", "--out", tmp_path, "--n-trials", 3, "--n-shots", 4,
        "--topk", 3, "--edit-layer", 2, "--n-eval", 2, "--no-heatmap", "--layers", "0,2-4", "--heads", "1,3",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    folder = Folder(tmp_path)
    assert read_json(folder / layout.SAMPLED)["meta"]["source"] == "dataset_sampled"
    assert list(read_pt(folder / layout.FV_BY_LAYER)["fv_by_layer"]) == [0, 2, 3, 4]
    assert folder.names("artifacts/step6/layer_*") == ["artifacts/step6/layer_2"]
    assert not folder.names("artifacts/*.png")


def test_a_target_that_is_wrong_is_exit_status_1(copy: Folder) -> None:
    value = read_json(copy / layout.ZERO_SHOT)
    value["trials"] = [row | {"target_first_token_id": 17} for row in value["trials"]]
    write_json(copy / layout.ZERO_SHOT, value)

    result = invoke("step6", "--model", "tiny-llama", "--out", copy.root)

    assert result.exit_code == 1
    assert "target_first_token_id is 17" in result.output


def test_fixed_trials_with_a_wrong_target_are_exit_status_1(tmp_path: Path) -> None:
    value = read_json(trials_path("tiny-llama"))
    value["trials"][3] |= {"target_first_token_id": 17, "first_token_id": 17, "answer_ids": [17]}
    write_json(tmp_path / "ft.json", value)

    result = invoke("run", "--trials", tmp_path / "ft.json", "--model", "tiny-llama", "--out", tmp_path / "run")

    assert result.exit_code == 1
    assert "trial 3:3" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --trials FILE or --dataset FILE"),
        (("--trials", "a.json", "--dataset-json", "b.json"), "either --trials FILE or --dataset FILE"),
        (("--trials", trials_path("tiny-llama"), "--topk", 99), "--top-heads"),
        (
            ("--trials", trials_path("tiny-llama"), "--edit-layer", "last"),
            "--edit-layer: expected a layer's number or all (found 'last')",
        ),
        (
            ("--trials", trials_path("tiny-llama"), "--layers", "1-"),
            "--layers: expected numbers and ranges such as 0,2,5-7 (found '1-')",
        ),
        (("--trials", trials_path("tiny-llama"), "--layers", "a"), "(found 'a')"),
        (("--trials", trials_path("tiny-llama"), "--engine", "quick"), "--engine"),
    ],
)
def test_options_that_make_no_sense_are_named(tmp_path: Path, arguments: tuple[Any, ...], message: str) -> None:
    result = invoke("run", "--model", "tiny-llama", "--out", tmp_path / "run", "--no-heatmap", *arguments)
    assert isinstance(result.exception, ModelError)
    assert message in str(result.exception)


def test_a_screened_sweep_leaves_heads_out_and_says_so(
    llama: LanguageModel, made: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fvcore.fast.screening.SAMPLE", 1)
    monkeypatch.setattr("fvcore.fast.screening.SAFETY", 0.0)
    settings, folder = SETTINGS.model_copy(update={"engine": "screened", "top_heads": 2}), Folder(tmp_path)
    run(llama, folder.root, settings, FixedSource(trials_path("tiny-llama")), steps=["sample", "stepd", "stepe"])

    whole, screened = (read_csv(each / layout.AIE)[1] for each in (made, folder))
    heads = [(row["layer"], row["head"]) for row in screened]
    assert heads[:2] == [(row["layer"], row["head"]) for row in whole[:2]]
    assert 2 <= len(heads) < len(whole) == 24
    assert (
        f"engine screened: {24 - len(heads)} of 24 heads were not computed" in (folder / layout.STEP_D_LOG).read_text()
    )
    record = read_json(folder / layout.RUN_META)["stages"]["stepd"]["settings"]
    assert (record["engine"], record["topk"]) == ("screened", 2)
    with pytest.raises(ModelError, match="--score-key mean_delta_p, not mean_delta_logit; use fast"):
        run(llama, folder.root, settings.model_copy(update={"score_key": "mean_delta_logit"}))
