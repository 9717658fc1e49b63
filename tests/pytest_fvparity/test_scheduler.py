"""Who runs what when there are several workers, and what a worker that dies leaves behind."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore.gates import StageResult, Status
from pytest_fvparity.parity.implementation import CHECK_KEYS, INPUTS
from pytest_fvparity.suite.collector import FAILURES
from pytest_fvparity.suite.declaration import FILES_KEY
from pytest_fvparity.suite.reporter import SuiteReporter, SuiteRun
from pytest_fvparity.suite.scheduler import PLACE, SuiteScheduling, SuiteWorkers, may_be_stage, partition
from tests.late import RUNNING

if RUNNING:
    from tests.pytest_fvparity.worlds import World, plant, reports, statuses


HANGS = 300  # seconds: no run here takes a tenth of it

DIES = 'os._exit(1) if "seed0" in self.trials.id else None'


def suite(name: str) -> list[str]:
    return [f"{name}.json::parity::{key}" for key in CHECK_KEYS]


def plain(name: str, n: int) -> list[str]:
    return [f"{name}.py::test_it[{i}]" for i in range(n)]


# ---------------------------------------------------------------- the partition


def test_files_stay_whole_and_suites_come_first_to_the_worker_with_the_least_to_do() -> None:
    ids = [*plain("a", 3), *suite("small"), *plain("b", 2), *suite("large"), *suite("middle")]

    def cost(nodeid: str) -> int:
        return {"large": 50, "middle": 30, "small": 20}.get(nodeid.partition(".")[0], 1)

    shares = [[ids[index] for index in share] for share in partition(ids, 2, cost)]

    assert shares[0] == [*plain("a", 3), *suite("large")]  # 300 and 3, because the first of two equals is taken
    assert shares[1] == [*suite("small"), *plain("b", 2), *suite("middle")]  # 120, 180 and 2


def test_a_file_keeps_the_order_that_it_was_collected_in() -> None:
    ids = [*suite("s"), *plain("a", 4)]
    random.Random(0).shuffle(ids)

    (share,) = partition(ids, 1, lambda nodeid: 1)

    found = [ids[index] for index in share]
    for file in ("s.json", "a.py"):
        assert [nodeid for nodeid in found if file in nodeid] == [nodeid for nodeid in ids if file in nodeid]


@pytest.mark.parametrize(
    ("nodeid", "may"),
    [
        ("test_a.py::toy::one", True),
        ("folder/test_a.py::TestIt::toy::one", True),
        ("test_a.py::test_it", False),
        ("test_a.py::TestIt::test_it[a::b::c]", False),
        ("test_a.py::test_it[a::b::c]", False),
        ("test_a.py::Case::runTest", False),
        ("test_a.py::Case::check_it", False),
    ],
)
def test_a_suite_in_a_test_module_is_known_by_the_names_of_its_tests(nodeid: str, may: bool) -> None:
    assert may_be_stage(nodeid, ["test", "check_*"]) is may


# ---------------------------------------------------------------- the protocol, as xdist's loop speaks it


class Node:
    """A worker seen from the controller. Like xdist's it runs a test when it knows the next one, or that none comes."""

    def __init__(self, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.workerinput: dict[str, Any] = {}
        self.queue: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        assert not self.shutting_down, "a worker that is shut down runs nothing more"
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def can_run(self) -> bool:
        return len(self.queue) > 1 or (self.shutting_down and bool(self.queue))

    @property
    def has_ended(self) -> bool:
        return self.shutting_down and not self.queue


class Run:
    """The controller's loop: the same calls in the same order as `xdist.dsession.DSession` makes them."""

    def __init__(self, ids: list[str], n: int, rootpath: Path = Path("nowhere"), restarts: int = 99) -> None:
        self.ids, self.restarts = ids, restarts
        self.errors: list[pytest.CollectReport] = []
        hook = SimpleNamespace(pytest_collectreport=lambda report: self.errors.append(report))
        names = {nodeid.partition("::")[0] for nodeid in ids if ".json" in nodeid}
        stash = {FILES_KEY: {(rootpath / name).resolve(): None for name in names}}
        config: Any = SimpleNamespace(getvalue={"tx": [f"{n}*popen"]}.get, hook=hook, rootpath=rootpath, stash=stash)
        self.workers = SuiteWorkers(None, stages=True)
        scheduling = self.workers.pytest_xdist_make_scheduler(config, None)
        assert isinstance(scheduling, SuiteScheduling)
        self.sched = scheduling
        self.stopping = False
        self.done: list[tuple[str, str]] = []
        self.crashed: list[str] = []
        self.started = 0
        self.live = [self.start() for _ in range(n)]

    def start(self) -> Any:
        node: Any = Node(self.started)
        self.started += 1
        self.workers.pytest_configure_node(node)
        return node

    def collect(self, node: Any, ids: list[str] | None = None) -> None:
        if self.stopping:
            node.shutdown()
            return
        self.sched.add_node(node)
        self.sched.add_node_collection(node, self.ids if ids is None else ids)
        if self.sched.collection_is_completed:
            self.sched.schedule()
        self.after_event()

    def finish_one(self, node: Any) -> None:
        index = node.queue.pop(0)
        self.done.append((node.gateway.id, self.ids[index]))
        self.sched.mark_test_complete(node, index, 0.1)
        self.after_event()

    def end(self, node: Any) -> None:
        self.workers.pytest_testnodedown(node, None)
        if node in self.sched.nodes:
            assert self.sched.remove_node(node) is None
        self.live.remove(node)

    def crash(self, node: Any) -> Any:
        """The worker dies; the one that replaces it is returned, as long as restarts are allowed."""
        self.workers.pytest_testnodedown(node, "Not properly terminated")
        crashitem = self.sched.remove_node(node) if node in self.sched.nodes else None
        if crashitem:
            self.crashed.append(crashitem)
        self.live.remove(node)
        self.restarts -= 1
        if self.restarts < 0:
            self.shut_down()
            return None
        self.stopping = False
        self.live.append(self.start())
        self.after_event()
        return self.live[-1]

    def after_event(self) -> None:
        if self.sched.tests_finished:
            self.shut_down()

    def shut_down(self) -> None:
        self.stopping = True
        for node in self.sched.nodes:
            node.shutdown()

    def ready(self) -> list[Any]:
        """The workers that can go on. Nobody can: the run hangs."""
        return [node for node in self.live if node.can_run or node.has_ended or node not in self.sched.nodes]

    def step(self, node: Any) -> None:
        if node.can_run:
            self.finish_one(node)
        elif node.has_ended:
            self.end(node)
        else:
            self.collect(node)

    def to_the_end(self) -> None:
        while self.live:
            self.step(self.ready()[0])


IDS = [*suite("one"), *plain("a", 5), *suite("two"), *plain("b", 1), *suite("three")]


def test_whenever_workers_die_every_test_is_finished_or_died_of_once() -> None:
    for seed in range(200):
        dies_at_random(random.Random(seed))


def dies_at_random(dice: random.Random) -> None:
    run = Run(IDS, dice.randint(1, 8))

    while run.live:
        ready = run.ready()
        assert ready
        if dice.random() < 0.08:
            run.crash(dice.choice(run.live))
        else:
            run.step(dice.choice(ready))
        places = [node.workerinput[PLACE] for node in run.live]
        assert len(set(places)) == len(places), "two living workers share a GPU"

    assert run.sched.never_run == []
    counted = Counter([*run.crashed, *(nodeid for _, nodeid in run.done)])
    assert counted == Counter(IDS)
    for name in ("one", "two", "three"):
        finished = [nodeid for _, nodeid in run.done if nodeid in suite(name)]
        assert finished == [nodeid for nodeid in suite(name) if nodeid in finished]


def test_every_worker_works_and_a_suite_knows_one_worker() -> None:
    run = Run(IDS, 3)
    run.to_the_end()

    on = {name: {worker for worker, nodeid in run.done if nodeid in suite(name)} for name in ("one", "two", "three")}
    assert sorted(map(sorted, on.values())) == [["gw0"], ["gw1"], ["gw2"]]


def test_trials_with_more_in_them_count_more(tmp_path: Path) -> None:
    for name, kilobytes in {"one": 1, "two": 1, "three": 4}.items():
        (tmp_path / f"{name}.json").write_text(kilobytes * 1024 * "x")
    run = Run(IDS, 2, tmp_path)
    run.to_the_end()

    on = {name: {worker for worker, nodeid in run.done if nodeid in suite(name)} for name in ("one", "two", "three")}
    assert on["three"].isdisjoint(on["one"] | on["two"])


def test_more_workers_than_files_and_no_tests_at_all_end() -> None:
    for ids in (suite("one"), []):
        run = Run(ids, 4)
        run.to_the_end()
        assert [nodeid for _, nodeid in run.done] == ids


def test_a_worker_holds_few_tests_so_that_a_run_can_be_stopped() -> None:
    run = Run(plain("a", 100), 1)
    (node,) = run.live
    run.collect(node)
    run.finish_one(node)

    run.shut_down()
    run.to_the_end()

    assert len(run.done) <= 3
    assert len(run.sched.never_run) == 100 - len(run.done)


def test_a_worker_with_its_last_test_waits_for_nobody() -> None:
    run = Run(IDS, 2)
    first, second = run.live
    run.collect(first)
    run.collect(second)

    while not first.has_ended:
        run.finish_one(first)

    assert {worker for worker, _ in run.done} == {"gw0"}


def test_what_a_dead_worker_had_not_done_goes_to_the_one_at_its_place() -> None:
    run = Run(IDS, 3)
    for node in list(run.live):
        run.collect(node)
    first, second, _ = run.live
    theirs = {run.ids[index] for index in first.queue}, {run.ids[index] for index in second.queue}
    for_first, for_second = run.crash(first), run.crash(second)

    run.collect(for_second)  # the later one is the first to be there
    run.collect(for_first)

    assert {run.ids[index] for index in for_first.queue} & theirs[0]
    assert {run.ids[index] for index in for_second.queue} & theirs[1]
    assert (for_first.workerinput[PLACE], for_second.workerinput[PLACE]) == (0, 1)


def test_a_worker_that_dies_before_it_collected_is_replaced() -> None:
    run = Run(IDS, 2)
    run.collect(run.live[0])
    run.crash(run.live[1])
    run.sched.add_node(run.live[1])
    run.crash(run.live[1])
    run.to_the_end()

    assert sorted(nodeid for _, nodeid in run.done) == sorted(IDS)


@pytest.mark.parametrize("collected", [0, 1, 2])
def test_without_a_replacement_what_is_left_is_named(collected: int) -> None:
    run = Run(IDS, 2, restarts=0)
    for node in run.live[:collected]:
        run.collect(node)
    run.crash(run.live[0])
    run.to_the_end()

    accounted = [*run.sched.never_run, *run.crashed, *(nodeid for _, nodeid in run.done)]
    assert sorted(accounted) == (sorted(IDS) if collected else [])


def test_a_test_that_killed_its_worker_may_be_asked_for_again() -> None:
    run = Run(IDS, 1)
    run.collect(run.live[0])
    run.workers.pytest_testnodedown(run.live[0], "died")
    crashitem = run.sched.remove_node(run.live[0])
    assert crashitem == IDS[0]
    run.sched.mark_test_pending(crashitem)
    run.live = [run.start()]
    run.to_the_end()

    assert [nodeid for _, nodeid in run.done] == IDS


def test_workers_that_collect_differently_run_nothing() -> None:
    run = Run(IDS, 2)
    run.collect(run.live[0])
    run.collect(run.live[1], IDS[1:])
    run.to_the_end()

    (error,) = run.errors
    assert error.outcome == "failed"
    assert f"-{IDS[0]}" in str(error.longrepr)
    assert (run.done, run.sched.never_run) == ([], IDS)


def test_a_replacement_that_collects_differently_runs_nothing() -> None:
    run = Run(IDS, 2)
    for node in list(run.live):
        run.collect(node)
    run.collect(run.crash(run.live[0]), IDS[1:])
    run.to_the_end()

    assert len(run.errors) == 1
    assert {worker for worker, _ in run.done} == {"gw1"}
    assert sorted([*run.sched.never_run, *run.crashed, *(nodeid for _, nodeid in run.done)]) == sorted(IDS)


# ---------------------------------------------------------------- what the dead leave behind


def reporter_after(**found: Status) -> SuiteReporter:
    reporter = SuiteReporter(SimpleNamespace(stash={FILES_KEY: {}}, rootpath=Path()))  # type: ignore[arg-type]
    rows = {key: {"result": StageResult("parity", key, status).to_dict()} for key, status in found.items()}
    reporter.runs["one.json::parity"] = SuiteRun("one.json::parity", CHECK_KEYS, rows=rows)
    return reporter


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"slot_map": Status.PASS}, {}),
        ({"slot_map": Status.NOT_PROVIDED}, {}),
        ({"slot_map": Status.NOT_RUN}, {}),
        ({"fv_vector": Status.FAIL, "slot_map": Status.ERROR}, {"slot_map": "ERROR", "fv_vector": "FAIL"}),
        ({"top_heads": Status.CRASHED, "fv_vector": Status.BLOCKED}, {"top_heads": "CRASHED"}),
    ],
)
def test_a_new_worker_is_told_what_failed(found: dict[str, Status], told: dict[str, str]) -> None:
    node: Any = Node(7)

    reporter_after(**found).pytest_configure_node(node)

    assert node.workerinput[FAILURES] == {f"one.json::parity::{key}": status for key, status in told.items()}


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "CRASHED"), (Status.PASS, "CRASHED"), (Status.FAIL, "FAIL"), (Status.BLOCKED, "BLOCKED")],
)
def test_a_stage_that_killed_its_worker_never_passed(before: Status | None, after: str) -> None:
    reporter = reporter_after(**({"slot_map": before} if before else {}))
    nodeid = suite("one")[1]
    report: Any = SimpleNamespace(nodeid=nodeid, longrepr="worker 'gw0' crashed", capstdout="", capstderr="")

    reporter.pytest_handlecrashitem(nodeid, report)

    assert reporter.runs["one.json::parity"].status("slot_map") == after


