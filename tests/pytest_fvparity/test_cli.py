"""`fvparity selftest`, `merge`, `render` and `compare`, from the command line to files, output and exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import PAIRS, random_lm, trials_for
from fvcore.gates import Status, Verdict
from fvcore.trials import fixed as trials
from pytest_fvparity import cli
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.render import write_all
from tests.late import RUNNING
from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

if RUNNING:
    from pytest_fvparity.selftest import run
    from pytest_fvparity.selftest.catalogue import Fault, Observed, Outcome
    from tests.pytest_fvparity.stand_in import plant as plant_reference
    from tests.pytest_fvparity.worlds import World, plant


ROOT = Path(__file__).parents[2]
NAME = "src_vs_fv_diff_report.json"


@dataclass
class Result:
    """What one call of the program did."""

    status: int
    out: str
    err: str


Program = Callable[..., Result]


@pytest.fixture
def fvparity(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["fvparity", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        streams = capfd.readouterr()
        code = stopped.value.code
        return Result(code if isinstance(code, int) else int(code is not None), streams.out, streams.err)

    return call


def tree(folder: Path) -> dict[str, bytes]:
    """What stands in a folder, but for the word to git that it is to be left alone."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".gitignore"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---------------------------------------------------------------- selftest


def fault(id: str, seen: dict[str, Observed], expected: str = "fails at slot_map") -> Fault:
    return Fault(id, f"hazard | of {id}", "planted [so]", expected, seen.__getitem__, families=tuple(seen))


if RUNNING:
    RIGHT, EARLIER = Observed(Outcome.FAILS, "slot_map", "differs by 0.123"), Observed(Outcome.FAILS, "prompt_boundary")
    CAUGHT = fault("F01", {"a": RIGHT, "b": RIGHT})
    WRONG = fault("F02", {"a": RIGHT, "b": EARLIER})
    MISSED = fault("F03", {"a": EARLIER, "b": Observed(Outcome.PASSES)})
    IDLE = fault("F04-gpu", {"a": Observed(Outcome.NOT_RUN)})
    LEGAL = fault("F05", {"a": Observed(Outcome.PASSES)}, "passes")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put these faults in the catalogue's place."""

    def put(*faults: Fault) -> None:
        monkeypatch.setattr(run, "catalogue", lambda: {one.id: one for one in faults})
        monkeypatch.setattr(run, "rig_of", lambda family: family)

    return put


def test_each_fault_has_a_line_and_a_row_and_is_counted(fvparity: Program, planted: Callable[..., None]) -> None:
    planted(CAUGHT, WRONG, MISSED, IDLE, LEGAL)

    result = fvparity("selftest")

    assert result.status == 1
    assert result.err.splitlines() == [
        "[1/5] F01: caught",
        "[2/5] F02: wrong key",
        "[3/5] F03: missed",
        "[4/5] F04-gpu: not run here",
        "[5/5] F05: caught",
    ]
    assert result.out.splitlines()[-1] == "2 caught, 1 wrong key, 1 missed, 1 not run here"
    (row,) = [row for row in json.loads(fvparity("selftest", "--json").out) if row["id"] == "F02"]
    assert list(row.values()) == [
        "F02",
        "hazard | of F02",
        "fails at slot_map",
        "fails at slot_map (a); fails at prompt_boundary (b)",
        "wrong key",
    ]


@pytest.mark.parametrize(
    ("faults", "status"),
    [(lambda: (CAUGHT, IDLE, LEGAL), 0), (lambda: (CAUGHT, WRONG), 1), (lambda: (CAUGHT, MISSED), 1)],
    ids=["none", "wrong key", "missed"],
)
def test_the_status_is_red_for_what_is_missed_or_misplaced(
    fvparity: Program, planted: Callable[..., None], faults: Callable[[], tuple[Fault, ...]], status: int
) -> None:
    planted(*faults())

    assert fvparity("selftest").status == status


