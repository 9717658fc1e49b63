"""A suite is a collector, wherever it stands: in a file of data that was declared, or as an object in a test module.

Node ids read `<file>::<suite>::<key>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Self

import pytest

from fvcore.gates import Gate, Status, Suite
from pytest_fvparity.options import OPTIONS_KEY
from pytest_fvparity.suite.declaration import FILES_KEY, SuiteFile
from pytest_fvparity.suite.item import StageItem, judging

FAILURES = "fvparity_failures"
"""The entry of a worker's `workerinput` that holds what is known when it starts: node id -> status, of what failed."""

_SUITES_KEY = pytest.StashKey[dict[str, tuple[str, Suite[Any]]]]()


class DataFile(pytest.File):
    """A file of data that is a test file."""

    @classmethod
    def at(cls, parent: pytest.Collector, path: Path) -> Self:
        """Outside the rootdir pytest gives every file the empty node id, so that two could not be told apart."""
        if path.is_relative_to(parent.config.rootpath):
            return cls.from_parent(parent, path=path)
        nodeid: Any = path.as_posix()
        try:
            from _pytest.nodeid import NodeId  # since pytest 9.2 a node id is a value of its own
        except ImportError:
            pass
        else:
            nodeid = NodeId(path=nodeid)
        return cls.from_parent(parent, path=path, nodeid=nodeid)

    def collect(self) -> Iterator[pytest.Collector]:
        file = self.config.stash[FILES_KEY][self.path.resolve()]
        yield SuiteCollector.from_parent(self, name=file.suite.name, suite=file.suite, file=file)


def in_module(module: pytest.Collector, name: str, suite: Suite[Any]) -> SuiteCollector | list[pytest.Item]:
    """The collector of a suite that a test module holds as `name`; the same one under a second name is none."""
    holder, first = module.stash.setdefault(_SUITES_KEY, {}).setdefault(suite.name, (name, suite))
    if first is not suite:
        raise module.CollectError(f"two suites of one name, {suite.name!r}: their stages would have the same node ids")
    if holder != name:
        return []
    return SuiteCollector.from_parent(module, name=suite.name, suite=suite)


class SuiteCollector(pytest.Collector):
    """One suite over one subject: what stands before its stages, and what they keep from one to the next.

    `context` is what a report says of the run, filled on the way; `stash` is for whatever a subject remembers.
    """

    def __init__(self, suite: Suite[Any], file: SuiteFile | None = None, **how: Any) -> None:
        super().__init__(**how)
        self.suite, self.file = suite, file
        keep_going = suite.keep_going or self.config.stash[OPTIONS_KEY].keep_going
        self.gate = Gate(suite.keys, keep_going)
        self.context: dict[str, Any] = {}
        self.planned: list[str] = []
        self._built: tuple[dict[str, Any], Any] | None = None
        self._ended: set[str] = set()

    def collect(self) -> Iterator[pytest.Item]:
        if self.file is None:
            self.config.addinivalue_line("markers", f"{self.suite.name}: a stage of the suite of this name")
        for stage in self.suite.stages:
            item = StageItem.from_parent(self, name=stage.key, callobj=judging(stage))
            for marker in (self.suite.name, *(self.file.markers if self.file else ())):
                item.add_marker(marker)
            yield item

    def subject(self, request: pytest.FixtureRequest) -> Any:
        """What the stages judge: built when the first of them runs, from the fixtures that it has as parameters, and again
        where one of those has become another."""
        given = {name: request.getfixturevalue(name) for name in _parameters(self.suite)}
        if self._built is None or any(self._built[0][name] is not value for name, value in given.items()):
            self._built = given, self.suite.subject(**given)
        return self._built[1]

    def ended(self, key: str) -> None:
        """Behind the last of the stages that are planned nothing is held of what they judged: a session may have many files."""
        self._ended.add(key)
        if self._ended >= set(self.planned):
            self._built, self.stash = None, pytest.Stash()


def _parameters(suite: Suite[Any]) -> list[str]:
    try:
        parameters = signature(suite.subject).parameters
    except ValueError:  # a class of the interpreter's own
        return []
    fit = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return [name for name, one in parameters.items() if one.kind in fit and one.default is Parameter.empty]


def in_order(session: pytest.Session) -> None:
    """The stages of a suite take their places in its order: --ff and plugins that shuffle would run a later one first. A
    worker that replaces a dead one learns here what is known already."""
    known: Mapping[str, str] = getattr(session.config, "workerinput", {}).get(FAILURES, {})
    places: dict[SuiteCollector, list[int]] = {}
    for place, item in enumerate(session.items):
        if isinstance(item, StageItem):
            places.setdefault(item.collector, []).append(place)
    for collector, taken in places.items():
        stages = sorted(
            (session.items[place] for place in taken), key=lambda item: collector.suite.keys.index(item.name)
        )
        collector.planned = [stage.name for stage in stages]
        for place, stage in zip(taken, stages, strict=True):
            session.items[place] = stage
            if stage.nodeid in known:
                collector.gate.judged(stage.name, Status(known[stage.nodeid]))
