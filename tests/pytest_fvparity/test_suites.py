"""One adapter for every suite: the same tests hold parity, transfer, Select-KV, audit and a suite of stages in a test module."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore.gates import StageResult, Status, Verdict
from pytest_fvparity import fixtures
from pytest_fvparity.suite.item import StageItem
from pytest_fvparity.suite.reporter import PlainReports, SuiteRun

HANGS = 1200  # seconds: an idle machine takes a hundredth, one with eight others at work a quarter

TOY = """
from fvcore.gates import Finding, Stage, Suite, Verdict

WRONG = Verdict((Finding("here", "differs", 1, 2),), compared=1, mismatch_count=1)

def agrees(log):
    log.append("looked")
    return Verdict(compared=len(log))

toy = Suite("toy", tuple(Stage(key, f"stage {key}", agrees) for key in ("one", "two", "three", "four")), list)
"""

# What happens at one stage: planted from outside, so that it is the same in every suite.
PLANTED = """
import os, pytest

def pytest_collection_modifyitems(items):
    if os.environ.get("REVERSED"):
        items.reverse()
    for item in items:
        if "{event}" == "mark" and item.name == "{key}":
            item.add_marker(pytest.mark.skip(reason="not today"))

@pytest.hookimpl(wrapper=True)
def pytest_runtest_{phase}(item):
    result = yield
    if item.name == "{key}":
        {statement}
    return result
