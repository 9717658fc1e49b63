"""What is said of a stage beside its numbers: whose fault it is, what its differences give away, what the drill found."""

from collections.abc import Sequence

from fvcore.gates import Verdict
from pytest_fvparity.drill.conclusion import lines as drill_lines

FAULTS = {
    "own": "on the reference's inputs this key differs too: the fault is its own",
    "inherited": "on the reference's inputs this key agrees: the fault is inherited from an earlier key",
    "accumulated": "on the reference's inputs this key agrees: what differs adds up from earlier keys, each within tolerance",
    "unsteady": "the candidate answers another thing to the very same inputs: it does not say the same twice",
}


def lines(verdict: Verdict) -> Sequence[str]:
    """Whose fault it is, and what the drill found."""
    whose, drill = verdict.details.get("fault", ""), verdict.details.get("drill")
    wrong = (finding for finding in verdict.findings if finding.blocking)
    beside = sum(finding.expected is None and finding.actual is None for finding in wrong)
    # What is found beside the values, as a hook left on the model, says nothing of the reference's inputs.
    fault = None if whose == "own" and beside == verdict.mismatch_count else FAULTS.get(whose)
    pattern = verdict.details.get("signature")
    return [*filter(None, (pattern, fault)), *(drill_lines(drill) if drill else [])]