# ---------------------------------------------------------------- whole runs


def plain_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_a="def test_one(): pass\ndef test_two(): pass", test_b="def test_one(): pass\ndef test_two(): pass"
    )


def on_workers(pytester: pytest.Pytester, world: World, *words: str) -> pytest.RunResult:
    """A mixed run: the stages, and the plain tests of the folder."""
    return pytester.runpytest_subprocess(*words, *world.options, str(pytester.path), timeout=HANGS)


@pytest.mark.slow
def test_a_stage_that_kills_its_worker_is_crashed_once_and_the_rest_is_run(
    pytester: pytest.Pytester, two_files: World
) -> None:
    plant(pytester, "mean_activations", DIES)
    plain_tests(pytester)

    result = on_workers(pytester, two_files, "-n", "2", "-v")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*1 failed, 12 passed, 3 blocked*"])
    first, second = reports(pytester)
    assert list(statuses(first).values()) == ["PASS", "PASS", "CRASHED", *["BLOCKED"] * 3]
    assert "crashed while running" in first["headline"]
    assert second["overall_status"] == "PASS"

    plant(pytester, "mean_activations", "pass")
    again = on_workers(pytester, two_files, "-n", "2", "--lf")
    again.assert_outcomes(passed=1)


def dies_at(pytester: pytest.Pytester, key: str) -> None:
    """The worker dies before the stage begins."""
    with (pytester.path / "conftest.py").open("a") as file:
        file.write(f"\nimport os\ndef pytest_runtest_protocol(item):\n    if item.name == {key!r}: os._exit(1)\n")