"""
EVENTS = {
    "fails": ("call", "raise RuntimeError('wrong')"),
    "skips": ("setup", "pytest.skip('not today')"),
    "mark": ("setup", "pass"),
    "untidy": ("teardown", "raise RuntimeError('cannot clean up')"),
    "dies": ("call", "os._exit(1)"),
    "dies untidy": ("teardown", "os._exit(1)"),
}


@dataclass(frozen=True)
class Judged:
    """One suite as the command line asks for it, and how its own report is read."""

    name: str
    words: list[str]
    keys: tuple[str, ...]
    read: Callable[[Path, pytest.RunResult], dict[str, str]]
    keep_going: bool = False  # by itself, without the option

    def run(self, pytester: pytest.Pytester, *words: str, alone: bool = False) -> dict[str, str]:
        """Key -> status. `alone`: in a process of its own."""
        run = pytester.runpytest_subprocess if alone else pytester.runpytest_inprocess
        result = run("-p", "planted", "-v", *self.words, *words, **({"timeout": HANGS} if alone else {}))
        return self.read(pytester.path, result) | {"exit": str(int(result.ret))}

    def expect(self, **found: str) -> dict[str, str]:
        """Of every stage: PASS, but for those that are named; behind the first of them BLOCKED."""
        statuses, behind = {}, False
        for key in self.keys:
            statuses[key] = found.get(key, "BLOCKED" if behind else "PASS")
            behind = behind or (key in found and not self.keep_going)
        return statuses | {"exit": "1" if found else "0"}


def plant(pytester: pytest.Pytester, event: str = "mark", key: str = "none") -> None:
    phase, statement = EVENTS[event]
    text = PLANTED.format(event=event, key=key, phase=phase, statement=statement)
    pytester.makepyfile(planted=text)
    pytester.syspathinsert()
    import sys

    sys.modules.pop("planted", None)


def toy_statuses(folder: Path, result: pytest.RunResult) -> dict[str, str]:
    """From the table at the end of the terminal output."""
    lines = result.outlines
    start = next((n for n, line in enumerate(lines) if re.match(r"=+ suite test_toy\.py::toy =+", line)), len(lines))
    rows = (re.match(r"  (\w+) +([A-Z_]+)", line) for line in lines[start + 1 :])
    return {row[1]: row[2] for row in rows if row}


def parity_statuses(folder: Path, result: pytest.RunResult) -> dict[str, str]:
    (file,) = folder.glob("reports/*/*/src_vs_fv_diff_report.json")
    return {check["key"]: check["status"] for check in json.loads(file.read_text())["checks"]}


def transfer_statuses(folder: Path, result: pytest.RunResult) -> dict[str, str]:
    (file,) = folder.glob("reports/transfer/*/*/transfer_report.json")
    statuses: dict[str, str] = json.loads(file.read_text())["q_ids"]["Q2"]["files"]
    return statuses


def check_statuses(folder: Path, result: pytest.RunResult) -> dict[str, str]:
    (file,) = (
        path for suite in ("selectkv", "audit") for path in folder.glob(f"reports/{suite}/*/{suite}_report.json")
    )
    return {check["key"]: check["status"] for check in json.loads(file.read_text())["checks"]}


@pytest.fixture(params=["parity", "transfer", "selectkv", "audit", "toy"])
def suite(request: pytest.FixtureRequest, pytester: pytest.Pytester) -> Judged:
    plant(pytester)
    if request.param == "toy":
        pytester.makepyfile(test_toy=TOY)
        return Judged("toy", ["test_toy.py"], ("one", "two", "three", "four"), toy_statuses)
    if request.param == "transfer":
        from pytest_fvparity.transfer.stages import KEYS

        options = request.getfixturevalue("transfer_world").options
        return Judged("transfer", ["-m", "transfer", "--fv-qid=Q2", *options], KEYS, transfer_statuses)
    if request.param == "selectkv":
        from fvcore.experiments.select_kv.gates import STAGES

        words = ["-m", "selectkv", f"--fv-select-kv={request.getfixturevalue('select_kv_run')}"]
        keys = tuple(stage.key for stage in STAGES)
        return Judged("selectkv", words, keys, check_statuses, keep_going=True)
    if request.param == "audit":
        from fvcore.experiments.sae.gates import CHECKS
        from tests.fvcore.experiments.sae.worlds import config_of, right

        words = ["-m", "audit", f"--fv-audit={config_of(right(pytester.mkdir('data')))}"]
        return Judged("audit", words, tuple(CHECKS), check_statuses, keep_going=True)
    from pytest_fvparity.parity.implementation import CHECK_KEYS

    return Judged("parity", ["-m", "parity", *request.getfixturevalue("world").options], CHECK_KEYS, parity_statuses)


# ---------------------------------------------------------------- order


def test_stages_run_in_their_order_whatever_shuffles_them(
    pytester: pytest.Pytester, suite: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVERSED", "1")
    assert suite.run(pytester) == suite.expect()

    plant(pytester, "fails", suite.keys[1])
    assert suite.run(pytester) == suite.expect(**{suite.keys[1]: "ERROR"})


def test_failed_first_names_the_earliest_failure(pytester: pytest.Pytester, suite: Judged) -> None:
    plant(pytester, "fails", suite.keys[3])
    assert suite.run(pytester) == suite.expect(**{suite.keys[3]: "ERROR"})

    plant(pytester, "fails", suite.keys[1])
    assert suite.run(pytester, "--ff") == suite.expect(**{suite.keys[1]: "ERROR"})


def test_the_last_failure_alone_is_run_again(pytester: pytest.Pytester, suite: Judged) -> None:
    plant(pytester, "fails", suite.keys[2])
    suite.run(pytester)

    plant(pytester)
    assert suite.run(pytester, "--lf") == {suite.keys[2]: "PASS", "exit": "0"}


# ---------------------------------------------------------------- what blocks


@pytest.mark.parametrize("event", ["skips", "mark", "untidy"])
def test_a_stage_nobody_judged_or_that_cannot_clean_up_is_an_error_and_blocks(
    pytester: pytest.Pytester, suite: Judged, event: str
) -> None:
    plant(pytester, event, suite.keys[1])

    assert suite.run(pytester) == suite.expect(**{suite.keys[1]: "ERROR"})


def test_keeping_going_runs_the_later_stages(pytester: pytest.Pytester, suite: Judged) -> None:
    plant(pytester, "fails", suite.keys[1])

    found = suite.run(pytester, "--fv-keep-going")

    assert found == dict.fromkeys(suite.keys, "PASS") | {suite.keys[1]: "ERROR", "exit": "1"}


def test_a_run_that_is_stopped_has_no_verdict_on_the_rest(pytester: pytest.Pytester, suite: Judged) -> None:
    plant(pytester, "fails", suite.keys[1])

    found = suite.run(pytester, "-x")

    # Where nothing blocks, what was not run has no verdict for no reason of the suite's.
    behind = dict.fromkeys(suite.keys[2:], "CRASHED" if suite.keep_going else "BLOCKED")
    assert {key: found[key] for key in suite.keys} == {suite.keys[0]: "PASS", suite.keys[1]: "ERROR"} | behind
    assert found["exit"] != "0"


def test_a_stage_alone_is_planned_alone(pytester: pytest.Pytester, suite: Judged) -> None:
    assert suite.run(pytester, "-k", suite.keys[1]) == {suite.keys[1]: "PASS", "exit": "0"}


# ---------------------------------------------------------------- workers

DEATHS = [("dies", 0), ("dies", 2), ("dies untidy", 0), ("dies untidy", 2)]


@pytest.mark.parametrize(("suite", "event", "place"), [("toy", *how) for how in DEATHS], indirect=["suite"])
def test_a_stage_that_kills_its_worker_crashed_and_blocks(
    pytester: pytest.Pytester, suite: Judged, event: str, place: int
) -> None:
    plant(pytester, event, suite.keys[place])

    found = suite.run(pytester, "-n", "2", alone=True)

    assert found == suite.expect(**{suite.keys[place]: "CRASHED"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "event"),
    [("parity", "dies untidy"), ("transfer", "dies"), ("selectkv", "dies untidy"), ("audit", "dies")],
    indirect=["suite"],
)
def test_it_does_so_in_every_suite(pytester: pytest.Pytester, suite: Judged, event: str) -> None:
    plant(pytester, event, suite.keys[2])

    assert suite.run(pytester, "-n", "2", alone=True) == suite.expect(**{suite.keys[2]: "CRASHED"})


@pytest.mark.parametrize(
    ("suite", "dist"),
    [("toy", "load"), ("toy", "worksteal")]
    + [pytest.param(name, "load", marks=pytest.mark.slow) for name in ("transfer", "selectkv", "audit")],
    indirect=["suite"],
)
def test_no_way_to_share_the_stages_names_a_later_one(pytester: pytest.Pytester, suite: Judged, dist: str) -> None:
    plant(pytester, "fails", suite.keys[0])

    found = suite.run(pytester, "-n", "2", "--dist", dist, alone=True)

    assert found == suite.expect(**{suite.keys[0]: "ERROR"})


# ---------------------------------------------------------------- a suite in a test module


def judged(pytester: pytest.Pytester, source: str, *words: str) -> pytest.RunResult:
    pytester.makepyfile(test_toy=source)
    return pytester.runpytest_inprocess("test_toy.py", *words)


def test_a_suite_is_collected_under_its_name_and_marked(pytester: pytest.Pytester) -> None:
    source = TOY + "\nimport pytest\n\ndef test_beside(): pass\n"

    result = judged(pytester, source, "--strict-markers", "-m", "toy", "--collect-only", "-q")

    ids = [f"test_toy.py::toy::{key}" for key in ("one", "two", "three", "four")]
    assert [line for line in result.outlines if "::" in line] == ids
    judged(pytester, source, "test_toy.py::toy::two").assert_outcomes(passed=5)


def test_a_verdict_that_fails_is_told_with_both_values_and_the_rest_is_blocked(pytester: pytest.Pytester) -> None:
    source = TOY.replace("def agrees(log):\n", "def agrees(log):\n    if log:\n        return WRONG\n")

    result = judged(pytester, source)

    result.stdout.fnmatch_lines(
        [
            "two: FAIL",
            "1 of 1 values differ; the first of what is wrong:",
            "  here: differs",
            "    expected 1",
            "*suite test_toy.py::toy*",
            "  one    PASS",
            "  two    FAIL         here: differs",
            "  three  BLOCKED      blocked by two",
            "*1 failed, 1 passed, 2 blocked*",
        ]
    )


def test_a_subject_is_built_once_and_anew_where_a_fixture_is_another(pytester: pytest.Pytester) -> None:
    source = """
