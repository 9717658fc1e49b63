"""How the workers of pytest-xdist share a run with stages, where the user has chosen no `--dist`.

The partition is static: a file goes whole to one worker, in the order that was collected, the costliest file first and
always to the worker with the least to do. Every worker has a place. When a worker dies, xdist starts
another one: it takes the dead one's place, and with it what is left of its share, and its GPU. xdist itself is imported
only where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import pytest

from pytest_fvparity.suite.declaration import FILES_KEY

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling
    from xdist.workermanage import WorkerController

PLACE = "fvparity_place"
"""The entry of a worker's `workerinput` that holds its place: 0 to n - 1, no two living workers share one."""

LOOKAHEAD = 2  # a worker begins a test only when it knows the next one, or that there is none


def chosen_dist(config: pytest.Config) -> str | None:
    """The `--dist` that the user chose. To be asked before xdist makes `load` of a bare `-n`."""
    dist = getattr(config.option, "dist", "no")
    if dist != "no":
        return str(dist)
    return "load" if getattr(config.option, "distload", False) else None


def partition(ids: Sequence[str], n: int, cost: Callable[[str], float]) -> list[list[int]]:
    """For each of `n` workers the indices of its tests: whole files, in the order of `ids`."""
    files: dict[str, list[int]] = {}
    for index, nodeid in enumerate(ids):
        files.setdefault(nodeid.partition("::")[0], []).append(index)
    costs = {file: sum(cost(ids[index]) for index in indices) for file, indices in files.items()}
    shares: list[set[str]] = [set() for _ in range(n)]
    loads = [0.0] * n
    for file in sorted(files, key=costs.__getitem__, reverse=True):
        lightest = loads.index(min(loads))
        shares[lightest].add(file)
        loads[lightest] += costs[file]

    return [[index for file in files if file in share for index in files[file]] for share in shares]


def may_be_stage(nodeid: str, functions: Sequence[str]) -> bool:
    """Whether an id reads like a stage of a suite in a test module: of three parts, and no name of a test function.

    Of a worker's tests the controller knows the ids alone. A false alarm keeps files whole; a suite that is missed loses
    its order, and no verdict.
    """
    *_, holder, name = ["", "", *nodeid.partition("[")[0].split("::")]
    is_test = any(name.startswith(pattern) or fnmatch(name, pattern) for pattern in (*functions, "runTest"))
    return bool(holder) and nodeid.count("::") > 1 and not is_test


