"""Reports beside earlier ones of the same trials: what is new, what is fixed, and what drifts inside its tolerance."""

from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.formats import FormatError
from fvcore.gates import Status
from fvcore.profile import flat
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.report import Check, Report, ReportPart, largest_of

SILENT = frozenset({Status.BLOCKED, Status.NOT_RUN, Status.NOT_PROVIDED, Status.NOT_HELD, None})
"""Statuses that say nothing about a key, and no status at all."""

WORDS = ("new", "still failing", "fixed", "same", "passes", "added", "gone", "not judged")
"""What can have become of a key: it fails; it passes; nothing is said of it."""

VERDICTS = {
    "new": "something is red that was not",
    "not judged": "a verdict is gone",
    "nothing new": "nothing new is red",
}

LARGE_DRIFT = 10.0
"""How many times as near to its limit a leaf has come that is worth a word."""


AROUND = ("model", "candidate", "mode", "n_compared_trials", "tolerance_sources")


class KeyChange(ReportPart):
    """One check key then and now. `used` is the largest share of its tolerance that a number takes: 1 is on the limit."""

    key: str
    change: str
    before: str | None
    now: str | None
    max_abs_diff_before: float | str | None
    max_abs_diff_now: float | str | None
    ratio: float | str | None
    used_before: float | str | None
    used_now: float | str | None


class Drift(ReportPart):
    """A leaf that agrees then and now, and is `ratio` times as near to its limit."""

    key: str
    leaf: str
    used_before: float
    used_now: float
    ratio: float | str


class Comparison(ReportPart):
    """`changed` are fields of the profile that are others now: name -> [before, now]; `drifts` are large, the largest first."""

    dataset: str
    fixed_trials_id: str
    under: str = ""
    created_before: str
    created_now: str
    overall_before: str
    overall_now: str
    sentence: str
    changed: dict[str, list[Any]]
    keys: list[KeyChange]
    drifts: list[Drift]

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.dataset, self.fixed_trials_id, self.under)))


class Comparisons(ReportPart):
    """Two sets of reports. `verdict` is new where something is red that was not, not judged where something has no verdict
    that had one, else nothing new; `gone` and `added` are reports of trials that only one side has."""

    verdict: str
    sentence: str
    reports: list[Comparison]
    gone: list[str]
    added: list[str]


def all_compared(now: Sequence[Report], before: Sequence[Report], drift: float = LARGE_DRIFT) -> Comparisons:
    """Each report beside the earlier one of the same trials; raises FormatError where there are no such two.

    drift: how many times as near to its limit a leaf must have come to be told of
    """
    new, old = _by_name(now), _by_name(before)
    both = [compared(new[name], old[name], drift) for name in sorted(new.keys() & old.keys())]
    gone, added = (
        ["/".join(name) for name in sorted(one.keys() - other.keys())] for one, other in ((old, new), (new, old))
    )
    if not both:
        raise FormatError(f"no two reports are of the same trials: {', '.join(gone)} before, {', '.join(added)} now")
    red = sum(new[name].overall_status == "FAIL" for name in new.keys() - old.keys())
    rows = [row for one in both for row in one.keys]
    total = _counts(rows)
    total["new"] += red
    lost = bool(gone) or any(row.now in SILENT and row.before not in SILENT for row in rows)
    verdict = "new" if total["new"] else "not judged" if lost else "nothing new"
    return Comparisons(
        verdict=verdict,
        sentence=f"{VERDICTS[verdict]}: {_counted(total, sum(len(one.drifts) for one in both), gone, added)}",
        reports=both,
        gone=gone,
        added=added,
    )


def _by_name(reports: Sequence[Report]) -> dict[tuple[str, ...], Report]:
    found = {report.named: report for report in reports}
    if len(found) < len(reports):
        names = ["/".join(report.named) for report in reports]
        twice = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"two reports are of {twice}; make one of them with `fvparity merge`, or name one")
    return found


def _counted(total: Mapping[str, int], n_drifts: int, gone: Sequence[str], added: Sequence[str]) -> str:
    parts = [_listed(total), f"{n_drifts} drift" if n_drifts else ""]
    parts += [f"{len(names)} report(s) {word}" for word, names in (("gone", gone), ("added", added)) if names]
    return "; ".join(filter(None, parts))


def _counts(rows: Sequence[KeyChange]) -> dict[str, int]:
    return {word: sum(row.change == word for row in rows) for word in WORDS}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {word}" for word, n in counts.items() if n)