def test_some_faults_by_id(fvparity: Program, planted: Callable[..., None]) -> None:
    planted(CAUGHT, WRONG, MISSED)

    result = fvparity("selftest", "F01", "F01")

    assert (result.status, result.out.splitlines()[-1]) == (0, "1 caught, 0 wrong key, 0 missed, 0 not run here")


def test_an_unknown_fault_is_refused_before_any_is_planted(fvparity: Program, planted: Callable[..., None]) -> None:
    planted(CAUGHT)

    result = fvparity("selftest", "F01", "F99")

    assert (result.status, result.out) == (2, "")
    assert result.err == "fvparity: no fault F99 in the catalogue; known: F01\n"


def test_the_page_is_whole_and_the_same_every_time(
    fvparity: Program, planted: Callable[..., None], tmp_path: Path
) -> None:
    planted(CAUGHT, WRONG, IDLE)
    pages = [tmp_path / "one.md", tmp_path / "two.md"]

    for page in pages:
        assert fvparity("selftest", "--markdown", page).status == 1  # written although it is red

    one, two = (page.read_text() for page in pages)
    assert one == two
    assert one.startswith("<!-- Generated by `fvparity selftest")
    assert "**1 caught, 1 wrong key, 0 missed, 1 not run here**\n" in one
    assert "| F01 | hazard \\| of F01 | planted [so] | 2 | fails at slot_map | fails at slot_map | caught |" in one
    assert "0.123" not in one, "numbers differ from machine to machine"
    assert "Without a fault in the catalogue: F03, F05, F06" in one


def test_a_page_of_some_faults_says_so(fvparity: Program, planted: Callable[..., None], tmp_path: Path) -> None:
    planted(CAUGHT, WRONG, IDLE)

    fvparity("selftest", "F01", "--markdown", tmp_path / "x.md")

    assert "of the 3 faults in the catalogue, 1 selected" in (tmp_path / "x.md").read_text()


def test_a_variant_counts_for_its_number() -> None:
    ids = [f"F{n:02}" for n in range(1, 75)]

    assert run.absent(ids) == ["F75"]
    assert run.absent([*ids, "F75-variant"]) == []


def test_a_real_fault_is_caught(fvparity: Program) -> None:
    result = fvparity("selftest", "F01")

    assert result.status == 0
    assert "fails at prompt_boundary" in result.out


def test_the_published_table_lists_the_catalogue() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    listed = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| F")]

    assert listed == list(run.catalogue()), "run `make faults`"


# ---------------------------------------------------------------- render


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """What a run of two trials files wrote, one of them red."""
    red = assemble(CHECK_KEYS, rows_of(slot_map=row_of("slot_map", Status.FAIL, failed("a|b ``` <b>"))))
    green = assemble(CHECK_KEYS, rows_of()).model_copy(update={"fixed_trials_id": "fixed_trials_a"})
    write_all([green, red], tmp_path / "reports")
    return tmp_path / "reports"


def test_rendering_again_gives_the_same_bytes(fvparity: Program, reports: Path, tmp_path: Path) -> None:
    before = tree(reports)

    assert fvparity("render", reports).status == 0
    assert tree(reports) == before
    assert fvparity("render", *sorted(reports.rglob(NAME), reverse=True), "--out", tmp_path / "again").status == 0
    assert tree(tmp_path / "again") == before


def test_everything_is_rendered_from_the_json_alone(fvparity: Program, reports: Path) -> None:
    before = tree(reports)
    for path in reports.rglob("*"):
        if path.is_file() and path.name != NAME:
            path.unlink()

    fvparity("render", reports, "--out", reports)

    assert tree(reports) == before