@pytest.mark.slow
def test_keep_going_goes_on_behind_a_crash(pytester: pytest.Pytester, world: World) -> None:
    dies_at(pytester, "top_heads")

    result = on_workers(pytester, world, "-n", "1", "--fv-keep-going")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert list(statuses(report).values()) == ["PASS", "PASS", "PASS", "CRASHED", "PASS", "PASS"]


@pytest.mark.slow
def test_a_replacement_knows_the_failures_of_its_predecessor(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "slot_map", 'leaves["dummy_labels"] = []')
    dies_at(pytester, "top_heads")

    result = on_workers(pytester, world, "-n", "1")

    # Counted by the terminal, which saw what the workers did: the report would doubt a PASS in any case.
    result.stdout.fnmatch_lines(["*2 failed, 1 passed, 3 blocked*"])
    (report,) = reports(pytester)
    assert report["first_divergence"]["check_key"] == "slot_map"


@pytest.mark.slow
def test_without_a_replacement_the_rest_is_told_and_red(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "mean_activations", DIES)
    plain_tests(pytester)

    result = on_workers(pytester, world, "-n", "1", "--max-worker-restart", "0", "-p", "no:randomly")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["never run, for no worker was left to take them: *::parity::top_heads and 2 more"])
    (report,) = reports(pytester)
    assert list(statuses(report).values()) == ["PASS", "PASS", "CRASHED", *["BLOCKED"] * 3]