def compared(now: Report, before: Report, drift: float = LARGE_DRIFT) -> Comparison:
    """`before` is of the same trials."""
    old, new = before.by_key, now.by_key
    keys = [_change(key, old.get(key), new.get(key)) for key in CHECK_KEYS if key in old | new]
    drifts = [one for row in keys if row.change == "same" for one in _drifts(old[row.key], new[row.key], drift)]
    return Comparison(
        dataset=now.dataset,
        fixed_trials_id=now.fixed_trials_id,
        under=now.under,
        created_before=before.created_at,
        created_now=now.created_at,
        overall_before=before.overall_status,
        overall_now=now.overall_status,
        sentence=_sentence(keys, drifts),
        changed=_changed(before, now),
        keys=keys,
        drifts=sorted(drifts, key=lambda drift: float(drift.ratio), reverse=True),
    )


def _change(key: str, before: Check | None, now: Check | None) -> KeyChange:
    statuses = [check.status if check else None for check in (before, now)]
    largest = [check.max_abs_diff if check else None for check in (before, now)]
    used = [largest_of(row.used for row in check.tolerances) if check else None for check in (before, now)]
    return KeyChange(
        key=key,
        change=_word(*statuses),
        before=statuses[0],
        now=statuses[1],
        max_abs_diff_before=largest[0],
        max_abs_diff_now=largest[1],
        ratio=_ratio(*largest),
        used_before=used[0],
        used_now=used[1],
    )


def _word(before: str | None, now: str | None) -> str:
    if now in SILENT:
        return "gone" if now is None else "not judged"
    if now == Status.PASS and before in SILENT:
        return "added" if before is None else "passes"
    if now == Status.PASS:
        return "same" if before == Status.PASS else "fixed"
    return "new" if before in SILENT or before == Status.PASS else "still failing"


def _ratio(before: float | str | None, now: float | str | None) -> float | str | None:
    if not isinstance(before, float) or not isinstance(now, float):
        return None
    return now / before if before else "inf" if now else 1.0


def _drifts(before: Check, now: Check, least: float) -> list[Drift]:
    """Drifts of a key that agrees then and now. A report that knows no shares has none."""
    earlier = {row.leaf: row.used for row in before.tolerances}
    found = []
    for row in now.tolerances:
        then, here = earlier.get(row.leaf), row.used
        ratio = _ratio(then, here)
        if (
            isinstance(then, float)
            and isinstance(here, float)
            and ratio is not None
            and float(ratio) >= least
            and here > then
        ):
            found.append(Drift(key=now.key, leaf=row.leaf, used_before=then, used_now=here, ratio=ratio))
    return found


def _sentence(keys: list[KeyChange], drifts: list[Drift]) -> str:
    parts = [_listed(_counts(keys))]
    for key in dict.fromkeys(drift.key for drift in drifts):
        worst = max((drift for drift in drifts if drift.key == key), key=lambda drift: float(drift.ratio))
        at = f"times as near to its limit as before, at {100 * worst.used_now:.2g} % of it"
        equal_before = isinstance(worst.ratio, str)
        said = "is no longer equal to the last bit" if equal_before else f"is {worst.ratio:.3g} {at}"
        parts.append(f"{key} passes, and its {worst.leaf} {said}")
    return "; ".join(parts)


def _changed(*reports: Report) -> dict[str, list[Any]]:
    """What stands around the numbers: fields of the profile and tolerances, where both reports have them, and the candidate."""
    from fvcore.compare import changes  # with torch, which a report alone does not need

    sides = [report.of_profile("identity") | flat(report.of_profile("conditions")) for report in reports]
    pairs = changes(*sides) if all(report.profile for report in reports) else {}
    pairs |= changes(*({name: getattr(report, name) for name in AROUND} for report in reports))
    limits = [_limits(report) for report in reports]
    common = limits[0].keys() & limits[1].keys()
    pairs |= changes(*({"tolerances": {name: side[name] for name in sorted(common)}} for side in limits))
    return {name: list(pair) for name, pair in pairs.items()}


def _limits(report: Report) -> dict[str, dict[str, float]]:
    """Of each leaf that was compared within a tolerance, the tolerance."""
    rows = [(f"{check.key} {row.leaf}", row) for check in report.checks for row in check.tolerances]
    return {name: row.model_dump(include={"rtol", "atol", "of_max", "of_norm"}) for name, row in rows}
