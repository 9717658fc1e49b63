"""What a drill found: as plain values for the report, and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_fvparity.drill.differences import Difference

N_BEFORE, N_AFTER = 2, 6
"""Rows shown as text before the first that differs, and from it on."""


@dataclass(frozen=True)
class Conclusion:
    """`kind` is one of

    module          a module is named
    accumulated     no single module differs by more than is allowed, together they do
    unsteady        what differed over all trials agrees when one is looked at
    token_ids       the candidate's model was given other tokens, or a mask that hides or shows others
    after_modules   every module agrees
    inherited       on the golden's inputs the means agree
    not_reproduced  the reference loaded here does not give the golden's means
    not_provided    the candidate's modules cannot be seen
    failed          an error, which `sentence` holds
    """

    kind: str
    sentence: str
    trial: str | None = None
    first: Difference | None = None
    rows: Sequence[Difference] = ()
    tolerance: str = ""
    fed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def coordinate(self) -> dict[str, int | str]:
        trial_id, _, trial_idx = (self.trial or "").partition(":")
        whole = trial_id.isdecimal() and trial_idx.isdecimal()
        trial: dict[str, int | str] = {"trial_id": int(trial_id), "trial_idx": int(trial_idx)} if whole else {}
        return trial | (self.first.coordinate if self.first else {})

    def details(self, layer: int) -> dict[str, Any]:
        """Plain values alone: what is not finite is a word."""
        trial = f", trial {self.trial}" if self.trial else ""
        return {
            "conclusion": f"drill into layer {layer}{trial}: {self.sentence}",
            "kind": self.kind,
            "layer": layer,
            "trial": self.trial,
            "first": row(self.first) if self.first else None,
            "tolerance": self.tolerance,
            "fed": dict(self.fed),
            "modules": [row(step) for step in self.rows],
        }


def row(step: Difference) -> dict[str, Any]:
    return {
        "module": step.point.module,
        "side": step.point.side,
        "call": step.point.nth,
        "max_abs_diff": _plain(step.largest),
        "allowed": step.allowed,
        "differs": step.beyond,
        "bit_equal": step.equal,
        "coordinate": step.coordinate,
        "expected": _plain(step.expected),
        "actual": _plain(step.actual),
        "other_form": step.other_form,
    }


def _plain(number: float) -> float | str:
    return number if number - number == 0 else str(number)


def lines(drill: Mapping[str, Any]) -> list[str]:
    """The conclusion and, in a few lines, the modules around the first that differs."""
    every, text = drill["modules"], [drill["conclusion"]]
    if not every:
        return text
    # What enters a module is nearly always what left another; it is shown where it says something of its own.
    first = drill["first"] if drill["first"] in every else every[-1]
    rows = [row for row in every if row["side"] == "output" or row in (first, every[-1])]
    at, last = rows.index(first), len(rows) - 1
    names = [f"what {'enters' if row['side'] == 'input' else 'leaves'} {row['module']}" for row in rows]
    width = max(map(len, names))
    chosen = sorted({*range(max(0, at - N_BEFORE), min(last + 1, at + N_AFTER)), last})
    for i, previous in zip(chosen, [-1, *chosen], strict=False):
        if i > previous + 1:
            text.append(f"  ... {i - previous - 1} more")
        number, mark = rows[i]["max_abs_diff"], "  <- first" if i == at else ""
        size = f"{number:.3g}" if isinstance(number, float) else number
        text.append(f"  {names[i]:<{width}}{size:>10}  allowed {rows[i]['allowed']:.2g}{mark}")
    return text
