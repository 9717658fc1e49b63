"""qid_status.json and what is believed of it: states, refusals, failures, and nothing run twice."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore.experiments.errors import (
    DeviceLost,
    NotFinite,
    OtherSettings,
    StepError,
    TargetError,
    TokensError,
    cause_of,
)
from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import files
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.relation.data import RelationError
from fvcore.experiments.relation.gates import QIdStatus
from fvcore.experiments.status import Outcome
from fvcore.experiments.steps import layout
from fvcore.experiments.workers import Actor, Local, RayWorkers
from fvcore.formats import FormatError, read_json, write_json, write_text
from fvcore.prompts import BosError, BoundaryError
from fvcore.provenance import now
from fvcore.slots import SlotError
from fvcore.trials.fixed import WordPair
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.relation import control, intervals, report
    from fvcore.experiments.relation.run import run
    from fvcore.experiments.relation.unit import Unit
    from fvcore.experiments.steps import stepd
    from fvcore.model.model import LanguageModel
    from tests.fvcore.experiments.relation.worlds import SMALL, known, run_small, small, tree


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    pairs = tuple(WordPair(input=a, output=b) for a, b in known("antonym", 8))
    return Unit("Q2", tmp_path / "Q2", pairs, "r.csv", SMALL)


def run_unit(lm: LanguageModel, unit: Unit) -> Outcome:
    return unit.run(lm)


def _status(unit: Unit) -> dict[str, Any]:
    value: dict[str, Any] = read_json(unit.folder / files.STATUS)
    return value


def _with(unit: Unit, **changes: Any) -> Unit:
    return replace(unit, settings=RelationSettings.model_validate(dict(unit.settings) | changes))


def _damage(folder: Path) -> list[str]:
    found = QIdStatus.read(Folder(folder))
    assert found is not None
    return found.damage(Folder(folder))


# ---------------------------------------------------------------- states


def test_a_q_id_goes_from_running_to_completed(
    llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sweep = stepd.run
    monkeypatch.setattr(stepd, "run", lambda *args: seen.append(_status(unit)["status"]) or sweep(*args))

    outcome = run_unit(llama, unit)

    assert (outcome.status, outcome.reason, outcome.ran) == ("completed", "all stages completed", True)
    assert seen == ["running"]
    found = _status(unit)
    assert found["status"] == "completed"
    assert found["reason"] == "all stages completed"
    assert found["expected_layers"] == list(range(6))
    assert found["q_row_count"] == 8
    assert found["config"] == {
        "model": "tiny-llama", "model_spec": "llama", "relation_csv_path": "r.csv", "n_trials_per_q": 4, "n_demos": 3,
        "topk": 4, "score_key": "mean_delta_p", "alpha": 1.0, "n_eval": 3, "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("forgotten", ["all", layout.FV])
def test_completed_is_not_believed_if_it_does_not_name_what_is_required(
    llama: LanguageModel, ran: Path, tmp_path: Path, forgotten: str, there: bool
) -> None:
    root = tmp_path / "out"
    shutil.copytree(ran, root)
    status = read_json(root / "Q2" / files.STATUS)
    gone = list(status["files"]) if forgotten == "all" else [forgotten]
    write_json(
        root / "Q2" / files.STATUS,
        status | {"files": {name: sha for name, sha in status["files"].items() if name not in gone}},
    )
    for name in () if there else gone:
        (root / "Q2" / name).unlink()

    assert layout.FV in _damage(root / "Q2")
    (row,) = (row for row in report.rows(root) if row["q_id"] == "Q2")
    assert row["status"] == "damaged"
    ended = {outcome.name: outcome for outcome in run(small(tmp_path), root, SMALL, Local(llama)).outcomes}
    assert (ended["Q2"].status, ended["Q2"].ran, ended["Q1"].ran) == ("completed", True, False)
    assert _damage(root / "Q2") == []


def test_completed_of_fewer_layers_than_the_model_has_is_not_believed(llama: LanguageModel, unit: Unit) -> None:
    run_unit(llama, unit)
    write_json(unit.folder / files.STATUS, _status(unit) | {"expected_layers": [0]})

    assert run_unit(llama, unit).ran


def test_too_few_rows_are_skipped_and_looked_at_again(llama: LanguageModel, unit: Unit) -> None:
    few = replace(unit, pairs=unit.pairs[:3])

    outcome = run_unit(llama, few)

    assert (outcome.status, outcome.reason) == ("skipped", "insufficient rows (3 < 4)")
    assert (_status(unit)["status"], _status(unit)["reason"]) == ("skipped", "insufficient rows (3 < 4)")
    assert not (unit.folder / layout.SAMPLED).exists()
    assert run_unit(llama, unit).status == "completed"  # the file has more rows by now


def test_what_is_completed_is_not_run_again(llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    run_unit(llama, unit)
    before = tree(unit.folder)
    monkeypatch.setattr(stepd, "run", lambda *args: pytest.fail("StepD ran again"))

    outcome = run_unit(llama, unit)

    assert (outcome.status, outcome.ran) == ("completed", False)
    assert tree(unit.folder) == before


@pytest.mark.parametrize(
    "name",
    [
        layout.SAMPLED, layout.AIE, layout.TRIAL_METRICS, layout.TOP_HEADS, layout.FV, layout.FV_BY_LAYER,
        layout.ZERO_SHOT, layout.ALL_LAYERS, files.AIE_INTERVALS, files.RANDOM_HEADS, files.INJECTION_INTERVALS,
        "artifacts/step6/layer_3/eval_summary.json", "artifacts/step6/layer_5/step6_results_tiny-llama_layer5_n3.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["removed", "changed"])
def test_completed_is_not_believed_without_its_files(
    llama: LanguageModel, ran: Path, tmp_path: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages that stand on whole files are left alone, and the end is the same as before."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    pairs = tuple(WordPair(input=a, output=b) for a, b in known("antonym", 8))
    copy = Unit(
        "Q2", tmp_path / "Q2", pairs, read_json(ran / "Q2" / files.STATUS)["config"]["relation_csv_path"], SMALL
    )
    shutil.copytree(ran / "Q2", copy.folder)
    whole = tree(copy.folder, files.STATUS, layout.RUN_META)
    path = copy.folder / name
    path.unlink() if how == "removed" else write_text(path, path.read_bytes().decode("latin-1") + " ")
    assert _damage(copy.folder) == [name]

    assert run_unit(llama, copy).ran

    after = tree(copy.folder, files.STATUS, layout.RUN_META)
    assert set(after) == set(whole)
    without_times = {"generated_at", "timestamp"}
    for file, content in whole.items():
        if file.endswith(".json"):
            was, found = json.loads(content), json.loads(after[file])
            for key in without_times:
                for value in (was, found, was.get("meta"), found.get("meta")):
                    if isinstance(value, dict):
                        value.pop(key, None)
            assert found == was, file
        else:
            assert after[file] == content, file
    assert not _damage(copy.folder)


def test_a_completed_q_id_has_exactly_its_trials(
    llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = type(unit.source)
    sample = source.sample

    def one_less(self: Any, tokenizer: Any) -> Any:
        found = sample(self, tokenizer)
        meta = found.meta.model_copy(update={"n_trials": 3})
        return found.model_copy(update={"trials": found.trials[:3], "meta": meta})

    monkeypatch.setattr(source, "sample", one_less)

    outcome = run_unit(llama, unit)

    assert outcome.status == "failed"
    assert "3 trials sampled, expected exactly 4" in outcome.reason


def test_a_layer_without_its_files_is_no_completed_q_id(
    llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = intervals.intervals

    def and_a_file_is_lost(folder: Folder, confidence: float) -> Any:
        written = whole(folder, confidence)
        (folder / "artifacts/step6/layer_2/eval_meta.json").unlink()
        return written

    monkeypatch.setattr(intervals, "intervals", and_a_file_is_lost)

    outcome = run_unit(llama, unit)

    assert outcome.status == "failed"
    assert outcome.reason.startswith("step6 incomplete failed_layers=[] missing_layers=[2]")


def test_times_of_a_status_are_when_it_was_made_and_when_it_changed(
    llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "100")
    run_unit(llama, replace(unit, pairs=unit.pairs[:2]))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "200")
    run_unit(llama, unit)

    found = _status(unit)
    assert found["updated_at"] == now()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "100")
    assert found["created_at"] == now()


# ---------------------------------------------------------------- other settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1), ("top_heads", 5), ("alpha", 2.0), ("n_eval", 4), ("n_trials", 5), ("n_shots", 4), ("n_random", 3),
        ("score_key", "mean_delta_logit"), ("step6_score_key", "delta_acc"), ("confidence", 0.9),
        ("zeroshot_trailing_space", True), ("with_replacement", True), ("engine", "exact"),
    ],
)  # fmt: skip
def test_another_setting_is_refused_by_name_and_nothing_is_touched(
    llama: LanguageModel, ran: Path, name: str, value: Any
) -> None:
    filed = {"top_heads": "topk", "n_shots": "n_demos"}.get(name, name)
    before = tree(ran)
    relation = small_of(ran)

    with pytest.raises(OtherSettings, match=rf"{filed} is .*, now {value!r}"):
        run(relation, ran, RelationSettings.model_validate(dict(SMALL) | {name: value}), Local(llama))

    assert tree(ran) == before


def small_of(ran: Path) -> Any:
    from fvcore.experiments.relation import data

    return data.read(ran.parent / "small.csv")


def test_another_model_is_refused(lms: dict[str, LanguageModel], ran: Path) -> None:
    with pytest.raises(OtherSettings, match=r"model is 'tiny-llama', now 'tiny-gpt2'.*weights_sha"):
        run(small_of(ran), ran, SMALL, Local(lms["tiny-gpt2"]))


@pytest.mark.parametrize("state", ["running", "failed", "completed"])
def test_a_single_q_id_refuses_other_settings_in_any_state_with_results(
    llama: LanguageModel, unit: Unit, state: str
) -> None:
    run_unit(llama, unit)
    found = _status(unit)
    write_json(unit.folder / files.STATUS, found | {"status": state})
    before = tree(unit.folder)

    with pytest.raises(OtherSettings, match="seed is 0, now 3"):
        run_unit(llama, _with(unit, seed=3))
    with pytest.raises(OtherSettings, match="pairs_sha256"):
        run_unit(llama, replace(unit, pairs=unit.pairs[:-1]))

    assert tree(unit.folder) == before


def test_steps_of_other_settings_in_a_folder_without_status_are_refused(llama: LanguageModel, unit: Unit) -> None:
    from fvcore.experiments.steps.run import run as run_steps

    run_steps(llama, unit.folder, _with(unit, layers=(0, 1)).settings, unit.source, ["sample", "stepd"])

    with pytest.raises(OtherSettings, match="layers is"):
        run_unit(llama, unit)

    assert _status(unit)["status"] == "pending"


def test_memory_and_pictures_are_no_other_settings(
    llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_unit(llama, unit)
    monkeypatch.setattr(stepd, "run", lambda *args: pytest.fail("StepD ran again"))

    assert run_unit(llama, _with(unit, max_memory=10**8)).ran is False
    assert run_unit(llama, _with(unit, pictures=True)).ran  # the picture alone is drawn
    assert layout.heatmap("Q2") in _status(unit)["files"]
    assert run_unit(llama, _with(unit, pictures=True)).ran is False
    assert run_unit(llama, unit).ran is False


def test_a_status_that_is_none_is_named(unit: Unit, llama: LanguageModel) -> None:
    write_json(unit.folder / files.STATUS, {"q_id": "Q2", "status": "finished"})

    with pytest.raises(FormatError, match=r"qid_status\.json: not a unit's status \(key 'status'"):
        run_unit(llama, unit)


# ---------------------------------------------------------------- failures

CLASSES: list[tuple[BaseException | Callable[[], BaseException], str]] = [
    (RelationError("x"), "data"),
    (FormatError("x"), "data"),
    (FileNotFoundError("x"), "data"),
    (BosError("x"), "tokenizer"),
    (SlotError("x"), "tokenizer"),
    (TokensError("x"), "tokenizer"),
    (BoundaryError("x"), "target boundary"),
    (TargetError("x"), "target boundary"),
    (MemoryError(), "memory"),
    (lambda: torch.OutOfMemoryError("x"), "memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), "memory"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried ..."), "memory"),
    (OSError(errno.ENOSPC, "No space left on device"), "memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
    (RuntimeError("CUDA error: invalid configuration argument"), "code"),
    (NotFinite("x"), "numeric"),
    (ZeroDivisionError("x"), "numeric"),
    (StepError("x"), "code"),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "code"),
    (KeyError("x"), "code"),
]


@pytest.mark.parametrize(("error", "cause"), CLASSES, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_a_failure_has_its_cause_and_the_step_that_was_at_work(
    llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch, error: Any, cause: str
) -> None:
    error = error if isinstance(error, BaseException) else error()

    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(stepd, "run", fail)

    outcome = run_unit(llama, unit)

    assert outcome.status == "failed"
    found = _status(unit)
    assert (found["status"], found["cause"], found["step"]) == ("failed", cause, "stepd")
    assert type(error).__name__ in (unit.folder / files.FAILURE_LOG).read_text()


LOST = [
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, ...)`",
    "CUDA unknown error - this may be due to an incorrectly set up environment",
    "No CUDA GPUs are available",
    "NCCL Error 2: unhandled system error",
    "HIP error: the operation cannot be performed in the present state",
]


def test_a_lost_device_is_no_fault_of_the_code() -> None:
    assert [cause_of(RuntimeError(words)) for words in LOST] == ["device"] * len(LOST)
    assert cause_of(torch.AcceleratorError("XPU error: gone")) == "device"
    assert cause_of(RuntimeError("expected all tensors to be on the same device")) == "code"


def test_a_process_without_its_device_leaves_the_other_q_ids_alone(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*args: Any) -> Any:
        raise RuntimeError(LOST[1])

    monkeypatch.setattr(stepd, "run", lose)
    summary = run_small(llama, tmp_path)

    assert [outcome.status for outcome in summary.outcomes] == ["failed"]
    assert "start the same command again" in summary.stopped
    states = [one.status for one in QIdStatus.all_of(tmp_path / "out").values()]
    assert states.count("failed") == len(states) - states.count("pending") == 1


def test_an_actor_without_its_device_makes_room_for_another(
    llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unit.folder.parent)  # where the actor goes
    lost = SimpleNamespace(run=lambda tool, progress: Outcome("Q2", "failed", LOST[1], cause="device"))
    actor = Actor(lambda: llama, str(unit.folder.parent), 1)
    with pytest.raises(DeviceLost, match="Q2: this process lost its device"):
        actor.run(lost)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("death", "cause", "how"),
    [
        (DeviceLost("gone"), "device", "lost its device 3 times: gone"),
        (RuntimeError("the node was running low on memory"), "memory", "ended 3 times without a word"),
        (RuntimeError("killed"), "code", "ended 3 times without a word: killed"),
    ],
)
def test_a_unit_whose_actors_die_is_given_up_with_what_they_died_of(
    unit: Unit, monkeypatch: pytest.MonkeyPatch, death: Exception, cause: str, how: str
) -> None:
    made = list[Any]()

    class Dying(RayWorkers[Any]):
        n_actors = 1

        def _new_actor(self) -> Any:
            made.append(SimpleNamespace(run=SimpleNamespace(remote=lambda unit: unit.name)))
            return made[-1]

        def _next(self, running: Any) -> Any:
            return *running.popitem()[1], death

    monkeypatch.setattr("fvcore.experiments.workers._kill", lambda actor: None)
    (outcome,) = Dying(lambda: None).map([unit])

    assert (outcome.status, outcome.cause) == ("failed", cause)
    assert how in outcome.reason
    assert len(made) == 1 + 3  # each death has one take its place


def test_an_error_that_was_said_better_keeps_its_cause() -> None:
    def says_it_better() -> None:
        try:
            raise BoundaryError("ids")
        except BoundaryError as error:
            raise StepError(f"trial 3: {error}") from None

    with pytest.raises(StepError) as raised:
        says_it_better()

    assert cause_of(raised.value) == "target boundary"


def test_a_real_word_that_does_not_tokenise_at_the_boundary_is_said_so(llama: LanguageModel, unit: Unit) -> None:
    long = "x" * 700
    pairs = tuple(WordPair(input=f"{long}{i}", output="y") for i in range(5))

    outcome = run_unit(llama, replace(unit, pairs=pairs))

    assert (_status(unit)["cause"], _status(unit)["step"]) == ("target boundary", "sample")
    assert "use fewer shots" in outcome.reason


def test_what_failed_is_run_again_and_leaves_no_trace(
    llama: LanguageModel, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    other = replace(unit, folder=unit.folder.parent / "other")
    with monkeypatch.context() as broken:
        broken.setattr(control, "random_heads", lambda *args: 1 / 0)
        assert run_unit(llama, other).status == "failed"

    run_unit(llama, unit)
    run_unit(llama, other)

    assert tree(other.folder) == tree(unit.folder)


def test_one_failure_does_not_stop_the_others(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepd, "run", _failing_for("Q10", stepd.run))

    summary = run_small(llama, tmp_path)

    assert summary.q_ids("failed") == ["Q10"]
    assert summary.q_ids("completed") == ["Q1", "Q2"]
    assert summary.q_ids("skipped") == ["Q3"]
    found = read_json(summary.root / files.RUN_SUMMARY)
    assert (found["status"], found["processed"], found["failed_q_ids"]) == ("failed", 4, ["Q10"])
    report = read_json(summary.root / files.FAILURES)
    assert report["by_cause"] == {"numeric": ["Q10"]}
    (row,) = report["failures"]
    assert (row["q_id"], row["cause"], row["step"], row["message"]) == ("Q10", "numeric", "stepd", "not finite")
    assert "not finite" in (summary.root / row["traceback"]).read_text()


def test_stop_on_error_leaves_the_later_ones_pending(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepd, "run", _failing_for("Q10", stepd.run))

    summary = run(small(tmp_path), tmp_path / "out", SMALL, Local(llama), stop_on_error=True)

    assert summary.stopped
    assert [outcome.name for outcome in summary.outcomes] == ["Q1", "Q10"]
    states = {q_id: one.status for q_id, one in QIdStatus.all_of(summary.root).items()}
    assert states == {"Q1": "completed", "Q10": "failed", "Q2": "pending", "Q3": "pending"}
    assert read_json(summary.root / files.RUN_SUMMARY)["status"] == "stopped"


def _failing_for(q_id: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def maybe(measure: Any, sampled: Any, *args: Any) -> Any:
        if sampled.q_ids == [q_id]:
            raise NotFinite("not finite")
        return work(measure, sampled, *args)

    return maybe


def test_a_failure_that_cannot_be_written_down_is_said_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    unit = Unit("Q1", tmp_path / "file" / "Q1", (), "a.csv", RelationSettings())

    outcome = unit.give_up("code", "its process ended")

    assert (outcome.name, outcome.status) == ("Q1", "failed")
    assert outcome.reason.startswith("its process ended; and this could not be written down (")
