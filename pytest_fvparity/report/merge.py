"""Several reports of the same trials into one: shards of a run by -k, by machine or by trials file.

1. Reports are grouped by dataset and trials, and put in order of their time: the result does not depend on how they
   were named.
2. What makes them one experiment must agree (trials, goldens, candidate, tolerances, mode), and so must what two of them
   say of one key. All contradictions are named. Where they ran may differ; that is kept in `shards`.
3. Each key comes from the report that says most about it. A key behind a failure is blocked, whoever ran it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from fvcore.gates import Status, blocked_behind
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.report import UNKNOWN, Check, Report, Shard, concluded, conclusion

SAYS_NOTHING = frozenset({Status.BLOCKED, Status.NOT_RUN})

Named = tuple[str, Report]
"""A report and the file it came from."""


class Contradiction(Exception):
    """Reports that cannot be one; the message names every reason."""


def merge(named: Sequence[Named]) -> list[Report]:
    """One report a trials file, in order of dataset and trials."""
    ordered = sorted(named, key=lambda pair: (pair[1].created_at, repr(pair[1].model_dump(mode="json"))))
    groups: dict[tuple[str, ...], list[Named]] = {}
    for name, report in ordered:
        group = groups.setdefault((_dataset(report, named), *report.named[1:]), [])
        if all(report != other for _, other in group):
            group.append((name, report))
    if problems := [problem for group in groups.values() for problem in _contradictions(group)]:
        raise Contradiction("these reports contradict each other:\n" + "\n".join(f"- {line}" for line in problems))
    return [_merged([report for _, report in groups[key]], key[0]) for key in sorted(groups)]


def unjudged(report: Report) -> list[str]:
    """Check keys that none of its shards has a verdict on."""
    return [key for key in CHECK_KEYS if key not in report.by_key or report.by_key[key].status == Status.NOT_RUN]


def _dataset(report: Report, named: Sequence[Named]) -> str:
    """A run that died early does not know its dataset; another report of the same trials may."""
    if report.dataset != UNKNOWN:
        return report.dataset
    known = {r.dataset for _, r in named if r.fixed_trials_id == report.fixed_trials_id} - {UNKNOWN}
    return known.pop() if len(known) == 1 else UNKNOWN


def _contradictions(group: Sequence[Named]) -> Iterator[str]:
    trials = group[0][1].fixed_trials_id
    for field in _facts(group[0][1]):
        said = [(name, _facts(report)[field]) for name, report in group]
        yield from _differing(f"{trials}: {field}", [(name, value) for name, value in said if value is not None])
    for key in CHECK_KEYS:
        found = [(name, check) for name, report in group for check in report.checks if check.key == key]
        judged = [(name, check) for name, check in found if check.status not in SAYS_NOTHING]
        yield from _differing(f"{trials}: {key}", [(name, check.status) for name, check in judged])
        passed = [(name, check.n_compared) for name, check in judged if check.status == Status.PASS]
        yield from _differing(f"{trials}: values compared at {key}", passed)


def _differing(what: str, said: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """The first that says otherwise than the first."""
    other = next(((name, value) for name, value in said if value != said[0][1]), None)
    if other:
        yield f"{what} is {said[0][1]} in {said[0][0]} and {other[1]} in {other[0]}"


def _facts(report: Report) -> dict[str, Any]:
    """What makes two reports parts of one; None where a report does not know.

    A place outside the project is another on every machine, and says nothing.
    """
    places = (report.candidate, report.golden_path)
    candidate, golden = (path if path and not PurePath(path).is_absolute() else None for path in places)
    loosened = ", ".join(report.tolerance_sources) or "the defaults"
    return {
        **{f"profile {name}": value for name, value in report.of_profile("identity").items()},
        **{name: getattr(report, name) for name in ("n_trials", "n_compared_trials", "mode")},
        "candidate": candidate,
        "tolerances": None if report.profile is None else loosened,
        "golden": golden,
        "golden profile": report.golden_profile,
        "reference": report.reference,
    }


def _merged(reports: Sequence[Report], dataset: str) -> Report:
    if len(reports) == 1:
        return concluded(reports[0])
    sources = {key: _source(key, reports) for key in CHECK_KEYS if any(key in report.by_key for report in reports)}
    checks = _judged({key: report.by_key[key] for key, report in sources.items()}, reports[0].mode)
    known = next((report for report in reports if report.profile), reports[0])
    values = {name: [getattr(report, name) for report in reports] for name in Report.model_fields}
    # Of each field the first report's value that is not empty.
    fields = {
        name: next((v for v in some if v not in (None, [], {}, UNKNOWN)), some[0]) for name, some in values.items()
    }
    # What is told of a key goes with its verdict.
    told = {check.key: sources[check.key] for check in checks if check.status != Status.BLOCKED}
    injected, ranked = told.get("injection_output"), told.get("top_heads")
    fields |= {
        "created_at": max(report.created_at for report in reports),
        "dataset": dataset,
        "model": known.model,
        "conditions": {name: pair for report in reversed(reports) for name, pair in report.conditions.items()},
        "checks": checks,
        "trials": injected.trials if injected else [],
        "heads": ranked.heads if ranked else {},
        "shards": [shard for report in reports for shard in _shards(report, sources)],
    }
    context = fields | {"tolerances": fields["tolerance_sources"]}
    merged = Report(**(fields | conclusion(checks, context)))
    source = sources.get(merged.failed_key or "")
    return merged.model_copy(update={"bundle": source.bundle if source else None})


def _source(key: str, reports: Sequence[Report]) -> Report:
    """The report that says most about a key: a verdict before none, then more mismatches, then larger differences."""

    def weight(report: Report) -> tuple[bool, int, float]:
        check = report.by_key[key]
        largest = check.max_abs_diff
        size = math.inf if isinstance(largest, str) else largest or 0.0
        return check.status not in SAYS_NOTHING, check.mismatch_count or 0, size

    return max((report for report in reports if key in report.by_key), key=weight)


def _judged(checks: dict[str, Check], mode: str) -> list[Check]:
    """The checks, blocked where they stand behind a failure: of such a one what it was given is kept, and no verdict."""
    blocked = {} if mode == "keep-going" else blocked_behind({key: check.status for key, check in checks.items()})
    kept = {"key", "golden_path", "candidate_path", "source", "stdout", "stderr", "repro_command"}
    given = {key: checks[key].model_dump(include=kept) for key in blocked}
    behind = {key: Check(status=Status.BLOCKED, blocked_by=by, **given[key]) for key, by in blocked.items()}
    return list((checks | behind).values())


def _shards(report: Report, sources: Mapping[str, Report]) -> list[Shard]:
    """What this report gave; of a merged one, what its own shards gave."""
    given = [key for key, source in sources.items() if source is report]
    conditions = report.of_profile("conditions")
    own = report.shards or [Shard(created_at=report.created_at, keys=given, conditions=conditions)]
    return [shard.model_copy(update={"keys": [key for key in shard.keys if key in given]}) for shard in own]