def test_a_run_whose_workers_never_collected_is_not_green(pytester: pytest.Pytester, world: World) -> None:
    plain_tests(pytester)
    pytester.makeconftest(
        """
        import os, time

        def pytest_collection_modifyitems():
            # Late enough for the other worker to have collected, which is what makes xdist believe in a good end.
            if os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
                while not os.path.exists("collected"):
                    time.sleep(0.1)
                os._exit(1)

        def pytest_xdist_node_collection_finished(node):
            open("collected", "w").close()
        """
    )

    result = on_workers(pytester, world, "-n", "2", "--max-worker-restart", "0", "-k", "test_")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["never run, for no worker was left to take them: *and 3 more"])


def test_the_first_failure_stops_all_workers(pytester: pytest.Pytester, world: World) -> None:
    pytester.makepyfile(
        test_a="def test_fails(): assert False",
        test_b="import time, pytest\n@pytest.mark.parametrize('n', range(600))\ndef test_slow(n): time.sleep(0.05)",
    )

    result = on_workers(pytester, world, "-n", "2", "-x", "-k", "test_")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert result.parseoutcomes()["passed"] < 300


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGINT", "SIGKILL"])
def test_a_controller_that_is_stopped_leaves_no_pass_it_did_not_see(
    pytester: pytest.Pytester, world: World, signal: str
) -> None:
    assert on_workers(pytester, world, "-n", "1").ret == pytest.ExitCode.OK
    stop = f"import signal, time; os.kill(os.getppid(), signal.{signal}); time.sleep(5); os._exit(0)"
    plant(pytester, "mean_activations", stop)
    # A shell's background job ignores SIGINT, and so would the controller that it starts.
    pytester.makepyfile(listening="import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)")

    result = on_workers(pytester, world, "-n", "1", "-p", "listening")

    assert result.ret == {"SIGINT": pytest.ExitCode.INTERRUPTED, "SIGKILL": -9}[signal]
    (report,) = reports(pytester)
    assert list(statuses(report).values()) == ["PASS", "PASS", "CRASHED", *["BLOCKED"] * 3]
    assert report["overall_status"] == "FAIL"


