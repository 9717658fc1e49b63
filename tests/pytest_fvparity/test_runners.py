"""What a CI runner shows without a further step: annotations, the step summary, code quality; each once, and within limits."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from fvcore.gates import Status
from pytest_fvparity import cli, runners
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.annotations import annotations
from pytest_fvparity.report.markdown import LEAST, STEP_SUMMARY, size
from pytest_fvparity.report.render import markdown
from pytest_fvparity.report.report import Report, Source
from pytest_fvparity.report.step_summary import step_summary
from pytest_fvparity.runners import MOST, Annotation
from tests.late import RUNNING
from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

if RUNNING:
    from tests.pytest_fvparity.worlds import World, plant


def commands(reports: Sequence[Report]) -> list[str]:
    return runners.workflow_commands(annotations(reports, Path.cwd()))


def _failing(number: int, message: str = "differs by 1") -> Report:
    report = assemble(CHECK_KEYS, rows_of(slot_map=row_of("slot_map", Status.FAIL, failed(message))))
    return report.model_copy(update={"fixed_trials_id": f"trials_{number:02}"})


def test_the_earliest_failure_is_one_annotation() -> None:
    (line,) = commands([_failing(1), assemble(CHECK_KEYS, rows_of())])

    artifact = "golden/words/fixed_trials_x/src/slot_map.safetensors"
    assert line.startswith(f"::error file={artifact},title=trials_01%3A FAIL at slot_map::FAIL at slot_map: ")
    assert line.endswith("%0Areproduce: pytest datasets/fixed_trials/fixed_trials_x.json::parity::slot_map")


def test_nothing_in_a_message_can_end_it_or_start_another() -> None:
    report = _failing(1, "100%\r\n::error::forged").model_copy(update={"fixed_trials_id": "a,b:c\n%"})

    (line,) = commands([report])

    assert "\n" not in line
    assert "\r" not in line
    assert "100%25%0A\\::error::forged" in line
    assert "title=a%2Cb%3Ac%0A%25%3A FAIL" in line


def test_ten_at_most_and_the_last_counts_the_rest() -> None:
    lines = commands([_failing(n) for n in range(13)])

    assert len(commands([_failing(n) for n in range(MOST)])) == MOST == len(lines)
    assert lines[-1] == "::error title=4 more::" + "%0A".join(
        f"trials_{n:02}: FAIL at slot_map" for n in (9, 10, 11, 12)
    )


def test_what_was_not_run_is_a_warning_behind_the_failures() -> None:
    idle = assemble(CHECK_KEYS, {key: row_of(key, Status.NOT_RUN, message="no CUDA") for key in CHECK_KEYS})

    assert [line.split(" ")[0] for line in commands([idle, _failing(1)])] == ["::error", "::warning"]


def test_a_crash_without_a_file_is_annotated_without_one() -> None:
    (line,) = commands([assemble(CHECK_KEYS, {})])

    assert line.startswith("::error title=fixed_trials_x%3A CRASHED at prompt_boundary::CRASHED")


def _written(report: Report, key: str, file: str, line: int | None) -> Report:
    checks = [
        c.model_copy(update={"source": Source(file=file, line=line)}) if c.key == key else c for c in report.checks
    ]
    return report.model_copy(update={"checks": checks})


@pytest.mark.parametrize(
    ("workspace", "file", "place"),
    [
        ("", "src/mine.py", "file=src/mine.py,line=7,"),
        ("..", "src/mine.py", "file=project/src/mine.py,line=7,"),
        ("", "/opt/lib/mine.py", ""),
        ("", "a\0b", ""),
        ("elsewhere", "src/mine.py", ""),
    ],
)
def test_an_annotation_stands_at_the_candidates_own_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workspace: str, file: str, place: str
) -> None:
    """As the runner knows the file, who may have checked out more than the project; what it does not know is told in words."""
    (project := tmp_path / "project").mkdir()
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project / workspace))

    (one,) = annotations([_written(_failing(1), "slot_map", file, 7)], project)
    (line,) = runners.workflow_commands([one])

    assert line.startswith(f"::error {place}title=trials_01")
    assert ("written at " in line) == (not place)


def test_of_a_run_that_kept_going_the_earliest_comes_first_and_then_other_own_faults() -> None:
    reports = []
    for n in range(2):
        rows = {key: row_of(key, Status.FAIL, failed()) for key in ("slot_map", "top_heads", "fv_vector")}
        report = assemble(CHECK_KEYS, rows_of(**rows), keep_going=True)
        checks = [
            c.model_copy(update={"fault": {"slot_map": "own", "top_heads": "own"}.get(c.key)}) for c in report.checks
        ]
        reports.append(report.model_copy(update={"checks": checks, "fixed_trials_id": f"t{n}"}))

    titles = [one.title for one in annotations(reports, Path())]

    assert titles == [f"t{n}: FAIL at {key}" for key in ("slot_map", "top_heads") for n in range(2)]


# ---------------------------------------------------------------- the step summary


def _long(number: int) -> Report:
    row = row_of("slot_map", Status.ERROR, message="a line of a traceback\n" * 150)
    return assemble(CHECK_KEYS, rows_of(slot_map=row)).model_copy(update={"fixed_trials_id": f"long_{number}"})


@pytest.mark.parametrize("room", [LEAST, 3000, 20_000, 200_000])
def test_no_failure_is_cut_for_another_or_for_what_is_green(room: int) -> None:
    green = [assemble(CHECK_KEYS, rows_of()).model_copy(update={"fixed_trials_id": f"green_{n}"}) for n in range(40)]

    text = step_summary([*green, _long(1), _long(2)], room)

    assert size(text) <= room
    assert text.index("long_1") < text.index("long_2") < (text + "green_0").index("green_0")


def test_failures_share_the_room_that_is_too_small_for_both() -> None:
    reports = [_long(1), _long(2)]
    room = size(markdown(reports[0], STEP_SUMMARY)) * 3 // 2

    text = step_summary(reports, room)

    shares = [size(part) for part in text.split("\n## words/long_")[1:]]
    assert size(text) <= room
    assert len(shares) == 2
    assert max(shares) < 2 * min(shares)


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A job of GitHub's, in whose folder its files lie."""
    for name, value in {"ACTIONS": "true", "WORKSPACE": ".", "STEP_SUMMARY": str(tmp_path / "summary.md")}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    monkeypatch.setenv("RUNNER_TEMP", str(tmp_path))
    return tmp_path


