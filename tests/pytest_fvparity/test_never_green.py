"""What tries to look green without having been compared, and runs that other plugins, marks or folders disturb."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore.gates import StageResult, Status
from pytest_fvparity.suite.declaration import FILES_KEY
from pytest_fvparity.suite.item import REPORT_ATTRIBUTE
from pytest_fvparity.suite.reporter import SuiteReporter
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    from tests.pytest_fvparity import stand_in
    from tests.pytest_fvparity.worlds import World, plant, reports, statuses


@pytest.fixture
def old_pass(pytester: pytest.Pytester, world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The reports of an earlier run, which passed; made once."""
    kept, here = tmp_path_factory.getbasetemp() / "old_pass", pytester.path / "reports"
    if not kept.exists():
        pytester.runpytest_inprocess("-m", "parity", *world.options)
        shutil.copytree(here, kept)
    shutil.copytree(kept, here, dirs_exist_ok=True)
    assert reports(pytester)[0]["overall_status"] == "PASS"


def test_a_stage_that_the_candidate_skips_is_an_error_and_blocks(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "slot_map", "import pytest; pytest.skip('not today')")

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*not today*", "*4 blocked*"])
    (report,) = reports(pytester)
    assert list(statuses(report).values()) == ["PASS", "ERROR", *["BLOCKED"] * 4]
    assert report["headline"] == "ERROR: nothing could be judged at slot_map: skipped: not today"


@pytest.mark.parametrize("statement", ["import sys; sys.exit(0)", "import pytest; pytest.fail('no')"])
def test_a_candidate_that_leaves_is_an_error_and_blocks(
    pytester: pytest.Pytester, world: World, statement: str
) -> None:
    plant(pytester, "slot_map", statement)

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert list(statuses(report).values()) == ["PASS", "ERROR", *["BLOCKED"] * 4]


def test_an_expected_failure_is_still_a_divergence(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        import pytest
        from fvcore.pipeline import Pipeline

        class Faulty(Pipeline):
            def slot_map(self, prompts):
                return {}

        def pytest_fvparity_candidate(lm, trials, settings):
            return Faulty(lm, trials, settings)

        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.xfail)
        """
    )

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert report["first_divergence"]["check_key"] == "slot_map"


def test_a_failure_is_not_forgotten_when_a_stage_is_run_again() -> None:
    reporter = SuiteReporter(SimpleNamespace(stash={FILES_KEY: {}}, rootpath=Path()))  # type: ignore[arg-type]

    def row(status: Status) -> Any:
        suite = {"keys": ["one"], "planned": ["one"], "keep_going": False}
        row = {"suite": suite, "context": {}, "result": StageResult("toy", "one", status).to_dict()}
        return SimpleNamespace(
            nodeid="a.py::toy::one", when="call", capstdout="", capstderr="", **{REPORT_ATTRIBUTE: json.dumps(row)}
        )

    for status in (Status.FAIL, Status.PASS):
        reporter.pytest_runtest_logreport(row(status))

    assert reporter.runs["a.py::toy"].status("one") is Status.FAIL


def test_an_error_after_a_stage_hides_no_divergence_and_spoils_a_pass(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        import pytest
        from fvcore.pipeline import Pipeline

        class Faulty(Pipeline):
            def slot_map(self, prompts):
                return {**super().slot_map(prompts), "dummy_labels": []}

        def pytest_fvparity_candidate(lm, trials, settings):
            return Faulty(lm, trials, settings)

        @pytest.fixture(autouse=True)
        def untidy(request):
            yield
            if request.node.name in request.config.getini("markers")[0]:
                raise RuntimeError("cannot clean up")
        """
    )
    for name, found in {"prompt_boundary": ["ERROR", "BLOCKED"], "slot_map": ["PASS", "FAIL"]}.items():
        pytester.makeini(f"[pytest]\nmarkers = {name}: the stage with the untidy fixture")
        result = pytester.runpytest_inprocess("-m", "parity", *world.options)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        (report,) = reports(pytester)
        assert list(statuses(report).values())[:2] == found


# ---------------------------------------------------------------- which files


def test_trials_that_are_given_run_beside_a_stage_that_is_named(pytester: pytest.Pytester, two_files: World) -> None:
    named, given = two_files.trials

    result = pytester.runpytest_inprocess(
        f"{named}::parity::slot_map", f"--fv-trials={given}", two_files.options[0], two_files.options[-1]
    )

    result.assert_outcomes(passed=1 + 6)