@pytest.mark.parametrize("key", ["slot_map", "fv_vector", "injection_output"])
def test_a_stage_alone_has_the_candidate_compute_what_it_needs(
    pytester: pytest.Pytester, world: World, key: str
) -> None:
    pytester.makeconftest(
        """
        from fvcore.pipeline import Pipeline
        from pytest_fvparity.parity.implementation import CHECK_KEYS

        class Noting(Pipeline):
            asked = []

        def noting(key):
            def method(self, *inputs):
                self.asked.append(key)
                return getattr(Pipeline, key)(self, *inputs)
            return method

        for key in CHECK_KEYS:
            setattr(Noting, key, noting(key))

        def pytest_fvparity_candidate(lm, trials, settings):
            return Noting(lm, trials, settings)

        def pytest_sessionfinish():
            print("ASKED", *sorted(Noting.asked))
        """
    )

    result = pytester.runpytest_inprocess("-m", "parity", "-k", key, "-s", *world.options)

    result.assert_outcomes(passed=1, deselected=5)

    def needs(key: str) -> set[str]:
        return {key}.union(*map(needs, INPUTS[key]))

    result.stdout.fnmatch_lines([f"*ASKED {' '.join(sorted(needs(key)))}"])


# ---------------------------------------------------------------- when it is ours to schedule


