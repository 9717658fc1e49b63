"""What is wrong with data, by code: all of it counted, the first places listed, whatever order they are found in."""

from __future__ import annotations

import re
from bisect import insort
from collections.abc import Callable, Iterator
from typing import TypeAlias

from fvcore.experiments.sae.config import Audit
from fvcore.experiments.sae.schemas import FEATURE, Code, IssueGroup, IssueRow, Severity

NAME = re.compile(FEATURE)
Key: TypeAlias = tuple[int, int, str, str, int]
"""Layer, id, condition, file, place in the file: the order in which issues are listed."""

MALFORMED: tuple[Code, ...] = (
    "MISSING_FIELD",
    "BAD_TYPE",
    "FEATURE_ID_MISMATCH",
    "MISSING_FEATURE",
    "MISSING_CONDITION",
)
"""Of one record each: an error where there are too many of them."""

ERRORS: tuple[Code, ...] = ("NO_CHECKPOINTS", "NO_RESPONSE_LOGS", "UNREADABLE_FILE", "BAD_TOPLEVEL", "NO_CAUSAL")

PLAN: tuple[Code, ...] = (
    *("NO_CHECKPOINTS", "NO_RESPONSE_LOGS", "UNREADABLE_FILE", "BAD_TOPLEVEL", "MISSING_FIELD", "BAD_TYPE"),
    *("MISSING_FEATURE", "MISSING_CONDITION", "EMPTY_RESPONSE", "MISSING_CONDITIONS", "LOW_TRIALS", "LOW_JOIN_RATE"),
)
"""What the plan looks for, or what ends its program: a value of another type."""


def place(feature: str) -> tuple[int, int]:
    """Layer and id in a feature's name; -1, -1 of what is none."""
    found = NAME.fullmatch(feature)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


class Stopped(Exception):
    """The plan's policy ends an audit at its first error."""


class Issues:
    """By the plan's policy there are those that the plan looks for, and the first error is the last one."""

    def __init__(self, most: int, plan: bool = False) -> None:
        self.most, self.plan = most, plan
        self.counts: dict[Code, int] = {}
        self.first: dict[Code, list[tuple[Key, IssueRow]]] = {}

    def add(
        self,
        code: Code,
        message: str,
        feature: str = "",
        condition: str = "",
        file: str = "",
        at: int = 0,
        n: int | None = None,
    ) -> None:
        """One more; `at` is its place in the file, `n` what it is about, where that is a number."""
        if self.plan and code not in PLAN:
            return
        self.counts[code] = self.counts.get(code, 0) + 1
        key = (*place(feature), condition, file, at)
        # What a file holds may be no character.
        told = (text.encode(errors="backslashreplace").decode() for text in (message, feature, condition, file))
        self._list(
            code, key, IssueRow(**dict(zip(("message", "feature", "condition", "file"), told, strict=True)), n=n)
        )
        if self.plan and code in (*ERRORS, *MALFORMED, "EMPTY_RESPONSE"):
            raise Stopped

    def _list(self, code: Code, key: Key, row: IssueRow) -> None:
        first = self.first.setdefault(code, [])
        insort(first, (key, row), key=lambda one: one[0])
        del first[self.most :]

    def merge(self, other: Issues) -> None:
        for code, n in other.counts.items():
            self.counts[code] = self.counts.get(code, 0) + n
            for key, row in other.first[code]:
                self._list(code, key, row)

    def groups(self, severity: Callable[[Code], Severity]) -> Iterator[IssueGroup]:
        """By code; a row without a place of its own comes first."""
        for code in sorted(self.counts):
            rows = [row for _, row in self.first[code]]
            yield IssueGroup(code=code, severity=severity(code), count=self.counts[code], listed=len(rows), first=rows)


def severity_of(
    settings: Audit, issues: Issues, n_records: int, n_results: int, plan: bool
) -> Callable[[Code], Severity]:
    """What a code weighs in this data: a few malformed records may be allowed, a few empty responses are."""
    empty = issues.counts.get("EMPTY_RESPONSE", 0)
    malformed = sum(issues.counts.get(code, 0) for code in MALFORMED)
    too_many = malformed > settings.max_error_rate * (n_records + n_results)

    def severity(code: Code) -> Severity:
        if code in settings.severity:
            return settings.severity[code]
        if code == "EMPTY_RESPONSE":
            return "error" if plan or empty > settings.max_empty_rate * n_records else "warning"
        if code in MALFORMED:
            return "error" if plan or too_many else "warning"
        return "error" if code in ERRORS else "info" if code == "ALIAS_USED" else "warning"

    return severity
