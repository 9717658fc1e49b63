"""A failed check in plain words: what is wrong, what it probably is, and what to do next.

Numbers are rounded, and never so far that two that differ read the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fvcore.gates import Status, first_line
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.markdown import cut

if TYPE_CHECKING:
    from pytest_fvparity.report.report import AxisCount, Check, Mismatch, Report

DIGITS = 4
LONGEST, LONGEST_MESSAGE = 80, 400  # characters of a value, and of a finding's own words
PLACES = ("layer", "head", "slot", "rank", "token_class", "dim", "token_id")


def number(value: Any, digits: int = 3) -> str:
    """A number as a reader wants it: short, and a hyphen for none."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "-" if value is None else f"{value:,}" if type(value) is int else str(value)


def pair(expected: Any, got: Any) -> tuple[str, str]:
    """Two values beside each other: numbers with as many digits as tell them apart, where they differ."""
    if not (isinstance(expected, float) and isinstance(got, float)):
        return _value(expected), _value(got)
    texts = ((number(expected, digits), number(got, digits)) for digits in range(DIGITS, 18))
    return next((two for two in texts if two[0] != two[1]), (number(expected, DIGITS), number(got, DIGITS)))


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, float):
        return number(value, DIGITS)
    text = value if isinstance(value, str) and value in {"nan", "inf", "-inf"} else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def times(used: float | str | None) -> str:
    """How much of its tolerance a difference takes, in words; a word is no finite number."""
    if used is None or isinstance(used, str):
        return "beyond any tolerance" if used else ""
    if used <= 1:
        return f"{100 * used:.2g} % of its tolerance"
    return f"{used:,.0f} times its tolerance" if 10 <= used < 1e6 else f"{used:.2g} times its tolerance"


def place(mismatch: Mismatch) -> str:
    """A coordinate in words, the smallest place last; the leaf's name where the coordinate says nothing."""
    at = mismatch.coordinate
    label = f" ({at['slot_label']})" if "slot_label" in at else ""
    named = mismatch.where.partition("[")[0].split("/")
    words = [f"trial {at['trial_id']}:{at.get('trial_idx', '?')}"] if "trial_id" in at else []
    words = [f"the {named[1]} prompt of {words[0]}"] if words and len(named) == 3 else words
    words += [f"{name} {at[name]}{label if name == 'slot' else ''}" for name in PLACES if name in at]
    return ", ".join(words)


def name_of(mismatch: Mismatch) -> str:
    """A leaf's name without its trial and its place."""
    return mismatch.where.partition("[")[0].rpartition("/")[2]


def counted(check: Check) -> str:
    """The one count of a check: of the values compared those that are wrong, and by what measure."""
    others, values = _others(check), n_wrong(check) or 0
    bounded = any(row.rtol or row.atol or row.of_max or row.of_norm for row in check.tolerances)
    numbers = all(map(measured, check.details[:1]))
    wrong = f"outside {'its' if values == 1 else 'their'} tolerance" if bounded and numbers else "not what is expected"
    verb = "is" if values == 1 else "are"
    told = [f"{values:,} of {check.n_compared:,} values {verb} {wrong}"] if values > 0 else []
    return " and ".join([*told, *([f"{others} finding(s) beside the values"] if others and told else [])])


def _others(check: Check) -> int:
    """Findings that are of no value."""
    return sum(row.expected is None and row.got is None for row in check.details)


def n_wrong(check: Check) -> int | None:
    """How many of the values compared are wrong."""
    return None if check.mismatch_count is None else check.mismatch_count - _others(check)


def examples(check: Check) -> list[tuple[str, int | None, Mismatch]]:
    """One example of every kind of difference: the leaf's name, how many there are (if counted), the one off by most."""
    kinds = check.where.kinds if check.where else []
    found = [(kind.leaf, kind.count, kind.example) for kind in kinds if kind.example]
    known = {leaf for leaf, *_ in found}
    groups: dict[str, list[Mismatch]] = {}
    for row in check.details:
        bare = row.expected is None and row.got is None
        if bare or name_of(row) not in known:
            groups.setdefault(row.message if bare else name_of(row), []).append(row)
    # Without places the rows are the first hundred, and their number says nothing.
    worst = [(max(rows, key=size), len(rows) if check.where else None) for rows in groups.values()]
    others = [(name_of(row), n, row) for row, n in worst]
    return [*sorted(others, key=lambda kind: -size(kind[2])), *found]


def size(row: Mismatch) -> float:
    """What has no number is no question of tolerance: it stands before all that has."""
    return row.abs_diff if isinstance(row.abs_diff, float) else math.inf


def measured(row: Mismatch) -> bool:
    """Whether it is a difference of two numbers and nothing else."""
    return bool(re.fullmatch(r"differs by \S+( \(allowed: .*)?", row.message))


def largest(check: Check) -> Mismatch | None:
    """What a reader looks at first: the difference off by most; or the first finding, where that is of another kind."""
    first = check.first_mismatch
    if first is None or not measured(first):
        return first
    return max((row for *_, row in examples(check)), key=size, default=first)