def test_trials_without_a_selected_stage_are_said_to_be_uncompared(pytester: pytest.Pytester, world: World) -> None:
    pytester.makepyfile("def test_mine(): pass")

    result = pytester.runpytest_inprocess("-k", "mine", *world.options)

    result.assert_outcomes(passed=1, deselected=6)
    result.stdout.fnmatch_lines([f"no parity stage of {world.trials[0].name} is selected: nothing of it was compared"])


def test_two_files_of_one_name_are_refused(pytester: pytest.Pytester, world: World) -> None:
    copy = pytester.path / world.trials[0].name
    shutil.copy(world.trials[0], copy)

    result = pytester.runpytest_inprocess("-m", "parity", *world.options, f"--fv-trials={copy}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*two trials files of one name*"])


def test_trials_in_the_ini_file_do_not_turn_every_run_into_a_parity_run(
    pytester: pytest.Pytester, world: World
) -> None:
    pytester.makeini(f"[pytest]\nfv_trials = {world.trials[0]}\nfv_model = {world.model}\nfv_golden = {world.golden}")
    pytester.makepyfile("def test_mine(): pass")

    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    pytester.runpytest_inprocess("-m", "parity").assert_outcomes(passed=6, deselected=1)


def test_paths_in_the_ini_file_are_relative_to_it(pytester: pytest.Pytester, world: World) -> None:
    shutil.copytree(world.golden, pytester.path / "recorded")
    shutil.copy(world.trials[0], pytester.path)
    pytester.makeini(f"[pytest]\nfv_trials = {world.trials[0].name}\nfv_golden = recorded\nfv_report_dir = said")
    below = pytester.mkdir("below")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(below)
        result = pytester.runpytest_inprocess("-m", "parity", f"--fv-model={world.model}")

    result.assert_outcomes(passed=6)
    assert (pytester.path / "said" / "summary.json").is_file()


def test_a_number_in_the_ini_file_that_is_none_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfv_edit_layer = two")

    result = pytester.runpytest_inprocess("-m", "parity")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ini fv_edit_layer: expected a whole number, found *two*"])