def test_what_a_step_wrote_before_stays_and_counts(github: Path) -> None:
    summary = github / "summary.md"
    summary.write_bytes(b"x" * (runners.STEP_SUMMARY - 5000))

    runners.summarise(lambda room: "y" * room)
    runners.summarise(lambda room: pytest.fail("there is no room for more"))

    text = summary.read_text()
    assert runners.STEP_SUMMARY - 10 <= len(text) <= runners.STEP_SUMMARY
    assert text.startswith("xxx")


def test_without_a_runner_nothing_is_written(tmp_path: Path) -> None:
    runners.summarise(lambda room: pytest.fail("nobody asked"))
    runners.write_code_quality([Annotation("error", "t", "m", Path("a.py"), 1)], tmp_path)
    runners.mark_told("x")

    assert not list(tmp_path.iterdir())
    assert not runners.is_told("x")


def test_a_red_session_tells_its_runner_by_itself_and_nothing_is_said_twice(
    pytester: pytest.Pytester, world: World, github: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    plant(pytester, "fv_vector", "leaves['function_vector'] = leaves['function_vector'] * 2")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path))
    monkeypatch.setenv("GITLAB_CI", "true")

    result = pytester.runpytest_inprocess("-m", "parity", *world.options, "--no-summary")

    (line,) = [line for line in result.outlines if line.startswith("::")]
    source = (pytester.path / "conftest.py").read_text().splitlines()
    at = 1 + next(n for n, text in enumerate(source) if "def fv_vector" in text)
    assert line.startswith(
        f"::error file=conftest.py,line={at},title=fixed_trials_pairs_seed0_llama%3A FAIL at fv_vector"
    )
    assert (github / "summary.md").read_text().count("FAIL") >= 1
    (issue,) = json.loads((pytester.path / "reports" / runners.CODE_QUALITY).read_text())
    assert issue["location"] == {"path": "conftest.py", "lines": {"begin": at}}

    written = _rendered(capfd, github / "summary.md", "reports", "--annotations"), (github / "summary.md").read_text()
    (report,) = pytester.path.glob("reports/*/*/src_vs_fv_diff_report.json")
    assert "::error" not in written[0]
    _rendered(capfd, github / "summary.md", report, "--budget", 65536)
    assert (github / "summary.md").read_text() == written[1]
    # For a comment, which is no step summary, it is printed.
    assert "FAIL" in _rendered(capfd, None, report, "--budget", 65536)


def _rendered(capfd: Any, into: Path | None, *words: object) -> str:
    """What `fvparity render` prints; or nothing, where it is appended to a file as a shell does."""
    sys.argv = ["fvparity", "render", *map(str, words)]
    capfd.readouterr()
    if into is None or "--annotations" in words:
        with suppress(SystemExit):
            cli.main()
        return str(capfd.readouterr().out)
    with into.open("ab") as file, capfd.disabled(), redirect_stderr(StringIO()):
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with suppress(SystemExit):
                cli.main()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    return ""


def test_a_suite_of_a_test_module_is_told_of_too(pytester: pytest.Pytester, github: Path) -> None:
    pytester.makepyfile(
        test_own="""
        from fvcore.gates import Finding, Stage, Suite, Verdict
        def wrong(_): return Verdict((Finding("x", "is wrong"),), compared=1, mismatch_count=1)
        own = Suite("own", (Stage("first", "First", wrong), Stage("second", "Second", wrong)), lambda: None)
        """
    )

    result = pytester.runpytest_inprocess()

    lines = [line for line in result.outlines if line.startswith("::")]
    assert lines == ["::error file=test_own.py,title=test_own.py%3A%3Aown%3A FAIL at first::x: is wrong"]
    assert "| second | BLOCKED |" in (github / "summary.md").read_text()


def test_a_runner_that_cannot_be_told_changes_no_verdict(
    pytester: pytest.Pytester, world: World, github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(github / "nowhere" / "summary.md"))

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    assert result.ret == 0
    result.stdout.fnmatch_lines(["the CI runner was not told: FileNotFoundError*"])
