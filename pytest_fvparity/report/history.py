"""A report beside an earlier one of the same trials: what is new, what is fixed, and what drifts inside its tolerance."""

from typing import Any

from fvcore.gates import Status
from fvcore.profile import flat
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.report import Check, Report, ReportPart, largest_of

SILENT = frozenset({Status.BLOCKED, Status.NOT_RUN, Status.NOT_PROVIDED, Status.NOT_HELD, None})
"""Statuses that say nothing about a key, and no status at all."""

LARGE_DRIFT = 10.0
"""How many times as near to its limit a leaf has come that is worth a word."""


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
    created_before: str
    created_now: str
    overall_before: str
    overall_now: str
    sentence: str
    changed: dict[str, list[Any]]
    keys: list[KeyChange]
    drifts: list[Drift]


def compared(now: Report, before: Report) -> Comparison:
    """`before` is of the same trials."""
    old, new = before.by_key, now.by_key
    keys = [_change(key, old.get(key), new.get(key)) for key in CHECK_KEYS if key in old | new]
    drifts = [drift for row in keys if row.change == "same" for drift in _drifts(old[row.key], new[row.key])]
    return Comparison(
        dataset=now.dataset,
        fixed_trials_id=now.fixed_trials_id,
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
        return "not judged"
    if now == Status.PASS:
        return "same" if before == Status.PASS else "passes" if before in SILENT else "fixed"
    return "new" if before in SILENT or before == Status.PASS else "still failing"


def _ratio(before: float | str | None, now: float | str | None) -> float | str | None:
    if not isinstance(before, float) or not isinstance(now, float):
        return None
    return now / before if before else "inf" if now else 1.0


def _drifts(before: Check, now: Check) -> list[Drift]:
    """Large drifts of a key that agrees then and now. A report that knows no shares has none."""
    earlier = {row.leaf: row.used for row in before.tolerances}
    found = []
    for row in now.tolerances:
        then, here = earlier.get(row.leaf), row.used
        ratio = _ratio(then, here)
        if isinstance(then, float) and isinstance(here, float) and ratio is not None and float(ratio) >= LARGE_DRIFT:
            found.append(Drift(key=now.key, leaf=row.leaf, used_before=then, used_now=here, ratio=ratio))
    return found


def _sentence(keys: list[KeyChange], drifts: list[Drift]) -> str:
    words = ("new", "still failing", "fixed", "same", "passes", "not judged")
    counts = {word: sum(row.change == word for row in keys) for word in words}
    parts = [", ".join(f"{n} {word}" for word, n in counts.items() if n)]
    for key in dict.fromkeys(drift.key for drift in drifts):
        worst = max((drift for drift in drifts if drift.key == key), key=lambda drift: float(drift.ratio))
        at = f"times as near to its limit as before, at {100 * worst.used_now:.2g} % of it"
        equal_before = isinstance(worst.ratio, str)
        said = "is no longer equal to the last bit" if equal_before else f"is {worst.ratio:.3g} {at}"
        parts.append(f"{key} passes, and its {worst.leaf} {said}")
    return "; ".join(parts)


def _changed(*reports: Report) -> dict[str, list[Any]]:
    """Fields of the profile, where both reports have one."""
    from fvcore.compare import changes  # with torch, which a report alone does not need

    sides = [report.of_profile("identity") | flat(report.of_profile("conditions")) for report in reports]
    return (
        {name: list(pair) for name, pair in changes(*sides).items()}
        if all(report.profile for report in reports)
        else {}
    )