class SuiteScheduling:
    """xdist's `Scheduling` over that partition.

    A worker is sent few tests at a time, so that `-x` and Ctrl-C find most of them still here, and is told to shut down
    when it has its last one.
    """

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        from xdist.workermanage import parse_tx_spec_config

        self.config = config  # plugins that have a crashed test run again look for it
        self.n_workers = len(parse_tx_spec_config(config))
        self.collection: list[str] = []
        self._collected: dict[WorkerController, list[str]] = {}
        self._sent: dict[WorkerController, list[int]] = {}  # and not completed
        self._waiting: dict[int, list[int]] = {}  # by place
        self._lost: list[int] = []
        self._last_dead: int | None = None
        self._scheduled = False

    @property
    def nodes(self) -> list[WorkerController]:
        return list(self._sent)

    @property
    def collection_is_completed(self) -> bool:
        return self._scheduled or len(self._collected) >= self.n_workers

    @property
    def tests_finished(self) -> bool:
        """Whether every test was sent: xdist may then tell all workers to shut down."""
        return self._scheduled and not any(self._waiting.values())

    @property
    def has_pending(self) -> bool:
        return any(self._waiting.values()) or any(self._sent.values())

    @property
    def never_run(self) -> list[str]:
        """Tests that were collected and that no worker finished or died of."""
        if not self._scheduled:
            return self.collection
        unfinished = chain(self._lost, *self._waiting.values(), *self._sent.values())
        return [self.collection[index] for index in sorted(unfinished)]

    def add_node(self, node: WorkerController) -> None:
        self._sent[node] = []

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        self._collected[node] = list(collection)
        self.collection = self.collection or list(collection)
        if self._scheduled and not self._agrees(node):
            self._lost += self._waiting.pop(_place(node), [])

    def schedule(self) -> None:
        """Share out the tests once all workers have collected, and again whenever a worker takes a dead one's place."""
        if not self._scheduled:
            self._scheduled = True
            if all(self._agrees(node) for node in self._collected):
                shares = partition(self.collection, len(self._collected), self._cost)
                self._waiting = dict(zip(sorted(map(_place, self._collected)), shares, strict=True))
            else:
                self._lost = list(range(len(self.collection)))
        for node in self._collected:
            self._feed(node)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        self._sent[node].remove(item_index)
        self._feed(node)

    def mark_test_pending(self, item: str) -> None:
        """Have a test run again: a plugin's wish about the test that a worker just died of."""
        assert self._last_dead is not None
        self._waiting.setdefault(self._last_dead, []).insert(0, self.collection.index(item))

    def remove_pending_tests_from_node(self, node: WorkerController, indices: Sequence[int]) -> None:
        raise NotImplementedError("no test is ever taken back from a worker")

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget a worker; if it died in a test, return that test. What was left to it waits at its place."""
        sent = self._sent.pop(node)
        self._collected.pop(node, None)
        if not sent:
            return None
        crashed, *left = sent
        self._last_dead = _place(node)
        self._waiting[self._last_dead] = left + self._waiting.get(self._last_dead, [])
        return self.collection[crashed]

    def _feed(self, node: WorkerController) -> None:
        if node.shutting_down:
            return
        sent, waiting = self._sent[node], self._waiting.get(_place(node), [])
        more = waiting[: LOOKAHEAD - len(sent)]
        del waiting[: len(more)]
        if more:
            sent += more
            node.send_runtest_some(more)
        if not waiting:
            node.shutdown()

    def _agrees(self, node: WorkerController) -> bool:
        """Whether a worker collected what the first one did; if not, that is an error of the collection."""
        from xdist.report import report_collection_diff

        difference = report_collection_diff(self.collection, self._collected[node], "the first worker", node.gateway.id)
        if difference:
            report = pytest.CollectReport(node.gateway.id, "failed", difference, result=[])
            self.config.hook.pytest_collectreport(report=report)
        return not difference

    def _cost(self, nodeid: str) -> float:
        """A test counts 1. A stage works on all that its file of data holds: the size in KiB stands for that."""
        path = (self.config.rootpath / nodeid.partition("::")[0]).resolve()
        return 1 + path.stat().st_size / 1024 if path in self.config.stash[FILES_KEY] and path.is_file() else 1


def _place(node: WorkerController) -> int:
    return int(node.workerinput[PLACE])


class SuiteWorkers:
    """On the controller: gives every worker its place, and chooses who schedules. Without xdist nobody calls it.

    `dist` is what the user chose; `stages` whether files of data are among the test files.
    """

    def __init__(self, dist: str | None, stages: bool) -> None:
        self.dist, self.stages = dist, stages
        self._collected = False
        self.scheduling: SuiteScheduling | None = None
        self._free: list[int] = []
        self._places = count()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Before a worker starts."""
        node.workerinput[PLACE] = self._free.pop() if self._free else next(self._places)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: WorkerController, error: object | None) -> None:
        """When a worker has ended. xdist replaces those that died, at once: that one takes the place."""
        if error:
            self._free.append(_place(node))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Scheduling | None:
        """Before the first worker reports."""
        if self.stages and self.dist is None:
            self.scheduling = SuiteScheduling(config, log)
        return self.scheduling

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: WorkerController, ids: Sequence[str]) -> None:
        """When a worker has collected, before its tests are scheduled: only now a suite in a test module shows."""
        first, self._collected = not self._collected, True
        functions = node.config.getini("python_functions")
        if first and not self.scheduling and self.dist is None and any(may_be_stage(id, functions) for id in ids):
            controller: Any = node.config.pluginmanager.get_plugin("dsession")
            self.scheduling = SuiteScheduling(node.config)
            for known in controller.sched.nodes:
                self.scheduling.add_node(known)
            controller.sched = self.scheduling

    def pytest_report_header(self, config: pytest.Config) -> str | None:
        if not self.stages or not config.pluginmanager.hasplugin("dsession"):
            return None
        if self.dist is None:
            return "fvparity: workers share whole files, a suite stays on one of them and in order; --dist chooses otherwise"
        return f"fvparity: --dist {self.dist} shares the tests, as asked: a stage may run before an earlier one"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A test that nobody ran is no reason for green; xdist, left without workers, knows of no failure."""
        if session.exitstatus == pytest.ExitCode.OK and self.scheduling and self.scheduling.never_run:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        """At the end of the terminal output. Whoever interrupts a run knows that it is not whole."""
        tests = self.scheduling.never_run if self.scheduling else []
        if tests and exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            others = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
            line = f"never run, for no worker was left to take them: {tests[0]}{others}"
            terminalreporter.write_line(line, yellow=True, bold=True)