def test_an_editable_install_is_not_run_from_elsewhere_without_trials(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("-m", "parity")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*installed from * (editable): run `pytest -m parity` there, or copy *--fv-trials*"])


# ---------------------------------------------------------------- reports that must not outlive their run


@pytest.mark.usefixtures("old_pass")
def test_a_refused_recording_leaves_the_reports_of_the_last_run(pytester: pytest.Pytester, world: World) -> None:
    before = reports(pytester)
    src = pytester.mkdir("no-checkout")

    result = pytester.runpytest_inprocess("-m", "parity", "--fv-regen-golden", f"--fv-src={src}", *world.options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert reports(pytester) == before


def test_recording_is_refused_for_a_model_the_reference_would_not_see(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        f"""
        import pytest
        from fvcore.model import model as models

        @pytest.fixture(scope="session")
        def fv_model():
            return models.load({str(world.model)!r})
        """
    )

    checkout = stand_in.plant(pytester.path)
    result = pytester.runpytest_inprocess("-m", "parity", "--fv-regen-golden", f"--fv-src={checkout}", *world.options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "fixture fv_model is overridden" in result.stdout.str() + result.stderr.str()


def test_trials_that_became_unreadable_leave_no_old_pass(pytester: pytest.Pytester, world: World) -> None:
    path = pytester.path / world.trials[0].name
    shutil.copy(world.trials[0], path)
    own = World(world.model, (path,), world.golden)
    pytester.runpytest_inprocess("-m", "parity", *own.options)
    assert reports(pytester)[0]["overall_status"] == "PASS"
    path.write_text("{")

    pytester.runpytest_inprocess("-m", "parity", *own.options)

    (report,) = reports(pytester)
    assert report["overall_status"] == "FAIL"


def test_a_report_that_cannot_be_written_is_said_and_red(pytester: pytest.Pytester, world: World) -> None:
    (pytester.path / "taken").mkdir()
    (pytester.path / "taken" / "pairs").write_text("a file where a folder must be")

    result = pytester.runpytest_inprocess("-m", "parity", "--fv-report-dir=taken", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["reports NOT WRITTEN:*taken*--fv-report-dir*"])


# ---------------------------------------------------------------- candidates with odd answers


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ('leaves["cie"] = leaves["cie"].numpy()', "leaf 'cie' holds a numpy.ndarray; expected a dense torch tensor"),
        ('leaves["heads"] = [tuple(h) for h in leaves["heads"]]', "leaf 'heads' holds a builtins.tuple"),
        ("return 3", "expected a mapping from leaf to value, the candidate gave a int"),
    ],
)
def test_an_answer_in_another_form_is_named(pytester: pytest.Pytester, world: World, fault: str, message: str) -> None:
    plant(pytester, "top_heads", fault)

    pytester.runpytest_inprocess("-m", "parity", *world.options)

    (report,) = reports(pytester)
    assert statuses(report)["top_heads"] == "ERROR"
    assert message in report["headline"]


def test_numbers_that_are_none_reach_every_report_as_words(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        from fvcore.pipeline import Pipeline

        class Broken(Pipeline):
            def top_heads(self, *inputs):
                leaves = super().top_heads(*inputs)
                return {**leaves, "aie": leaves["aie"] * float("nan")}

            def injection_output(self, *inputs):
                return {k: v * float("nan") if isinstance(v, float) else v for k, v in
                        super().injection_output(*inputs).items()}

        def pytest_fvparity_candidate(lm, trials, settings):
            return Broken(lm, trials, settings)
        """
    )

    result = pytester.runpytest_inprocess("-m", "parity", "--fv-keep-going", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert {value for row in report["heads"]["aie_actual"] for value in row} == {"nan"}
    assert report["trials"][0]["with_logprob_fv"] == "nan"
    (folder,) = pytester.path.glob("reports/*/*")
    for file in folder.glob("*.json"):
        json.loads(file.read_text(), parse_constant=pytest.fail)  # called for what JSON does not know
    assert "aie" in (folder / "src_vs_fv_diff_report.html").read_text()


def test_a_candidate_that_edits_its_inputs_changes_no_golden(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        from fvcore.pipeline import Pipeline

        class Careless(Pipeline):
            def top_heads(self, prompts, slot_map, means):
                means["mean_activations"].zero_()
                return super().top_heads(prompts, slot_map, means)

        def pytest_fvparity_candidate(lm, trials, settings):
            return Careless(lm, trials, settings)
        """
    )

    pytester.runpytest_inprocess("-m", "parity", "--fv-keep-going", *world.options)

    (report,) = reports(pytester)
    found = statuses(report)
    assert (found["mean_activations"], found["top_heads"]) == ("PASS", "FAIL")
    # Judged on the golden's means: had they been zeroed too, both sides would be wrong together.
    faults = {check["key"]: check["fault"] for check in report["checks"]}
    assert (faults["top_heads"], faults["fv_vector"]) == ("own", "inherited")


LOOSE_MEANS = """
    def pytest_fvparity_tolerances(dtype, device):
        return [{"key": "mean_activations", "leaf": "mean_activations", "atol": 10.0}]
    """


def test_differences_within_tolerance_that_add_up_are_nobody_s_own(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "mean_activations", 'leaves["mean_activations"] = leaves["mean_activations"] + 0.5')
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + "\n" + "\n".join(line[4:] for line in LOOSE_MEANS.splitlines()))

    pytester.runpytest_inprocess("-m", "parity", *world.options)

    (report,) = reports(pytester)
    checks = {check["key"]: check for check in report["checks"]}
    assert checks["mean_activations"]["status"] == "PASS"
    assert (checks["top_heads"]["status"], checks["top_heads"]["fault"]) == ("FAIL", "accumulated")
    assert checks["top_heads"]["first_mismatch"]["abs_diff"] > 0