def test_a_real_run_is_rendered_again_byte_by_byte(
    fvparity: Program, pytester: pytest.Pytester, two_files: World
) -> None:
    plant(pytester, "mean_activations", EDITED.format("x[0, 1, 2, 3] = float('nan'); x[0, 1, 2, 4] += 1"))
    pytester.runpytest_inprocess("-m", "parity", "--fv-keep-going", *two_files.options)
    before = tree(pytester.path / "reports")
    assert b"by no finite number" in before["pairs/fixed_trials_pairs_seed0_llama/src_vs_fv_diff_report.html"]
    assert len(before) == 2 * 8 + 3

    assert fvparity("render", "reports", "--out", "again").status == 0

    assert tree(pytester.path / "again") == before


EDITED = 'x = leaves["mean_activations"] = leaves["mean_activations"].clone(); {}'
"""What is made in inference mode cannot be edited in place."""


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        # What a process takes is no more of the run than its times.
        without = {"created_at", "duration_sec", "peak_memory_mib", "stdout", "stderr"}
        return {key: _timeless(item) for key, item in value.items() if key not in without}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


TIMES = (
    r"20\d\d-\d\d-\d\dT[\d:.]+Z?([+-]\d\d:\d\d)?",  # of a report, of a JUnit suite
    r"(?<=duration_sec: )[\d.]+",
    r"(?<=,)\d+\.\d{6}(?=,)",
    r' (time|timestamp)="[^"]*"',
    r'(?<="peak_memory_mib": )[\d.]+',  # what a process takes is no more of the run than its times
)


def _without_times(data: bytes) -> str:
    text = data.decode()
    for pattern in TIMES:
        text = re.sub(pattern, "", text)
    return text


def test_two_runs_differ_in_times_alone(pytester: pytest.Pytester, two_files: World) -> None:
    """Every file of the reports, and JUnit's."""
    plant(pytester, "mean_activations", EDITED.format("x[0, 1] += 0.5; x[1, 0, 2, 3] = float('nan')"))
    found = []
    for _ in range(2):
        how = ["-m", "parity", "--fv-keep-going", "--junitxml=reports/junit.xml"]
        pytester.runpytest_inprocess(*how, *two_files.options)
        found.append(tree(pytester.path / "reports"))
        shutil.rmtree(pytester.path / "reports")

    one, two = found
    assert one.keys() == two.keys()
    kinds = {Path(name).suffix for name in one}
    assert kinds == {".json", ".md", ".html", ".csv", ".log", ".xml"}
    for name in one:
        if name.endswith(".json"):
            assert _timeless(json.loads(one[name])) == _timeless(json.loads(two[name])), name
        else:
            assert _without_times(one[name]) == _without_times(two[name]), name
    (report,) = [json.loads(data) for name, data in one.items() if name.endswith(f"seed0_llama/{NAME}")]
    # What a red run adds to a report is there, and just as steady.
    assert report["checks"][2]["errors"]
    assert all(row["used"] is not None for check in report["checks"] for row in check["tolerances"])


def test_a_budget_is_kept_on_stdout_and_writes_nothing(fvparity: Program, reports: Path) -> None:
    before = tree(reports)
    (path,) = reports.rglob(f"fixed_trials_x/{NAME}")

    result = fvparity("render", path, "--budget", 1000)

    assert result.status == 0
    assert len(result.out.encode()) <= 1000
    assert "**Cut to stay within 1000 bytes: " in result.out
    assert tree(reports) == before
    assert fvparity("render", path, "--budget", 65536).out == path.with_suffix(".md").read_text()


def test_annotations_are_printed_and_nothing_is_written(fvparity: Program, reports: Path) -> None:
    before = tree(reports)

    result = fvparity("render", reports, "--annotations")

    assert (result.status, len(result.out.splitlines())) == (0, 1)
    assert result.out.startswith(
        "::error file=golden/words/fixed_trials_x/src/slot_map.safetensors,title=fixed_trials_x%3A"
    )
    assert tree(reports) == before


def test_a_step_summary_is_not_written_by_itself(
    fvparity: Program, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))

    fvparity("render", reports)

    assert not (tmp_path / "summary").exists()