import pytest
from fvcore.gates import Stage, Suite, Verdict

def grows(log):
    log.append(1)
    return Verdict(compared=len(log))

def is_new(log):
    assert not log
    return grows(log)

def both(check):
    return (Stage("one", "", check), Stage("two", "", check))

def grown(log):
    return grows(log) if not log else Verdict(compared=2)

@pytest.fixture(scope="module")
def kept():
    return object()

@pytest.fixture
def fresh():
    return object()

once = Suite("once", (Stage("one", "", is_new), Stage("two", "", lambda log: Verdict(mismatch_count=len(log) != 1))), list)
of_kept = Suite("of_kept", once.stages, lambda kept: [])
of_fresh = Suite("of_fresh", both(is_new), lambda fresh, other=1: [])
"""
    judged(pytester, source).assert_outcomes(passed=6)


def test_behind_its_last_stage_nothing_is_held_of_a_suite(pytester: pytest.Pytester) -> None:
    source = """
import gc
import weakref
from fvcore.gates import Stage, Suite, Verdict

made = []

class Subject:
    def __init__(self):
        made.append(weakref.ref(self))

def check(subject):
    return Verdict(compared=1)

held = Suite("held", (Stage("one", "", check), Stage("two", "", check)), Subject)

def test_between():
    gc.collect()
    assert [one() for one in made] == [None]
