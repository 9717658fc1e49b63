"""What pytest must know of a suite whose subjects are files of data, and of each of those files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.gates import StageResult, Suite, Verdict

if TYPE_CHECKING:
    from pytest_fvparity.runners import Annotation
    from pytest_fvparity.suite.reporter import SuiteRun


class SuiteReports:
    """What a suite is reported by, on the controller. It is handed every run of the session and picks its own."""

    def earlier(self, runs: Iterable[SuiteRun]) -> Iterable[Path]:
        """Files in which earlier sessions reported of these: they are taken away before anything is collected."""
        return ()

    def begin(self, runs: Iterable[SuiteRun]) -> None:
        """Before the first test: say that nothing is judged yet, where something was judged before."""

    def keep(self, run: SuiteRun) -> None:
        """A stage has a result: write what is known, for this process may be killed."""

    def finish(self, runs: Iterable[SuiteRun]) -> bool:
        """At the end: write, and say whether the session may be green."""
        raise NotImplementedError

    def tells(self, run: SuiteRun, result: StageResult) -> bool:
        """Whether `summary` says all there is to say of a stage that failed: then it is not said above too."""
        return False

    def summary(self, terminal: Any, written: bool) -> None:
        """At the end of the terminal output."""

    def annotations(self) -> Sequence[Annotation]:
        """What a CI runner is to point at, the worst first."""
        return ()

    def step_summary(self, room: int) -> str:
        """Markdown in at most so many bytes, for the page of a CI run."""
        return ""


@dataclass(frozen=True)
class Declaration:
    """`title` is a file in a word, `option` the command-line option that selects it alone, `lines` what the terminal adds
    to a verdict that failed. `about` stands beside the marker."""

    name: str
    about: str
    title: Callable[[Path], str]
    option: Callable[[Path], str]
    reports: Callable[[pytest.Config], SuiteReports]
    lines: Callable[[Verdict], Sequence[str]] = lambda _: ()


@dataclass(frozen=True)
class SuiteFile:
    """A file of data that is a test file: the suite that judges it, and markers beside the suite's own."""

    suite: Suite[Any]
    declared: Declaration
    markers: tuple[str, ...] = ()


FILES_KEY = pytest.StashKey[dict[Path, SuiteFile]]()
"""The data files of this run, by their resolved paths."""