def test_against_an_earlier_run(fvparity: Program, reports: Path, tmp_path: Path) -> None:
    earlier = assemble(CHECK_KEYS, rows_of())
    write_all([earlier], tmp_path / "earlier")

    result = fvparity("render", reports, "--against", tmp_path / "earlier", "--out", tmp_path / "out")

    assert result.status == 0
    folder = tmp_path / "out" / "words" / "fixed_trials_x"
    comparison = json.loads((folder / "src_vs_fv_comparison.json").read_text())
    assert [row["change"] for row in comparison["keys"]] == ["same", "new", *["not judged"] * 4]
    assert "| `slot_map` | new | PASS | FAIL |" in (folder / "src_vs_fv_diff_report.md").read_text()
    # The other trials have no earlier report, and no section.
    assert not (tmp_path / "out" / "words" / "fixed_trials_a" / "src_vs_fv_comparison.json").exists()


def test_a_comparison_goes_when_the_report_is_written_without_one(
    fvparity: Program, reports: Path, tmp_path: Path
) -> None:
    alone = tree(reports)
    write_all([assemble(CHECK_KEYS, rows_of())], tmp_path / "earlier")
    fvparity("render", reports, "--against", tmp_path / "earlier")
    beside = {name for name in tree(reports) if name not in alone}
    assert beside == {"words/fixed_trials_x/src_vs_fv_comparison.json"}

    fvparity("render", reports)

    assert tree(reports) == alone


def test_a_run_leaves_no_comparison_of_an_earlier_one(
    fvparity: Program, pytester: pytest.Pytester, world: World
) -> None:
    pytester.runpytest_inprocess("-m", "parity", *world.options)
    shutil.copytree("reports", "earlier")
    fvparity("render", "reports", "--against", "earlier")
    assert list(pytester.path.glob("reports/*/*/src_vs_fv_comparison.json"))

    pytester.runpytest_inprocess("-m", "parity", "-k", "slot_map", *world.options)

    assert not list(pytester.path.glob("reports/*/*/src_vs_fv_comparison.json"))


# ---------------------------------------------------------------- compare


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Path]:
    """A folder of reports of some trials, each with these statuses, the rest of the keys PASS; no status, no key."""

    def write(name: str, **statuses: dict[str, Status | None]) -> Path:
        reports = []
        for id, changed in statuses.items():
            rows = {k: row_of(k, s, failed() if s is Status.FAIL else None) for k, s in changed.items() if s}
            planned = [key for key in CHECK_KEYS if changed.get(key, Status.PASS)]
            report = assemble(planned, rows_of(**rows), keep_going=True)
            reports.append(report.model_copy(update={"fixed_trials_id": id}))
        write_all(reports, tmp_path / name)
        return tmp_path / name

    return write


RED, IDLE_KEY, NO_KEY = ({"slot_map": status} for status in (Status.FAIL, Status.NOT_RUN, None))


@pytest.mark.parametrize(
    ("before", "now", "status", "sentence"),
    [
        ({"x": {}}, {"x": {}}, 0, "nothing new is red: 6 same"),
        ({"x": RED}, {"x": {}}, 0, "nothing new is red: 1 fixed, 5 same"),
        ({"x": RED}, {"x": RED}, 0, "nothing new is red: 1 still failing, 5 same"),
        ({"x": {}}, {"x": RED}, 1, "something is red that was not: 1 new, 5 same"),
        ({"x": IDLE_KEY}, {"x": RED}, 1, "something is red that was not: 1 new, 5 same"),
        ({"x": {}}, {"x": {}, "y": RED}, 1, "something is red that was not: 1 new, 6 same; 1 report(s) added"),
        ({"x": {}}, {"x": {}, "y": {}}, 0, "nothing new is red: 6 same; 1 report(s) added"),
        ({"x": {}, "y": {}}, {"x": {}}, 3, "a verdict is gone: 6 same; 1 report(s) gone"),
        ({"x": {}}, {"x": IDLE_KEY}, 3, "a verdict is gone: 5 same, 1 not judged"),
        ({"x": {}}, {"x": NO_KEY}, 3, "a verdict is gone: 5 same, 1 gone"),
        ({"x": NO_KEY}, {"x": {}}, 0, "nothing new is red: 5 same, 1 added"),
        ({"x": IDLE_KEY}, {"x": IDLE_KEY}, 0, "nothing new is red: 5 same, 1 not judged"),
    ],
)
def test_a_comparison_is_red_for_what_is_new_and_says_when_a_verdict_is_gone(
    fvparity: Program, runs: Callable[..., Path], before: Any, now: Any, status: int, sentence: str
) -> None:
    result = fvparity("compare", runs("before", **before), runs("now", **now))

    assert (result.status, result.out.splitlines()[-1]) == (status, sentence)


