"""What is said of a failure is its first sentence, counts what it says it counts, and can be run again."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from fvcore import shipped
from fvcore.gates import CAUSED, Finding, Stage, Status, Verdict, error_line, run_stage, said
from pytest_fvparity.selection import _of_copy
from tests.late import RUNNING
from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of
from tests.pytest_fvparity.worlds import World, plant, reports

if RUNNING:
    from fvcore import artifacts
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.candidates.candidates import FromFolder
    from pytest_fvparity.report.render import write_report
    from pytest_fvparity.selftest.rig import rig_of

CUDA = "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later.\nCompile with `TORCH_USE_CUDA_DSA`."


def noted(error: Exception) -> Exception:
    error.add_note("a note that says less")
    return error


def caused(error: Exception, *causes: Exception) -> Exception:
    """Raised from the first of the causes, that from the next."""
    for one, cause in pairwise((error, *causes)):
        one.__cause__ = cause
    return error


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError(CUDA), "RuntimeError: CUDA error: device-side assert triggered"),
        (noted(ValueError("bad value")), "ValueError: bad value"),
        (
            ExceptionGroup("two", [KeyError("a"), OSError("b")]),
            "ExceptionGroup: two (2 sub-exceptions); the first of them KeyError: 'a'",
        ),
        (AssertionError(), "AssertionError"),
        (
            caused(RuntimeError("wrapped"), OSError("of the library"), ValueError("shape (2, 3)")),
            "RuntimeError: wrapped; caused by ValueError: shape (2, 3)",
        ),
        (
            caused(RuntimeError("not done: no such word"), KeyError("x"), ValueError("no such word")),
            "RuntimeError: not done: no such word",
        ),
        (Broken(), "Broken (which cannot be shown)"),
    ],
)
def test_the_headline_takes_the_first_sentence_of_an_error(error: Exception, sentence: str) -> None:
    def check(subject: object) -> Verdict:
        raise error

    result = run_stage("parity", Stage("slot_map", "", check), lambda: None)
    rows = rows_of(slot_map=row_of("slot_map", Status.ERROR, message=result.message))

    assert said(error) == sentence
    assert assemble(list(rows), rows).headline == f"ERROR: nothing could be judged at slot_map: {sentence}"


def test_the_frames_of_an_error_begin_with_what_is_judged() -> None:
    def asks(subject: str) -> Verdict:
        return Verdict(compared=len(json.loads(subject)))

    def fails(subject: str) -> Verdict:
        raise KeyError(subject)

    asked, own = (run_stage("toy", Stage("one", "", check), lambda: "{").message for check in (asks, fails))

    assert "in loads" in asked
    assert "in asks" not in asked
    assert "in fails" in own  # a judge that fails itself is shown


def test_of_what_another_process_printed_the_error_is_taken_and_not_the_advice_below_it() -> None:
    printed = f"loading\nTraceback (most recent call last):\n  File x\n    y()\nRuntimeError: {CUDA}\n"

    assert error_line(printed) == "RuntimeError: CUDA error: device-side assert triggered"
    assert error_line("Killed") == "Killed"
    assert error_line("") == "no message"


CHAIN = """Traceback (most recent call last):
  File a
{first}

{between}

Traceback (most recent call last):
  File b