"""
    judged(pytester, source).assert_outcomes(passed=3)


@pytest.mark.parametrize("compared", [0, 1])
def test_a_suite_in_a_module_is_green_by_these_statuses_alone(pytestconfig: pytest.Config, compared: int) -> None:
    def green(status: Status) -> bool:
        row = {"result": StageResult("toy", "one", status, Verdict(compared=compared)).to_dict()}
        return PlainReports(pytestconfig).finish(
            [SuiteRun("test_toy.py::toy", ("one",), False, None, {"one"}, {"one": row})]
        )

    part = {Status.NOT_PROVIDED} if compared else set[Status]()
    assert {status for status in Status if green(status)} == {Status.PASS, Status.NOT_HELD, Status.NOT_RUN, *part}
    assert not PlainReports(pytestconfig).finish([SuiteRun("test_toy.py::toy", ("one",), planned={"one"})])


def test_what_belongs_to_a_trials_file_is_kept_of_the_last_few() -> None:
    config: Any = SimpleNamespace(stash=pytest.Stash())
    config.stash[fixtures.OPTIONS_KEY] = SimpleNamespace(live=False)
    request: Any = SimpleNamespace(config=config, node=object.__new__(StageItem))
    made: list[str] = []

    def kept(key: str) -> str:
        def make() -> str:
            made.append(key)
            return key

        return fixtures._cached(request, make, key)

    for number in range(100):
        assert (kept(f"{number}"), kept("often")) == (f"{number}", "often")

    assert made == ["0", "often", *(f"{number}" for number in range(1, 100))]
    assert len(config.stash[fixtures.CACHE_KEY]) == fixtures.MOST_KEPT


def test_a_subject_that_cannot_be_built_is_the_first_stages_error(pytester: pytest.Pytester) -> None:
    source = TOY.replace(", list)", ", lambda no_such_fixture: [])")

    result = judged(pytester, source)

    result.stdout.fnmatch_lines(["*no_such_fixture*", "  one    ERROR*", "*1 failed, 3 blocked*"])


def test_the_users_root_fixtures_reach_its_stages_and_a_class_may_hold_one(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import pytest\n\n@pytest.fixture(autouse=True)\ndef seen(request):\n    print('SEEN', request.node.name)"
    )
    source = TOY.replace("toy = Suite", "class TestHolder:\n    toy = Suite")

    result = judged(pytester, source, "-s", "-v")

    result.stdout.fnmatch_lines(["*test_toy.py::TestHolder::toy::one SEEN one*"])
    result.assert_outcomes(passed=4)


def test_one_suite_under_two_names_is_one_and_two_of_one_name_are_an_error(pytester: pytest.Pytester) -> None:
    judged(pytester, TOY + "\nagain = toy\n").assert_outcomes(passed=4)

    result = judged(pytester, TOY + '\nother = Suite("toy", toy.stages, list)\n')
    result.stdout.fnmatch_lines(["*two suites of one name, 'toy'*"])
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_a_suite_and_other_tests_share_workers_and_files_stay_whole(pytester: pytest.Pytester) -> None:
    plain = {f"test_{name}": "def test_it(): pass\ndef test_more(): pass" for name in "ab"}
    pytester.makepyfile(test_toy=TOY, **plain)

    result = pytester.runpytest_subprocess("-n", "2", "-v", timeout=HANGS)

    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["scheduling tests via SuiteScheduling"])
    workers = {re.findall(r"gw\d", line)[0] for line in result.outlines if "PASSED test_toy.py::toy" in line}
    assert len(workers) == 1


def test_a_stage_of_a_suite_is_reproduced_by_its_node_id(pytester: pytest.Pytester) -> None:
    judged(pytester, TOY, "--junitxml=junit.xml")

    assert 'name="fvparity_repro" value="pytest test_toy.py::toy::two"' in (pytester.path / "junit.xml").read_text()


# ---------------------------------------------------------------- what a user adds


LOOSE = """
def pytest_fvparity_tolerances(dtype, device):
    return [{"key": "fv_vector", "leaf": "function_vector", "atol": 100.0}]
"""


def test_the_users_tolerances_are_asked_for_by_transfer_too_and_said(
    pytester: pytest.Pytester, transfer_world: Any, tmp_path: Path
) -> None:
    import shutil

    from tests.pytest_fvparity.transfer_world import TransferWorld, break_vector

    own = TransferWorld(shutil.copytree(transfer_world.root, tmp_path / "run" / "tiny-llama"), transfer_world.golden)
    break_vector(own, "Q2")
    pytester.makepyfile(loose=LOOSE)
    pytester.syspathinsert()
    words = ["-m", "transfer", "--fv-qid=Q2", *own.options]
    stage = f"{own.root}/Q2/artifacts/qid_status.json::transfer::stepe_vector"

    red = pytester.runpytest_inprocess(*words, "-k", "stepe_vector")
    assert red.ret == pytest.ExitCode.TESTS_FAILED
    pytester.runpytest_inprocess(stage, *own.options[:1]).assert_outcomes(failed=1)

    green = pytester.runpytest_inprocess("-p", "loose", *words, "-k", "stepe_vector")
    green.assert_outcomes(passed=1, deselected=6)
    (file,) = pytester.path.glob("reports/transfer/*/*/transfer_report.json")
    assert json.loads(file.read_text())["headline"].endswith("under tolerances of hook pytest_fvparity_tolerances")
