"""Runs on the hand-wired model: passed, stopped by each rule for its own reason, resumed to the same bytes, never mixed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore import exits
from fvcore.experiments.errors import OtherSettings
from fvcore.experiments.folder import Folder
from fvcore.experiments.select_kv import files
from fvcore.formats import read_json
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.embedded import wired
    from fvcore.experiments.config import ConfigError
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.model_runtime import load_runtime
    from fvcore.experiments.select_kv.reading import measured, read_settings
    from fvcore.experiments.select_kv.run import run_phase2

if TYPE_CHECKING:
    import torch

    from fvcore.experiments.select_kv.config import Phase2

SMALL = {
    "data.synthetic.num_pairs": 8, "eval.on_samples": 6, "eval.off_samples": 12, "select.span_len": 2,
    "select.span_budget": 2, "runtime.device": "cpu", "runtime.torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The wired model with its knobs, saved once each."""
    made: dict[tuple[tuple[str, float], ...], Path] = {}

    def of(**knobs: float) -> Path:
        key = tuple(sorted(knobs.items()))
        if key not in made:
            made[key] = wired.save(tmp_path_factory.mktemp("model") / "wired", **knobs)
        return made[key]

    return of


@pytest.fixture(scope="module")
def made(models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, made once, while the clock stood."""
    where = {"model.id": str(models()), "runtime.output_root": str(tmp_path_factory.mktemp("whole"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "0")
        return run_phase2(Phase2().changed({**SMALL, **where}), run_id="run").folder


@pytest.fixture
def settings(models: Callable[..., Path], tmp_path: Path) -> Callable[..., Phase2]:
    def of(knobs: dict[str, float] | None = None, **changes: Any) -> Phase2:
        where = {"model.id": str(models(**(knobs or {}))), "runtime.output_root": str(tmp_path)}
        return Phase2().changed({**SMALL, **where, **changes})

    return of


Settings = Callable[..., "Phase2"]


class Planted:
    """The model's runtime but for what a test changes of it."""

    def __init__(self, settings: Phase2) -> None:
        self.real = load_runtime(settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Contrary(Planted):
    """The least attended tokens count as the most attended ones."""

    def read_demo(self, *asked: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits, scores = self.real.read_demo(*asked)
        return logits, -scores


class Stale(Planted):
    """The cached teacher is that of another moment."""

    def read_demo(self, *asked: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits, scores = self.real.read_demo(*asked)
        return logits.roll(1), scores


class Moody(Planted):
    """The first time it answers rightly, the second time not."""

    def __init__(self, settings: Phase2) -> None:
        super().__init__(settings)
        self.times = 0

    def next_logits_of_prefixes(self, query: Sequence[int], prefixes: Sequence[Any]) -> torch.Tensor:
        logits: torch.Tensor = self.real.next_logits_of_prefixes(query, prefixes)
        self.times += len(prefixes) == 2  # the arms that a repetition asks again
        return logits if len(prefixes) != 2 or self.times % 2 else logits.roll(1, dims=-1)


class Forgetful(Planted):
    """The whole demo as a prefix says something else than the demo in the text."""

    def next_logits_of_prefixes(self, query: Sequence[int], prefixes: Sequence[Any]) -> torch.Tensor:
        logits: torch.Tensor = self.real.next_logits_of_prefixes(query, prefixes)
        whole = torch.tensor([[len(prefix.selected) > 20] for prefix in prefixes])
        return torch.where(whole, logits.roll(1, dims=-1), logits)


class Nudged(Planted):
    """A prefix of nothing changes something."""

    def next_logits_of_prefixes(self, query: Sequence[int], prefixes: Sequence[Any]) -> torch.Tensor:
        logits: torch.Tensor = self.real.next_logits_of_prefixes(query, prefixes)
        nothing = torch.tensor([[float(not prefix.selected)] for prefix in prefixes])
        return logits + 20.0 * nothing * torch.eye(logits.shape[-1])[0]


class Killed(Planted):
    """The process ends in the middle of its n-th request."""

    def __init__(self, settings: Phase2, after: int) -> None:
        super().__init__(settings)
        self.left = after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if name not in {"next_logits", "next_logits_of_prefixes", "read_demo", "prefill"}:
            return found
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return found


def bytes_of(root: Path) -> dict[str, bytes]:
    folder = Folder(root)
    return {name: (folder / name).read_bytes() for name in folder.names("**/*") if (folder / name).is_file()}


class TestVerdicts:
    def test_the_wired_model_passes_both_gates_at_the_plans_thresholds(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        asked, copy = settings(), tmp_path / "copy" / "report.json"
        result = run_phase2(asked, run_id="run", report_path=copy)

        # The saved config is what was resolved, and the report lies where it was asked for too.
        assert read_settings(Folder(result.folder)) == asked.changed({"injection.kv_source": "gather"})
        assert read_json(copy) == result.report
        assert (result.exit_code, result.report["failure_reason"]) == (exits.PASSED, "ok")
        on = result.report["on"]
        assert (on["teacher"]["accuracy"], on["select"]["accuracy"], on["base"]["accuracy"]) == (1.0, 1.0, 0.0)
        assert on["full"]["kl_teacher"] < 1e-9
        assert result.report["off"]["select"]["p99_stress"] < 1e-2

    def test_gates_are_judged_again_from_the_files_alone(self, made: Path) -> None:
        numbers, metrics = measured(made), read_json(made / files.REPORT)["metrics"]

        assert numbers.acc_select == metrics["phase2_on_acc_student_select"]
        assert numbers.off_delta_p99 == metrics["phase2_off_delta_p99_select"]

    def test_a_repeated_run_is_the_same_run(self, settings: Settings) -> None:
        found = run_phase2(settings(**{"eval.repro_runs": 3}), run_id="run").report["reproducibility"]

        assert found["repro_selection_identical"]
        assert found["repro_max_abs_logit_diff"] == 0.0

    def test_both_sources_are_reported_side_by_side(self, settings: Settings) -> None:
        report = run_phase2(settings(**{"reporting.compare_kv_sources": True}), run_id="run").report

        # Two tokens of a pair without its key: only the demo's own cache knows what they belong to.
        assert report["kv_source"] == "gather"
        assert report["on"]["select"]["accuracy"] == 1.0
        assert report["on"]["select_recompute"]["accuracy"] < 0.5
        assert "select_recompute" in report["off"]

    def test_whole_answers_can_be_asked_for(self, settings: Settings) -> None:
        report = run_phase2(settings(**{"eval.answer_scoring": "full_answer"}), run_id="run").report

        assert (report["on"]["select"]["accuracy"], report["on"]["base"]["accuracy"]) == (1.0, 0.0)

    def test_states_are_capped_and_that_is_reported(self, settings: Settings) -> None:
        result = run_phase2(settings(**{"eval.off_state_limit": 2}), run_id="run")

        assert result.report["sample_counts"]["states"] == 2


Fault = tuple[dict[str, float], dict[str, Any], Callable[..., Any] | None]
OPEN = {"thresholds.on_gain_min": -1.0}
VARIANTS: dict[str, Fault] = {
    "teacher_cache_kl_above_max": ({}, {}, Stale),
    "teacher_divergence_below_min": ({"match_gain": 0.0}, {}, None),
    "null_effect_above_max": ({}, {}, Nudged),
    "full_effect_below_min": ({"match_gain": 0.0}, {"thresholds.teacher_min_divergence": 0.0}, None),
    "roundtrip_above_max": ({}, {}, Forgetful),
    "repro_above_tol": ({}, {}, Moody),
    "on_eval_invalid": ({"match_gain": 0.0}, {}, None),
    "on_gain_below_min": ({}, {"prefix_len": 0}, None),
    "off_delta_p99_above_max": ({"leak": 6.0}, {}, None),
    "delta_on_below_min": ({}, {"prefix_len": 0, **OPEN}, None),
    "rel_kl_to_teacher_above_max": ({"match_gain": 0.2}, {"thresholds.teacher_min_on_acc": 0.0, **OPEN}, None),
    "select_below_random_mean": (
        {}, {**OPEN, "thresholds.delta_on_min": 0.0, "thresholds.rel_kl_to_teacher_max": 9.0}, Contrary,
    ),
}  # fmt: skip


class TestEveryReason:
    @pytest.mark.parametrize("reason", VARIANTS)
    def test_a_broken_run_fails_for_its_own_reason(self, settings: Settings, reason: str) -> None:
        knobs, changes, plant = VARIANTS[reason]
        asked = settings(knobs, **changes)

        result = run_phase2(asked, run_id="run", runtime=None if plant is None else plant(asked))

        assert result.exit_code == exits.FAILED
        gates = result.report["gates"]
        assert reason in {gates["A"]["failure_reason"], gates["B"]["failure_reason"]}
        if plant is not None:
            assert [one for gate in gates.values() for one in gate["failed_checks"]] == [reason]


class TestResume:
    @pytest.fixture(autouse=True)
    def _clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")

    @pytest.fixture
    def whole(self, made: Path, tmp_path: Path) -> dict[str, bytes]:
        return bytes_of(shutil.copytree(made, tmp_path / "run"))

    @pytest.mark.parametrize("after", [3, 40, 75, 90])
    def test_a_killed_run_goes_on_to_the_same_bytes(
        self, settings: Settings, tmp_path: Path, whole: dict[str, bytes], after: int
    ) -> None:
        asked = settings(**{"runtime.output_root": str(tmp_path / "again")})
        with pytest.raises(KeyboardInterrupt):
            run_phase2(asked, run_id="run", runtime=Killed(asked, after))
        before = bytes_of(tmp_path / "again" / "run")
        assert files.REPORT not in before

        run_phase2(asked, run_id="run")

        assert _but_output_root(bytes_of(tmp_path / "again" / "run")) == _but_output_root(whole)

    def test_a_finished_run_asks_the_model_nothing(self, settings: Settings, whole: dict[str, bytes]) -> None:
        again = load_runtime(settings())
        result = run_phase2(settings(), run_id="run", runtime=again)

        assert set(again.calls) <= {"prefill"}  # the builder looks at the shapes of a cache
        assert bytes_of(result.folder) == whole

    def test_a_file_that_was_changed_is_made_again(self, settings: Settings, whole: dict[str, bytes]) -> None:
        root = settings().runtime.output_root / "run"
        (root / files.OFF_ROWS).write_text("")

        run_phase2(settings(), run_id="run")

        assert bytes_of(root) == whole

    @pytest.mark.parametrize(
        "change, named",
        [
            ({"select.span_len": 3}, "select.span_len is 2, now 3"),
            ({"thresholds.off_delta_p99_max": 1.0}, "thresholds.off_delta_p99_max is 0.05, now 1.0"),
            ({"seed": 8}, "seed is 7, now 8.* use another --run-id"),
        ],
    )
    def test_other_settings_are_refused_and_nothing_is_touched(
        self, settings: Settings, whole: dict[str, bytes], change: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(OtherSettings, match=named):
            run_phase2(settings(**change), run_id="run")

        assert bytes_of(settings().runtime.output_root / "run") == whole

    def test_other_weights_are_refused(self, settings: Settings, whole: dict[str, bytes]) -> None:
        other = load_runtime(settings({"leak": 6.0}))

        with pytest.raises(OtherSettings, match="weights_sha"):
            run_phase2(settings(), run_id="run", runtime=other)

    def test_overwriting_begins_anew(self, settings: Settings, whole: dict[str, bytes]) -> None:
        result = run_phase2(settings(**{"select.span_len": 3}), run_id="run", overwrite=True)

        assert result.report["select"]["span_len"] == 3


def _but_output_root(found: dict[str, bytes]) -> dict[str, bytes]:
    """Where it is written stands in the config alone."""
    lines = found[files.CONFIG].splitlines()
    return found | {files.CONFIG: b"\n".join(line for line in lines if b"output_root" not in line)}


class TestFolder:
    def test_a_folder_of_something_else_is_refused(self, settings: Settings, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").write_text("...")

        with pytest.raises(OtherSettings, match=r"thesis\.tex and no run of Select-KV"):
            run_phase2(settings(), run_id="run")

    @pytest.mark.parametrize("run_id", ["", "a/b", "..", ".hidden"])
    def test_a_run_id_names_a_folder(self, settings: Settings, run_id: str) -> None:
        with pytest.raises(ConfigError, match="--run-id"):
            run_phase2(settings(), run_id=run_id)

    def test_what_stops_a_run_is_told_by_its_report(self, settings: Settings, tmp_path: Path) -> None:
        result = run_phase2(settings(**{"model.id": str(tmp_path / "nowhere")}), run_id="run")

        assert result.exit_code == exits.UNJUDGED
        report = read_json(result.folder / files.REPORT)
        assert (report["status"], report["error_type"]) == ("error", "HFBackendUnavailable")
        assert "gates" not in report

    def test_a_mishap_does_not_take_a_verdict_back(self, settings: Settings, tmp_path: Path) -> None:
        whole = bytes_of(run_phase2(settings(), run_id="run").folder)

        again = run_phase2(settings(**{"model.id": str(tmp_path / "nowhere")}), run_id="run")

        assert again.exit_code == exits.UNJUDGED
        assert bytes_of(again.folder) == whole

    def test_after_an_error_the_run_can_be_started_again(self, settings: Settings, tmp_path: Path) -> None:
        run_phase2(settings(**{"model.id": str(tmp_path / "nowhere")}), run_id="run")

        assert run_phase2(settings(), run_id="run").final_pass