def test_other_tolerances_stand_in_the_first_line(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(LOOSE_MEANS)

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    result.assert_outcomes(passed=6)
    (report,) = reports(pytester)
    assert report["headline"].endswith("under tolerances of hook pytest_fvparity_tolerances")
    (row,) = report["checks"][2]["tolerances"]
    assert (row["atol"], row["rule"]) == (10.0, "hook pytest_fvparity_tolerances rule 1")
    (row,) = [row for row in report["checks"][4]["tolerances"] if row["leaf"] == "norm"]
    assert row["rule"].startswith("default rule ")


def test_what_is_odd_but_no_difference_is_a_warning(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        from fvcore.pipeline import Pipeline

        class Talkative(Pipeline):
            def notes(self, key):
                return ["merged_boundary: look here"] if key == "slot_map" else []

        def pytest_fvparity_candidate(lm, trials, settings):
            return Talkative(lm, trials, settings)
        """
    )

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["2 slot_map *merged_boundary*"])
    (report,) = reports(pytester)
    assert [warning["message"] for warning in report["checks"][1]["warnings"]] == ["merged_boundary: look here"]


def test_a_missing_gpu_is_reproduced_on_that_device(pytester: pytest.Pytester, world: World) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", "--fv-device=cuda:7", "--fv-require-gpu", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert "--fv-device=cuda:7" in report["repro_command"]
    assert Path("reports") not in [Path(word) for word in report["repro_command"].split()]


# ---------------------------------------------------------------- what a user's own code can touch


def test_a_user_who_edits_the_golden_edits_a_copy(pytester: pytest.Pytester, world: World) -> None:
    pytester.makepyfile(
        test_a="""
        import pytest

        @pytest.mark.parity
        def test_mine(fv_golden):
            fv_golden.fv_vector()["function_vector"].zero_()
            fv_golden.prompt_boundary()["0:0/clean/input_ids"].clear()
        """
    )

    pytester.runpytest_inprocess("test_a.py", "-m", "parity", *world.options).assert_outcomes(passed=7)


def test_a_candidate_that_edits_a_list_it_is_handed_spoils_no_other_key(
    pytester: pytest.Pytester, world: World
) -> None:
    pytester.makeconftest(
        """
        from fvcore.pipeline import Pipeline

        class Careless(Pipeline):
            def slot_map(self, prompts):
                leaves = super().slot_map(prompts)
                for ids in prompts.values():
                    if isinstance(ids, list):
                        ids[-1] = 0
                return {**leaves, "dummy_labels": []}

        def pytest_fvparity_candidate(lm, trials, settings):
            return Careless(lm, trials, settings)
        """
    )

    pytester.runpytest_inprocess("-m", "parity", "--fv-keep-going", *world.options)

    (report,) = reports(pytester)
    faults = {check["key"]: check["fault"] for check in report["checks"]}
    assert faults["slot_map"] == "own"
    assert "own" not in [faults[key] for key in ("mean_activations", "top_heads", "fv_vector", "injection_output")]


def test_two_faults_that_cancel_are_both_seen(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        from fvcore.pipeline import Pipeline

        class Cancelling(Pipeline):
            def mean_activations(self, *inputs):
                return {k: 2 * v for k, v in super().mean_activations(*inputs).items()}

            def top_heads(self, prompts, slot_map, means):
                return super().top_heads(prompts, slot_map, {k: v / 2 for k, v in means.items()})

        def pytest_fvparity_candidate(lm, trials, settings):
            return Cancelling(lm, trials, settings)
        """
    )

    pytester.runpytest_inprocess("-m", "parity", "--fv-keep-going", *world.options)

    (report,) = reports(pytester)
    found = {check["key"]: (check["status"], check["fault"]) for check in report["checks"]}
    assert found["mean_activations"] == ("FAIL", "own")
    assert found["top_heads"] == ("FAIL", "own")
    assert report["mode"] == "keep-going"


def test_an_earlier_fault_that_was_not_selected_is_still_why(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "mean_activations", 'leaves["mean_activations"] = -3 * leaves["mean_activations"]')

    pytester.runpytest_inprocess("-m", "parity", "-k", "fv_vector", *world.options)

    (report,) = reports(pytester)
    assert [(check["key"], check["fault"]) for check in report["checks"]] == [("fv_vector", "inherited")]


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("top_heads", 'leaves["aie"] = leaves["aie"].flatten()'),
        ("top_heads", 'leaves["heads"] = [head for head, _ in leaves["heads"]]'),
        ("top_heads", 'leaves["scores"] = leaves["scores"].sum()'),
        ("prompt_boundary", r'leaves["0:0/clean/text"] = "\\ud800"'),
        ("prompt_boundary", 'leaves["trial:0/text"] = "not a trial of these"'),
        ("injection_output", 'leaves["0:0/with_logits"] = leaves["0:0/with_logits"] > 0'),
    ],
)
def test_an_odd_answer_reaches_every_report_as_a_failure(
    pytester: pytest.Pytester, world: World, method: str, fault: str
) -> None:
    plant(pytester, method, fault)

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (folder,) = pytester.path.glob("reports/*/*")
    assert json.loads((folder / "parity_suite_report.json").read_text())["earliest_failed_stage"] == method
    assert (pytester.path / "reports" / "summary.md").read_text().startswith("**FAIL: 0 of 1")
    assert "all 6 check keys agree" not in (folder / "src_vs_fv_diff_report.html").read_text()


