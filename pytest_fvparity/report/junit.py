"""What a stage says of itself in JUnit XML, as properties of its test case: short, for what reads them shows them whole."""

from fvcore.gates import StageResult
from pytest_fvparity.report.markdown import cut

LONGEST = 1000  # characters of one property


def properties(result: StageResult, repro: str) -> list[tuple[str, str]]:
    """Names and texts; what a stage has nothing to say about is left out."""
    verdict = result.verdict
    first, largest = verdict.first_mismatch, verdict.measurements.get("max_abs_diff")
    said = {
        "status": str(result.status),
        "fault": verdict.details.get("fault"),
        "max_abs_diff": largest,
        "mismatches": verdict.mismatch_count if verdict.findings or verdict.compared else None,
        "first": first.where if first else None,
        "repro": repro,
    }
    return [(f"fvparity_{name}", cut(str(value), LONGEST)) for name, value in said.items() if value is not None]