def test_a_comparison_for_programs_and_for_comments(
    fvparity: Program, runs: Callable[..., Path], tmp_path: Path
) -> None:
    sides = runs("before", x={}, old={}), runs("now", x=RED)

    value = json.loads(fvparity("compare", *sides, "--json", "--markdown", tmp_path / "comment.md").out)
    text = (tmp_path / "comment.md").read_text()

    assert (value["verdict"], value["gone"], value["added"]) == ("new", ["words/old"], [])
    assert [row["change"] for row in value["reports"][0]["keys"]] == ["same", "new", *["same"] * 4]
    assert text.startswith("**something is red that was not: 1 new")
    assert "Only before: `words/old`." in text
    assert "| `slot_map` | new | PASS | FAIL |" in text


def test_a_drift_is_red_only_where_that_is_asked_for(fvparity: Program, tmp_path: Path) -> None:
    none = {"rtol": 0, "atol": 0, "of_max": 0, "of_norm": 0, "rule": "r", "max_abs_diff": 1.0}
    for name, used in {"before": 0.01, "now": 0.04}.items():
        verdict = Verdict(compared=1, details={"tolerances": [{"leaf": "a", "used": used, **none}]})
        write_all([assemble(CHECK_KEYS, rows_of(fv_vector=row_of("fv_vector", verdict=verdict)))], tmp_path / name)
    sides = tmp_path / "before", tmp_path / "now"

    assert fvparity("compare", *sides).status == fvparity("compare", *sides, "--fail-on-drift").status == 0
    assert fvparity("compare", *sides, "--drift", 4).status == 0
    result = fvparity("compare", *sides, "--drift", 4, "--fail-on-drift")
    assert (result.status, "1 drift" in result.out) == (1, True)
    assert "drift: fv_vector a, of its tolerance 1 % -> 4 %" in result.out


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (("before", "list.json"), "list.json: not a parity report"),
        (("empty", "now"), "empty: no src_vs_fv_diff_report.json under this folder"),
        (("before", "other"), "no two reports are of the same trials: words/x before, words/y now"),
        (("twice", "now"), "two reports are of words/x; make one of them with `fvparity merge`, or name one"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    fvparity: Program,
    runs: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sides: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    runs("before", x={})
    runs("now", x={})
    runs("other", y={})
    shutil.copytree("before", "twice/a")
    shutil.copytree("before", "twice/b")
    Path("empty").mkdir()
    Path("list.json").write_text("[1]")

    result = fvparity("compare", *sides)

    assert (result.status, result.out) == (2, "")
    assert message in result.err


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.json",), "nowhere.json: no such file"),
        (("empty",), "empty: no src_vs_fv_diff_report.json under this folder"),
        (("list.json",), "list.json: not a parity report (the top level: "),
        (("older.json",), "older.json: a report of schema version 0, not 1"),
        (("lacking.json",), "lacking.json: not a parity report (missing key 'checks')"),
        (("hollow.json",), "the report of words/fixed_trials_x cannot be rendered (UndefinedError: "),
        (
            ("reports", "--against", "a.json"),
            "--against a.json: no report of the same trials (words/fixed_trials_a, words/",
        ),
        (("x.json", "copy.json"), "two reports would be written to ."),
        (("x.json", "reports", "--out", "out"), "two reports would be written to out/words/fixed_trials_x"),
        (("reports", "--budget", "5000"), "--budget prints one report, and 2 were given"),
        (("x.json", "--budget", "5000", "--annotations"), "--out, --budget and --annotations exclude one another"),
    ],
)
def test_what_cannot_be_rendered_is_one_message_and_no_file(
    fvparity: Program,
    reports: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(reports.parent)
    (whole,) = reports.rglob(f"fixed_trials_x/{NAME}")
    value = json.loads(whole.read_text())
    other = value | {"fixed_trials_id": "fixed_trials_other"}
    lacking = {key: item for key, item in value.items() if key != "checks"}
    hollow = value | {"profile": {"identity": {}}}
    damaged = {"list": [1], "older": value | {"schema_version": 0}, "lacking": lacking, "hollow": hollow}
    for name, content in ({"x": value, "copy": value, "a": other} | damaged).items():
        Path(f"{name}.json").write_text(json.dumps(content))
    Path("empty").mkdir()
    before = tree(reports.parent)

    result = fvparity("render", *arguments)

    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"fvparity: {message}")
    assert tree(reports.parent) == before


