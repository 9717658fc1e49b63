"""A report on a terminal: of one that fails at most twelve lines, the first of which says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fvcore.gates import Status, first_line
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report import story
from pytest_fvparity.report.report import OVERALL, Check, Report, earliest_failure

WIDTH = 11  # of the words in front


def lines(report: Report, page: str | None) -> Iterator[str]:
    """The first line is the verdict; `page` is where the whole report is."""
    failed = earliest_failure(report.checks)
    rows = _failure(report, failed) if failed else _agreement(report)
    yield from rows
    if page:
        yield _row("page", page) if failed else f"report: {page}"


def alike(reports: Sequence[Report]) -> list[list[Report]]:
    """Reports that fail at one key in one way stand together, and so do all that agree; the worst first."""
    groups: dict[tuple[int, str, str], list[Report]] = {}
    for report in reports:
        failed = earliest_failure(report.checks)
        said = (failed.signature or failed.message) if failed else ""
        kind = (OVERALL.index(report.overall_status), failed.key if failed else "", said)
        groups.setdefault(kind, []).append(report)
    return [groups[kind] for kind in sorted(groups, key=lambda kind: kind[0])]


def _failure(report: Report, failed: Check) -> Iterator[str]:
    if failed.first_mismatch is None:
        yield report.headline
    else:
        count, worst = story.parts(failed)
        yield f"{report.overall_status} at {failed.key}: {count or worst}"
        if count and worst:
            yield _row("worst", worst.removeprefix("the largest difference "))
        if where := story.summary(failed):
            yield _row("where", where)
        said = {"probably": failed.signature, "drill": story.drilled(failed), "fault": story.fault(failed)}
        yield from (_row(word, text) for word, text in said.items() if text)
        if others := [check for check in report.checks if check.status == Status.FAIL and check is not failed]:
            yield _row(
                "also", ", ".join(f"{one.key} {story.number(story.n_wrong(one))} ({one.fault})" for one in others)
            )
    yield _row("keys", _keys(report))
    if report.conditions:
        yield _row("conditions", f"other than the {report.beside}'s: {', '.join(report.conditions)}")
    if report.candidate:
        yield _row("candidate", report.candidate)
    if failed.repro_command:
        yield _row("reproduce", failed.repro_command)
    for option, what in [] if story.drilled(failed) else list(story.deeper(failed, story.n_behind(report)))[:1]:
        yield _row("deeper", f"{option} to {what}")


def _keys(report: Report) -> str:
    """Every key, those of one status together."""
    groups: dict[str, list[str]] = {}
    for check in report.checks:
        groups.setdefault(check.status, []).append(check.key)
    return "; ".join(f"{_named(keys)} {status}" for status, keys in groups.items())


def _named(keys: list[str]) -> str:
    return ", ".join(keys) if len(keys) < 3 else f"{len(keys)}"


def _agreement(report: Report) -> Iterator[str]:
    yield report.headline
    if report.candidate:
        yield f"candidate: {report.candidate}"
    for name, (golden, here) in report.conditions.items():
        yield f"condition {name}: {golden} -> {here}"
    yield from table(report)


def table(report: Report) -> Iterator[str]:
    """A row a key."""
    yield f"{'':2}{'check key':<18}{'status':<13}{'compared':>10}{'mismatches':>12}{'max abs diff':>14}  note"
    for check in report.checks:
        largest = story.number(check.max_abs_diff)
        note = f"blocked by {check.blocked_by}" if check.blocked_by else f"{check.fault} fault" if check.fault else ""
        note = note or "; ".join(dict.fromkeys(w.message.split(":")[0] for w in check.warnings))
        n = CHECK_KEYS.index(check.key) + 1
        mismatches = story.number(check.mismatch_count)
        compared = story.number(check.n_compared)
        row = f"{n} {check.key:<18}{check.status:<13}{compared:>10}{mismatches:>12}{largest:>14}  {note}"
        yield row.rstrip()
    if report.n_compared_trials != report.n_trials:
        yield f"{report.n_compared_trials} of {report.n_trials} trials compared at the per-trial keys"


def _row(word: str, text: str) -> str:
    return f"  {word:<{WIDTH}}{first_line(text)}"