RuntimeError: wrapped
"""


def test_of_what_another_process_printed_the_innermost_cause_is_told_and_no_other_error() -> None:
    def told(between: str, first: str = "ValueError: shape (2, 3)") -> str:
        return error_line(CHAIN.format(first=first, between=between))

    assert told(CAUSED) == "RuntimeError: wrapped; caused by ValueError: shape (2, 3)"
    assert told("During handling of the above exception, another exception occurred:") == "RuntimeError: wrapped"
    assert told(CAUSED, first="ValueError: wrapped") == "RuntimeError: wrapped"


def test_what_raises_on_either_inputs_is_told_once() -> None:
    def fails(self: Pipeline, *inputs: object) -> dict[str, object]:
        raise IndexError("no such head")

    ours = rig_of("llama")
    results = {result.key: result for result in ours.judge(ours.candidate(fv_vector=fails))}

    assert results["fv_vector"].status is Status.ERROR
    assert results["fv_vector"].message.count("Traceback") == 1


def test_a_run_that_fails_lists_what_is_not_provided_and_counts_its_failures_alone(
    pytester: pytest.Pytester, world: World
) -> None:
    plant(pytester, "top_heads", "del leaves['cie']; leaves['aie'] = 2 * leaves['aie']")
    with (pytester.path / "conftest.py").open("a") as conftest:
        conftest.write("\nFaulty.fv_vector = None\n")
    result = pytester.runpytest_inprocess("-m", "parity", "--fv-keep-going", *world.options)

    result.stdout.fnmatch_lines(["*4 PASS; top_heads FAIL; fv_vector NOT_PROVIDED", "*of top_heads cie; fv_vector"])
    result.assert_outcomes(passed=4, failed=1, skipped=1)


def test_trials_below_another_projects_conftest_are_refused_with_the_command_that_helps(
    pytester: pytest.Pytester, world: World, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text("pytest_plugins = []\n")
    elsewhere = Path(shutil.copy(world.trials[0], tmp_path))
    result = pytester.runpytest_inprocess("-m", "parity", f"--fv-model={world.model}", f"--fv-trials={elsewhere}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    command = f"cp {elsewhere} . && pytest -m parity --fv-model={world.model} --fv-trials={elsewhere.name}"
    assert command in result.stderr.str() + result.stdout.str()


def test_trials_that_ship_are_copied_by_their_name_too(tmp_path: Path) -> None:
    ships = shipped.file("tiny-llama").resolve()

    assert _of_copy("--fv-trials=tiny-llama", ships, tmp_path) == f"--fv-trials={ships.name}"
    assert _of_copy("--fv-model=tiny-llama", ships, tmp_path) == "--fv-model=tiny-llama"


def test_a_finding_without_values_says_nothing_of_values(tmp_path: Path) -> None:
    without = Verdict((Finding("slot_map", "the candidate left a hook"),), compared=7, mismatch_count=1)
    rows = rows_of(slot_map=row_of("slot_map", Status.FAIL, without))

    report = assemble(list(rows), rows)
    folder = tmp_path / "reports"
    write_report(report, folder)
    pages = [file.read_text() for file in folder.rglob("*") if file.suffix in {".html", ".md", ".log"}]
    assert report.headline.endswith("FAIL at slot_map: the candidate left a hook")
    assert len(pages) == 3
    assert all("the candidate left a hook" in page for page in pages)
    assert not [page for page in pages for words in ("expected None", "got None", "| None", ">None<") if words in page]
    assert assemble(list(rows), rows_of(slot_map=row_of("slot_map", Status.FAIL, failed()))).headline.endswith(
        "dim 4: expected 1, got 2"
    )


def test_the_signature_stands_in_the_headline() -> None:
    verdict = Verdict(failed().findings, 10, 1, details={"signature": "only layer 2 differs"})
    rows = rows_of(slot_map=row_of("slot_map", Status.FAIL, verdict))

    assert assemble(list(rows), rows).headline.endswith("got 2; only layer 2 differs")


def test_values_are_counted_as_values() -> None:
    left, value = Finding("a", "left a hook"), Finding("a[0]", "differs", 1, 2)

    assert Verdict((value,), 10, 3).counted == "3 of 10 values differ"
    assert Verdict((left,), 10, 1).counted == "10 values agree; 1 finding(s) beside them"
    assert Verdict((left, value), 10, 4).counted == "3 of 10 values differ; 1 finding(s) beside them"


def test_an_empty_file_provides_nothing(tmp_path: Path) -> None:
    folder = FromFolder(tmp_path)
    (folder.path / "top_heads.json").write_text("{}")

    results = {result.key: result for result in rig_of("llama").judge(folder)}

    assert results["top_heads"].status is Status.NOT_PROVIDED  # and no word of the golden's having no leaves
    assert not results["top_heads"].verdict.findings


def test_of_two_files_for_one_key_the_report_says_which_was_read(tmp_path: Path) -> None:
    from fvcore.experiments import plan_files

    folder = FromFolder(tmp_path)
    artifacts.save(rig_of("llama").artifacts["mean_activations"], folder.path / "mean_activations")
    assert folder.notes("mean_activations") == []
    (folder.path / plan_files.MEANS).touch()

    (note,) = folder.notes("mean_activations")
    assert note == "two files for one key: mean_activations.pt was read, and mean_activations.json beside it was not"


def test_the_reproduce_command_carries_what_the_outcome_hangs_on(
    pytester: pytest.Pytester, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-v -W 'error::FutureWarning'")
    plant(pytester, "slot_map", 'leaves["dummy_labels"] = []')
    with (pytester.path / "conftest.py").open("a") as conftest:
        conftest.write(
            "\ndef pytest_addoption(parser):\n    parser.addoption('--mine')\n    parser.addoption('--own')\n"
        )
    dull = ("-q", "-x", "--tb=short", "-k", "slot_map or prompt_boundary", "--maxfail", "3")

    pytester.runpytest_inprocess(
        "-m", "parity", *dull, "-W", "error::UserWarning", "--mine=1", "--own", "two", "-s", *world.options
    )

    (report,) = reports(pytester)
    program, *words = shlex.split(report["repro_command"])
    carried = ["-W", "error::FutureWarning", "-W", "error::UserWarning", "--mine=1", "--own", "two", "-s"]
    assert (program, words[:8]) == ("pytest", carried)
    assert not {"-q", "-x", "--tb=short", "--maxfail"} & set(words)
    assert pytester.runpytest_inprocess(*words).ret == pytest.ExitCode.TESTS_FAILED