@pytest.mark.parametrize(
    ("words", "scheduling"),
    [
        (["-n", "1", "--dist", "no"], "SuiteScheduling"),  # xdist's default value: nothing was chosen
        (["-n", "1", "--dist", "load"], "LoadScheduling"),
        (["-n", "1", "--dist", "worksteal"], "WorkStealingScheduling"),
        (["-d", "--tx", "1*popen"], "LoadScheduling"),
        (["-n", "0"], None),
        (["--tx", "1*popen"], None),
        (["--tx", "1*popen", "--dist", "no"], None),
    ],
)
def test_a_choice_of_the_user_is_left_alone(
    pytester: pytest.Pytester, world: World, words: list[str], scheduling: str | None
) -> None:
    plain_tests(pytester)

    result = on_workers(pytester, world, *words, "-v", "-k", "test_")

    result.assert_outcomes(passed=4, deselected=0 if scheduling else 6)
    scheduled = [line for line in result.outlines if line.startswith("scheduling tests via")]
    assert scheduled == ([f"scheduling tests via {scheduling}"] if scheduling else [])
    said = [line for line in result.outlines if line.startswith("fvparity: ") and "model" not in line]
    ours = ["fvparity: workers share whole files, a suite stays on one of them and in order; --dist chooses otherwise"]
    if scheduling == "SuiteScheduling":
        assert said == ours
    elif scheduling:
        assert len(said) == 1
        assert said[0].startswith("fvparity: --dist ")
    else:
        assert said == []


def test_a_run_without_parity_is_left_alone(pytester: pytest.Pytester) -> None:
    plain_tests(pytester)

    result = pytester.runpytest_subprocess("-n", "1", "-v")

    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["scheduling tests via LoadScheduling"])
    result.stdout.no_fnmatch_line("fvparity: *")


def test_xdist_may_be_missing(pytester: pytest.Pytester, world: World) -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['xdist'] = None; import pytest_fvparity.plugin"], check=True
    )

    result = pytester.runpytest_inprocess("-p", "no:xdist", "-m", "parity", "-k", "slot_map", *world.options)

    result.assert_outcomes(passed=1, deselected=5)


def test_a_worker_takes_the_gpu_of_the_one_it_replaces(pytester: pytest.Pytester, world: World) -> None:
    gpu = """
        import os, sys
        from types import SimpleNamespace
        from pytest_fvparity import fixtures

        def test_gpu(request, monkeypatch):
            cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
            monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
            name = fixtures.device_of(request, SimpleNamespace(device="cuda"))
            with open(os.environ["PYTEST_XDIST_WORKER"], "w") as file:
                file.write(name)
        """
    more = "\n        def test_more(): pass\n        def test_and_more(): pass\n        def test_still_more(): pass"
    dies = "\n        def test_dies(): os._exit(1)\n        test_gpu_again = test_gpu"
    pytester.makepyfile(test_a=gpu + more, test_b=gpu + dies)

    on_workers(pytester, world, "-n", "2", "-k", "test_")

    found = {path.name: path.read_text() for path in pytester.path.glob("gw*")}
    # The larger file is gw0's. gw2, counted by its number, would join gw0 on the first GPU.
    assert found == {"gw0": "cuda:0", "gw1": "cuda:1", "gw2": "cuda:1"}