def sentence(check: Check) -> str:
    """What is wrong at a key that failed."""
    return "; ".join(filter(None, parts(check)))


def parts(check: Check) -> tuple[str, str]:
    """The same in two: how much is wrong, and the worst of it with both values."""
    if (row := largest(check)) is None:
        return first_line(check.message, check.status), ""
    count = counted(check)
    message = cut(row.message.partition(" (allowed: ")[0], LONGEST_MESSAGE)
    if row.expected is None and row.got is None:
        return f"{message}{f' ({count})' if count else ''}", ""
    expected, got = pair(row.expected, row.got)
    leaf, at = "" if name_of(row) == check.key else name_of(row), place(row)
    if measured(row):
        words = ["the largest difference", *([f"in {leaf}"] if leaf else []), *([f"at {at}"] if at else [])]
        return count, f"{' '.join(words)}: expected {expected}, got {got}"
    words = [leaf or check.key, *([f"of {at}"] if at else []), message]
    if message.endswith(f": expected {row.expected}, actual {row.got}"):  # a dtype or a shape: both are said already
        return count, " ".join(words)
    return count, f"{' '.join(words)} (expected {expected}, got {got})"


def worst(check: Check) -> str:
    """The second part behind a word that says as much."""
    return parts(check)[1].removeprefix("the largest difference ")


def drilled(check: Check) -> str:
    """What the drill concluded, if there was one, to stand behind the word drill."""
    return next((row.message.removeprefix("drill ") for row in check.warnings if is_drill(row)), "")


def is_drill(row: Mismatch) -> bool:
    return row.message.startswith("drill into layer ")


FAULTS = {
    "own": "its own: it differs on the reference's inputs too",
    "inherited": "an earlier key's: on the reference's inputs it agrees",
    "accumulated": "of no single key: on the reference's inputs it agrees, and small differences of earlier keys add up",
    "unsteady": "unsteady: the candidate answers another thing to the very same inputs",
}


def fault(check: Check) -> str:
    """Whose fault it is; the first key has no inputs that could tell."""
    if check.fault == "own" and n_wrong(check) == 0:
        return "its own"  # no value differs: what is wrong was found beside them, as a hook left on the model
    return "" if check.key == CHECK_KEYS[0] and check.fault == "own" else FAULTS.get(check.fault or "", "")


def deeper(report: Report, check: Check) -> Iterator[tuple[str, str]]:
    """Options that say more of its earliest failure, each with what it does."""
    behind = n_behind(report) if check.status in {Status.FAIL, Status.ERROR} else 0
    differs = (row := largest(check)) is not None and measured(row)  # of another shape, or of hooks, it can say nothing
    if check.key == "mean_activations" and check.fault == "own" and differs and not drilled(check):
        yield "--fv-drill", "name the first module that differs"
    if check.fault == "unsteady":
        yield "--fv-repeat=3", "ask it three times for the same"
    if behind:
        yield (
            "--fv-keep-going",
            f"judge the {behind} key{'s' if behind > 1 else ''} behind it too, on the reference's inputs",
        )
    if check.status == Status.FAIL and report.bundle is None:
        yield "--fv-bundle=DIR", "keep this failure in one file, to be judged again anywhere"


def n_behind(report: Report) -> int:
    """How many keys are blocked."""
    return sum(check.status == Status.BLOCKED for check in report.checks)


def concerned(axis: AxisCount, few: int = 4) -> str:
    """Which indices of an axis are concerned: named where they are few, else counted with those that have most."""
    if axis.axis == "prompt":
        return f"{' and '.join(str(one.index) for one in axis.places[:few])} prompts"
    names = [f"{one.index}{f' ({one.label})' if one.label else ''}" for one in axis.places[:few]]
    if axis.n_wrong <= few and (axis.n_wrong < axis.n or axis.n == 1):
        return f"{axis.axis}{'s' if axis.n_wrong > 1 else ''} {', '.join(sorted(names, key=_natural))}"
    if axis.n_wrong == axis.n:
        return f"all {axis.n} {axis.axis}s"
    counts = [one.count for one in axis.places]
    most = f", most in {names[0]}" if counts[1:] and counts[0] > counts[1] else ""
    return f"{axis.n_wrong} of {axis.n} {axis.axis}s{most}"


def _natural(name: str) -> tuple[int, str]:
    """Numbers in their order, before words."""
    first = name.partition(" ")[0].partition(":")[0]
    return (int(first) if first.isdecimal() else 10**9, name)


def summary(check: Check) -> str:
    """Where a key differs, in a line: the kinds of leaves, and along each axis what is concerned, the narrowest first."""
    if check.where is None:
        return ""
    kinds = check.where.kinds
    named = (
        [f"{kind.leaf} {kind.count:,}" for kind in kinds[:4]] if [kind.leaf for kind in kinds] != [check.key] else []
    )
    more = [f"{check.where.n_kinds - 4} more"] if check.where.n_kinds > 4 else []
    axes = sorted(check.where.axes, key=lambda axis: axis.n_wrong / max(1, axis.n))
    return "; ".join([*([", ".join([*named, *more])] if named else []), *map(concerned, axes)])