C_EXIT = "import ctypes; ctypes.CDLL(None).exit(0)"


@pytest.mark.usefixtures("old_pass")
@pytest.mark.parametrize("death", slow_but([C_EXIT], ["os._exit(0)", C_EXIT, "os.kill(os.getpid(), 9)"]))
def test_a_process_that_dies_leaves_no_old_pass_and_is_red(pytester: pytest.Pytester, world: World, death: str) -> None:
    plant(pytester, "slot_map", death)

    result = pytester.runpytest_subprocess("-m", "parity", *world.options)

    assert result.ret != 0
    (report,) = reports(pytester)
    assert report["overall_status"] == "FAIL"
    assert list(statuses(report).values()) == ["PASS", "CRASHED", *["BLOCKED"] * 4]


@pytest.mark.parametrize("death", slow_but(["os._exit(0)"], ["os._exit(0)", C_EXIT]))
def test_a_process_that_dies_behind_its_last_stage_is_red(pytester: pytest.Pytester, world: World, death: str) -> None:
    """Everything agreed, and nobody knows what would have come."""
    teardown = "import os, pytest\n@pytest.fixture(autouse=True)\ndef last(request):\n    yield\n"
    pytester.makeconftest(f"{teardown}    if request.node.name == 'injection_output':\n        {death}")

    assert pytester.runpytest_subprocess("-m", "parity", *world.options).ret != 0
    (report,) = reports(pytester)
    assert list(statuses(report).values()) == [*["PASS"] * 5, "CRASHED"]


@pytest.mark.slow
def test_a_child_of_a_candidate_may_end_as_it_likes_and_a_whole_run_ends_as_ever(
    pytester: pytest.Pytester, world: World
) -> None:
    forked = "import sys\n        child = os.fork()\n        if not child: sys.stderr.close(); os._exit(0)\n"
    plant(pytester, "slot_map", f"{forked}        assert os.waitpid(child, 0)[1] == 0")

    assert pytester.runpytest_subprocess("-m", "parity", *world.options).ret == 0


NOTHING_JUDGED = {
    "nothing is selected": ("", ["-k", "no_such_stage"], pytest.ExitCode.NO_TESTS_COLLECTED),
    "a conftest.py that fails": ("raise ValueError('no')", [], pytest.ExitCode.USAGE_ERROR),
    "a conftest.py that leaves with status 0": ("import sys; sys.exit(0)", [], pytest.ExitCode.USAGE_ERROR),
    "a conftest.py that leaves": ("import pytest; pytest.exit('no', 0)", [], pytest.ExitCode.USAGE_ERROR),
    "a process that dies while tests are collected": (
        "import os\ndef pytest_collection(session): os._exit(3)",
        [],
        3,
    ),
    "a plugin that fails before the first test": (
        "def pytest_collection_modifyitems(items): raise ValueError('no')",
        [],
        pytest.ExitCode.INTERNAL_ERROR,
    ),
}


@pytest.mark.usefixtures("old_pass")
@pytest.mark.parametrize("why", NOTHING_JUDGED)
def test_a_run_that_judged_nothing_leaves_no_old_pass(pytester: pytest.Pytester, world: World, why: str) -> None:
    conftest, words, status = NOTHING_JUDGED[why]
    pytester.makeconftest(conftest)
    leaves = "dies" in why or "leaves" in why
    run = pytester.runpytest_subprocess if leaves else pytester.runpytest_inprocess

    result = run("-m", "parity", *world.options, *words)

    assert result.ret == status
    assert {report["overall_status"] for report in reports(pytester)} <= {"FAIL"}
    summaries = [json.loads(path.read_text()) for path in (pytester.path / "reports").glob("summary.json")]
    assert {summary["overall_status"] for summary in summaries} <= {"FAIL"}


