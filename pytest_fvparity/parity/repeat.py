"""Asked again on the same inputs, a candidate must say the same: else no comparison with a golden says anything of it.

Two answers are the same if every value is, to the last bit, but that 0.0 and -0.0 are one value, and all NaN are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_fvparity.parity.implementation import copied

if TYPE_CHECKING:
    from fvcore.artifacts import Artifact
    from fvcore.compare import AxesOf
    from fvcore.gates import Finding


def asked(
    answer: Callable[[Sequence[Artifact]], Artifact], inputs: Sequence[Artifact], n: int, axes: AxesOf
) -> tuple[Artifact, Finding | None]:
    """The first answer, and where a later one is another.

    Each time the inputs are copies, for a candidate may edit them, or know them again; and the first answer is copied
    before the next is asked for, for a candidate may keep what it gave, and edit that.
    """
    from fvcore.compare import compare

    first = copied(answer([copied(artifact) for artifact in inputs]))
    for _ in range(n - 1):
        again = answer([copied(artifact) for artifact in inputs])
        if changed := compare(first, again, axes=axes).first_mismatch:
            return first, _worded(changed, n)
    return first, None


def _worded(changed: Finding, n: int) -> Finding:
    by = "" if changed.abs_diff is None else f": differs by {changed.abs_diff:.3g}"
    return replace(changed, message=f"is not the same when asked again (asked {n} times){by}")
