"""A report on a terminal: of one that fails at most twelve lines, the first of which says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fvcore.gates import Status, first_line
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report import story
from pytest_fvparity.report.report import OVERALL, Check, Report, earliest_failure, not_provided, weaker

WIDTH = 11  # of the words in front
MOST = 9  # lines between the verdict and the page


def lines(report: Report, page: str | None) -> Iterator[str]:
    """The first line is the verdict; `page` is where the whole report is."""
    failed = earliest_failure(report.checks)
    rows = _failure(report, failed) if failed else _agreement(report)
    yield from rows
    if page:
        yield f"  {'page':<{WIDTH}}{page}" if failed else f"report: {page}"


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
    """The verdict, and what is told of it, the most telling first; where that is too much the end is left out."""
    if failed.first_mismatch is None:
        yield report.headline
    else:
        yield f"{report.overall_status} at {failed.key}: {story.parts(failed)[0]}"
    rows = [(word, text) for word, text in _told(report, failed) if text]
    yield from (f"  {word:<{WIDTH}}{first_line(text)}" for word, text in rows[:MOST])


def _told(report: Report, failed: Check) -> Iterator[tuple[str, str]]:
    drilled = story.drilled(failed)
    yield "worst", story.worst(failed)
    yield "note", weaker(report)
    yield "where", story.summary(failed)
    yield "probably", failed.signature or ""
    yield "drill", drilled
    yield "fault", story.fault(failed)
    yield "open", _written(failed)
    yield "candidate", "" if failed.source else report.candidate or ""
    yield "reproduce", failed.repro_command
    yield "replay", report.replay_command or ""
    deeper = [] if drilled else [f"{option} to {what}" for option, what in story.deeper(report, failed)]
    yield "deeper", next(iter(deeper), "")
    yield "keys", _keys(report)
    yield (
        "also",
        ", ".join(_also(check) for check in report.checks if check.status == Status.FAIL and check is not failed),
    )
    yield "lacking", "; ".join(not_provided(report.checks))
    names = ", ".join(report.conditions)
    yield "conditions", f"other than the {report.beside}'s: {names}" if names else ""


def _written(failed: Check) -> str:
    if failed.source is None:
        return ""
    line = f":{failed.source.line}" if failed.source.line else ""
    return f"{failed.source.file}{line}" + (f" ({failed.candidate_path})" if failed.candidate_path else "")


def _also(check: Check) -> str:
    return f"{check.key} {story.number(story.n_wrong(check))} ({check.fault or 'not told whose fault'})"


def _keys(report: Report) -> str:
    """Every key, those of one status together; of several that fail also whose fault."""
    several = sum(check.status == Status.FAIL for check in report.checks) > 1
    groups: dict[str, list[str]] = {}
    for check in report.checks:
        whose = f" ({check.fault})" if several and check.status == Status.FAIL and check.fault else ""
        groups.setdefault(f"{check.status}{whose}", []).append(check.key)
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