@pytest.mark.usefixtures("old_pass")
@pytest.mark.parametrize("words", [["--collect-only"], ["--fixtures"], ["no_such_file.py"], ["--help"]])
def test_a_command_that_could_judge_nothing_leaves_reports_as_they_are(
    pytester: pytest.Pytester, world: World, words: list[str]
) -> None:
    before = {path: path.read_bytes() for path in (pytester.path / "reports").rglob("*") if path.is_file()}

    pytester.runpytest_inprocess("-m", "parity", *world.options, *words)

    after = {path: path.read_bytes() for path in (pytester.path / "reports").rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.usefixtures("old_pass")
def test_a_run_without_its_device_leaves_no_old_pass(pytester: pytest.Pytester, world: World) -> None:
    pytester.runpytest_inprocess("-m", "parity", "--fv-device=cuda:7", *world.options)

    (report,) = reports(pytester)
    assert report["overall_status"] == "NOT_RUN"
    assert (pytester.path / "reports" / "summary.md").read_text().startswith("**NOT_RUN: 0 of 1")


def test_a_selection_is_no_whole_pass(pytester: pytest.Pytester, world: World) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", "-k", "slot_map", *world.options)

    assert result.ret == pytest.ExitCode.OK
    (folder,) = pytester.path.glob("reports/*/*")
    assert json.loads((folder / "parity_suite_report.json").read_text())["status"] == "PARTIAL"
    assert (pytester.path / "reports" / "summary.md").read_text().startswith("**PARTIAL: 0 of 1")


def test_the_reproduce_command_brings_the_same_plugin(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "slot_map", 'leaves["dummy_labels"] = []')
    (pytester.path / "conftest.py").rename(pytester.path / "mycandidate.py")
    pytester.syspathinsert()
    pytester.runpytest_inprocess("-p", "mycandidate", "-m", "parity", *world.options)
    (report,) = reports(pytester)
    _, *words = shlex.split(report["repro_command"])

    again = pytester.runpytest_inprocess(*words)

    assert words[:2] == ["-p", "mycandidate"]
    assert again.ret == pytest.ExitCode.TESTS_FAILED


def test_heads_that_contradict_the_candidates_own_effects_are_no_tie(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "top_heads", 'leaves["heads"] = [leaves["heads"][1], leaves["heads"][0], *leaves["heads"][2:]]')
    conftest = pytester.path / "conftest.py"
    loose = "\ndef pytest_fvparity_tolerances(dtype, device):\n    return [{'key': 'top_heads', 'leaf': 'aie', 'atol': 9.0}]"
    conftest.write_text(conftest.read_text() + loose)

    pytester.runpytest_inprocess("-m", "parity", *world.options)

    (report,) = reports(pytester)
    assert statuses(report)["top_heads"] == "FAIL"


NOTES = {
    "nothing": ("return None", []),
    "one sentence": ("return 'look here'", ["look here"]),
    "an error": ("raise OSError('no notes')", ["notes of slot_map failed: OSError: no notes"]),
}


@pytest.mark.parametrize(("body", "shown"), NOTES.values(), ids=NOTES.keys())
def test_notes_of_any_kind_decide_nothing(pytester: pytest.Pytester, world: World, body: str, shown: list[str]) -> None:
    pytester.makeconftest(
        f"""
        from fvcore.pipeline import Pipeline

        class Talkative(Pipeline):
            def notes(self, key):
                {body}

        def pytest_fvparity_candidate(lm, trials, settings):
            return Talkative(lm, trials, settings)
        """
    )

    pytester.runpytest_inprocess("-m", "parity", *world.options).assert_outcomes(passed=6)
    (report,) = reports(pytester)
    assert [warning["message"] for warning in report["checks"][1]["warnings"]] == shown


def test_tolerances_in_a_file_called_default_are_announced(pytester: pytest.Pytester, world: World) -> None:
    (pytester.path / "default").write_text("rules:\n  - {key: mean_activations, atol: 5.0}\n")

    pytester.runpytest_inprocess("-m", "parity", "--fv-tolerances=default", *world.options)

    (report,) = reports(pytester)
    assert "under tolerances of default" in report["headline"]


def test_a_pattern_that_is_none_is_one_clear_error(pytester: pytest.Pytester, world: World) -> None:
    (pytester.path / "mine.yaml").write_text("rules:\n  - {key: fv_vector, leaf: '*'}\n")

    pytester.runpytest_inprocess("-m", "parity", "--fv-tolerances=mine.yaml", *world.options)

    (report,) = reports(pytester)
    assert statuses(report)["prompt_boundary"] == "ERROR"
    assert "mine.yaml: rule 0: key 'leaf'" in report["headline"]
    assert "is no regular expression" in report["headline"]


def test_a_nan_is_looked_for_in_the_file_that_holds_it(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "mean_activations", 'leaves["mean_activations"] = leaves["mean_activations"] * float("nan")')

    pytester.runpytest_inprocess("-m", "parity", *world.options)

    (report,) = reports(pytester)
    assert report["first_divergence"]["artifact"].endswith("mean_activations.safetensors")
