"""A whole run on a runtime without a model: files, schemas, records, gates and status; and that no setting reaches one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fvcore import exits
from fvcore.cli import app
from fvcore.experiments.select_kv import files
from fvcore.experiments.select_kv.schemas import (
    ErrorReport,
    MetricRecord,
    OffRow,
    OnRow,
    PrefixMetaRow,
    Report,
    SelectionRow,
)  # fmt: skip
from fvcore.formats import read_json, read_jsonl, read_yaml, validated
from tests.late import RUNNING
from tests.phase2.fake import FakeRuntime

if RUNNING:
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.run import Result, run_phase2

RUN_METRICS = {
    "phase2_on_acc_base", "phase2_on_acc_teacher", "phase2_on_acc_student_select", "phase2_on_acc_student_random_mean",
    "phase2_on_gain_select", "phase2_off_delta_p99_select", "phase2_delta_on_mean_select",
    "phase2_rel_kl_to_teacher_select", "phase2_gateA_pass", "phase2_gateB_pass",
    "phase2_off_delta_p99_stress", "phase2_off_delta_p99_typical", "phase2_off_delta_mean_stress",
    "phase2_off_delta_mean_typical", "phase2_answer_logprob_gain_mean",
    "phase2_rel_kl_to_teacher_select_ratio_of_means", "phase2_on_acc_student_random_std",
    "phase2_gateA_teacher_cache_kl", "phase2_gateA_teacher_divergence", "phase2_gateA_null_kl_on",
    "phase2_gateA_null_kl_off", "phase2_gateA_full_effect_kl", "phase2_gateA_roundtrip_rel_kl",
    "phase2_gateA_repro_full_acc_diff", "phase2_gateA_repro_select_acc_diff",
}  # fmt: skip
ON_METRICS = {
    "phase2_delta_on_select", "phase2_answer_logprob_gain", "phase2_selection_score_attention",
    "phase2_rel_kl_to_teacher_select", "phase2_hit_base", "phase2_hit_teacher", "phase2_hit_select",
}  # fmt: skip
OFF_METRICS = {"phase2_delta_off_select", "phase2_delta_off_stress_select", "phase2_delta_off_typical_select"}
DROP = "phase2_selection_score_causal_drop"


def settings_of(root: Path, **changes: Any) -> Phase2:
    values = {
        "runtime.output_root": str(root), "data.synthetic.num_pairs": 6, "eval.on_samples": 6, "eval.off_samples": 9,
        "select.span_len": 2, "select.span_budget": 2, "injection.positioning_mode": "absolute",
    }  # fmt: skip
    return Phase2().changed({**values, **changes})


Runs = Callable[..., "Result"]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    def run(runtime: FakeRuntime | None = None, **changes: Any) -> Result:
        return run_phase2(settings_of(tmp_path, **changes), runtime=runtime or FakeRuntime(), run_id="mock")

    return run


class TestWholeRun:
    def test_it_passes_and_leaves_every_file_of_the_plan(self, runs: Runs) -> None:
        result = runs()

        assert (result.final_pass, result.gateA_pass, result.gateB_pass) == (True, True, True)
        assert result.exit_code == exits.PASSED
        assert [name for name in files.PLAN if not (result.folder / name).is_file()] == []
        assert (result.folder / files.OFF_STRESS).is_file()

    def test_every_file_is_what_its_schema_says(self, runs: Runs) -> None:
        folder = runs(**{"select.causal_drop.enabled": True}).folder
        kinds: dict[str, Any] = {
            files.REPORT: Report, files.SELECTION: list[SelectionRow], files.PREFIX_META: list[PrefixMetaRow],
        }  # fmt: skip
        lines: dict[str, Any] = {
            files.METRICS: list[MetricRecord], files.ON_ROWS: list[OnRow], files.OFF_ROWS: list[OffRow],
        }  # fmt: skip
        for name, kind in kinds.items():
            assert validated(kind, read_json(folder / name), name)
        for name, kind in lines.items():
            assert validated(kind, read_jsonl(folder / name), name)

    def test_every_metric_of_the_plan_is_there_by_its_name(self, runs: Runs) -> None:
        records = read_jsonl(runs(**{"select.causal_drop.enabled": True}).folder / files.METRICS)
        by_type: dict[tuple[str, str], set[str]] = {}
        for record in records:
            by_type.setdefault((record["record_type"], record["mode"]), set()).add(record["metric"])

        assert set(by_type) == {("run", "all"), ("sample", "on"), ("sample", "off")}
        assert by_type["run", "all"] >= RUN_METRICS
        assert by_type["sample", "on"] == ON_METRICS | {DROP}
        assert by_type["sample", "off"] == OFF_METRICS

    def test_a_score_that_was_not_asked_for_is_no_record(self, runs: Runs) -> None:
        assert DROP not in {record["metric"] for record in read_jsonl(runs().folder / files.METRICS)}

    def test_records_have_the_plans_columns(self, runs: Runs) -> None:
        columns = {
            "record_type", "run_id", "step", "split", "mode", "metric", "value", "seed", "timestamp", "model_id",
            "prompt_len", "prefix_len", "episode_id",
        }  # fmt: skip
        records = read_jsonl(runs().folder / files.METRICS)

        assert {tuple(sorted(record)) for record in records if record["record_type"] == "run"} == {
            tuple(sorted(columns))
        }
        assert all(set(one) == columns | {"sample_id"} for one in records if one["record_type"] == "sample")
        assert {one["split"] for one in records if one["record_type"] == "run"} == {"all"}
        assert len({one["timestamp"] for one in records}) == 1

    @pytest.mark.parametrize("padding", ["null_pad", "shrink_to_selected"])
    @pytest.mark.parametrize("positioning, source", [("absolute", "gather"), ("compact", "recompute")])
    def test_modes_agree_everywhere(self, runs: Runs, padding: str, positioning: str, source: str) -> None:
        changes = {
            "prefix.padding_mode": padding, "injection.positioning_mode": positioning, "injection.kv_source": source,
        }  # fmt: skip
        folder = runs(**changes).folder
        report, config = read_json(folder / files.REPORT), read_yaml(folder / files.CONFIG)["phase2"]

        asked = (positioning, padding, source)
        assert (report["positioning_mode"], report["padding_mode"], report["kv_source"]) == asked
        injection = config["injection"]
        assert (injection["positioning_mode"], config["prefix"]["padding_mode"], injection["kv_source"]) == asked
        rows = read_json(folder / files.PREFIX_META)
        assert {(row["positioning_mode"], row["padding_mode"], row["kv_source"]) for row in rows} == {asked}

    def test_what_auto_came_to_is_what_is_saved(self, runs: Runs) -> None:
        folder = runs(**{"injection.kv_source": "auto"}).folder

        assert read_yaml(folder / files.CONFIG)["phase2"]["injection"]["kv_source"] == "gather"
        assert read_json(folder / files.REPORT)["kv_source"] == "gather"

    def test_the_report_names_files_that_are_there(self, runs: Runs) -> None:
        result = runs()

        assert all((result.folder / name).is_file() for name in result.report["artifacts"].values())
        assert result.report["sample_counts"]["on"] == len(read_json(result.folder / files.SELECTION)) == 6
        assert result.report["sample_counts"]["off"] == 9

    def test_a_failed_gate_is_told_and_ends_with_its_status(self, runs: Runs) -> None:
        result = runs(FakeRuntime(leak=9.0))

        assert (result.exit_code, result.final_pass) == (exits.FAILED, False)
        assert "off_delta_p99_above_max" in result.report["gates"]["B"]["failed_checks"]

    def test_numbers_that_are_not_finite_fail_and_are_null_in_the_files(self, runs: Runs) -> None:
        result = runs(FakeRuntime(poison=float("nan")))

        assert result.exit_code == exits.FAILED
        for gate in ("A", "B"):
            assert result.report["gates"][gate]["failure_reason"] == "nonfinite_metric"
        assert result.report["metrics"]["phase2_off_delta_p99_select"] is None
        # read_json refuses NaN; a line of metrics.jsonl has none either.
        assert read_json(result.folder / files.REPORT) == result.report
        assert "NaN" not in (result.folder / files.METRICS).read_text()

    def test_an_advisory_mode_passes_its_gates_and_not_the_run(self, runs: Runs) -> None:
        result = runs(**{"select.mode": "causal_drop_span"})

        assert (result.gateA_pass, result.gateB_pass, result.final_pass) == (True, True, False)
        assert result.report["failure_reason"] == "advisory_select_mode"

    def test_a_demo_beyond_the_models_positions_is_refused_before_anything_is_asked(self, runs: Runs) -> None:
        runtime = FakeRuntime(max_positions=20)

        result = runs(runtime)
        assert (result.exit_code, runtime.asked) == (exits.UNJUDGED, 0)
        assert "has 20 positions" in result.report["error"]

    def test_the_same_prompts_are_asked_once_and_told_each(self, tmp_path: Path, runs: Runs) -> None:
        source = tmp_path / "off.jsonl"
        source.write_text('{"text": "Task: rewrite this note."}\n{"text": "Task: explain this memo."}\n')
        changes = {"data.off.source": str(source), "data.off.allow_repeat": True}
        result = runs(**changes)

        rows = validated(list[OffRow], read_jsonl(result.folder / files.OFF_ROWS), "rows")
        assert len(rows) == 9
        assert result.report["sample_counts"]["off_unique"] == 2
        assert len({(row.text, row.arms["select"].stress) for row in rows}) == 2


class TestNoSubstitute:
    @pytest.mark.parametrize("setting", ["runtime.backend=mock", "runtime.allow_mock_fallback=true"])
    def test_no_setting_reaches_a_fake(self, tmp_path: Path, setting: str) -> None:
        config = tmp_path / "mock.yaml"
        key, _, value = setting.removeprefix("runtime.").partition("=")
        config.write_text(f"model: {{id: wired}}\nruntime: {{{key}: {value}, output_root: {tmp_path}}}\n")

        done = CliRunner().invoke(app, ["select-kv", "--config", str(config), "--run-id", "mock"])

        assert done.exit_code == exits.UNJUDGED
        report = read_json(tmp_path / "mock" / files.REPORT)
        assert validated(ErrorReport, report, files.REPORT)
        assert report["error_type"] == "HFBackendUnavailable"
        assert not any((tmp_path / "mock" / name).exists() for name in (files.METRICS, files.ON_ROWS))

    def test_an_injected_runtime_does_not_make_a_mock_backend_a_run(self, runs: Runs) -> None:
        result = runs(**{"runtime.backend": "mock"})

        assert (result.exit_code, result.report["status"]) == (exits.UNJUDGED, "error")
        assert (result.gateA_pass, result.gateB_pass) == (False, False)