# ---------------------------------------------------------------- merge


def test_a_run_in_two_halves_merges_into_a_whole_one(
    fvparity: Program, pytester: pytest.Pytester, two_files: World
) -> None:
    for name, keys in (("early", CHECK_KEYS[:3]), ("late", CHECK_KEYS[3:])):
        chosen = ["-k", " or ".join(keys), f"--fv-report-dir={name}"]
        pytester.runpytest_inprocess("-m", "parity", *chosen, *two_files.options)

    result = fvparity("merge", "early", "late", "--out", "merged")

    assert result.status == 0
    assert result.out.splitlines()[-1] == "4 report(s) merged into 2: merged/summary.html"
    summary = json.loads((pytester.path / "merged" / "summary.json").read_text())
    assert summary["overall_status"] == "PASS"
    assert [list(row["statuses"].values()) for row in summary["runs"]] == [["PASS"] * 6] * 2
    merged = tree(pytester.path / "merged")
    fvparity("merge", "late", "early", "--out", "other")
    assert tree(pytester.path / "other") == merged
    fvparity("render", "merged", "--out", "again")
    assert tree(pytester.path / "again") == merged


def test_a_red_merge_is_red(fvparity: Program, reports: Path, tmp_path: Path) -> None:
    result = fvparity("merge", reports, "--out", tmp_path / "merged")

    assert result.status == 1
    assert "words/fixed_trials_x: FAIL at slot_map: " in result.out


@pytest.mark.parametrize(
    ("keys", "status", "said"),
    [
        (CHECK_KEYS, Status.FAIL, "FAIL at prompt_boundary: "),
        ((), Status.PASS, "FAIL: nothing was compared"),
        (CHECK_KEYS[:2], Status.PASS, "PARTIAL: 2 of 6 check keys compared"),
        (CHECK_KEYS[:2], Status.PASS, "no report judges mean_activations, top_heads, fv_vector, injection_output"),
    ],
)
@pytest.mark.parametrize("command", ["merge", "render"])
def test_a_report_is_not_believed_that_says_pass_of_itself(
    fvparity: Program, tmp_path: Path, command: str, keys: tuple[str, ...], status: Status, said: str
) -> None:
    bad = {"verdict": failed()} if status is Status.FAIL else {}
    honest = assemble(CHECK_KEYS, rows_of())
    checks = assemble(keys, {key: row_of(key, status, **bad) for key in keys}, keep_going=True).checks if keys else []
    write_all([honest.model_copy(update={"checks": checks})], tmp_path / "forged")

    result = fvparity(command, tmp_path / "forged", "--out", tmp_path / "out")

    if command == "merge":
        assert (result.status, said in result.out) == (1, True)
    found = json.loads((tmp_path / "out" / "words" / "fixed_trials_x" / NAME).read_text())
    assert found["overall_status"] != "PASS"
    assert "all 6 check keys agree" not in found["headline"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda checks: checks[2].update(n_compared=0), "mean_activations is said to be PASS, with 0 values compared"),
        (lambda checks: checks[2].update(mismatch_count=3), "mean_activations is said to be PASS, with 3 mismatch"),
        (lambda checks: checks[2].update(key="slot_map"), "expected each of the six keys once at most, found slot_map"),
        (lambda checks: checks[2].update(status="pass"), "status"),
    ],
)
def test_a_check_that_contradicts_itself_is_refused_by_name(
    fvparity: Program, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], said: str
) -> None:
    write_all([assemble(CHECK_KEYS, rows_of())], tmp_path / "forged")
    path = tmp_path / "forged" / "words" / "fixed_trials_x" / NAME
    value = json.loads(path.read_text())
    change(value["checks"])
    path.write_text(json.dumps(value))

    result = fvparity("merge", tmp_path / "forged", "--out", tmp_path / "out")

    assert (result.status, said in " ".join(result.err.split())) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_contradiction_names_the_files_and_writes_nothing(fvparity: Program, reports: Path, tmp_path: Path) -> None:
    write_all([assemble(CHECK_KEYS, rows_of())], tmp_path / "other")

    result = fvparity("merge", reports, tmp_path / "other", "--out", tmp_path / "merged")

    assert (result.status, result.out) == (2, "")
    assert "fixed_trials_x: slot_map is " in result.err
    assert f"PASS in {tmp_path}/other/words/fixed_trials_x/{NAME}" in result.err
    assert not (tmp_path / "merged").exists()


# ---------------------------------------------------------------- the program


def test_help_and_rendering_do_not_import_torch(reports: Path) -> None:
    code = "import sys; from pytest_fvparity import cli\ntry: cli.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"

    for arguments in (["--help"], ["render", str(reports)], ["merge", str(reports), "--out", str(reports / "m")]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True, capture_output=True)


# ---------------------------------------------------------------- spec parity


@pytest.mark.slow
def test_a_reduced_parity_run_ends_and_writes_its_stages(
    fvparity: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random_lm("llama", directory=tmp_path / "model")
    raw = tmp_path / "pairs.json"
    raw.write_text(json.dumps([{"input": a, "output": b} for a, b in PAIRS]))

    words = ("--fv-src", plant_reference(tmp_path), "--dataset-json", raw, "--out", tmp_path / "out")
    done = fvparity("spec", "parity", tmp_path / "model", *words)

    assert done.status == 0, done.err
    assert "reduced parity ran to its end; its files are under" in done.out
    (report,) = (tmp_path / "out").rglob(NAME)
    found = json.loads(report.read_text())
    assert (found["n_compared_trials"], found["profile"]["identity"]["n_top_heads"]) == (1, 5)
    assert found["profile"]["identity"]["edit_layer"] == 1
    assert list((tmp_path / "out").rglob("parity_suite_stages.csv"))


def test_a_reduced_parity_run_without_a_reference_is_an_error(
    fvparity: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, lm = tmp_path / "fixed_trials_pairs.json", random_lm("llama", directory=tmp_path / "model")
    trials.write(path, trials_for(lm, n_trials=1).file)

    words = ("--fv-src", tmp_path / "nowhere", "--trials", path, "--out", tmp_path / "out")
    done = fvparity("spec", "parity", tmp_path / "model", *words)

    assert done.status == 2
    assert "--fv-src: no such folder: " in done.err
