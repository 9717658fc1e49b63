"""What data must hold before it is gone on with, as a suite over one audit. Warnings are findings that block nothing."""

from collections.abc import Callable, Sequence
from functools import partial

from fvcore.experiments.sae.schemas import Code, IssueGroup, Validation
from fvcore.gates import Finding, Stage, Suite, Verdict

CHECKS: dict[str, tuple[str, tuple[Code, ...]]] = {
    "files": (
        "files are there and can be read",
        ("NO_CHECKPOINTS", "NO_RESPONSE_LOGS", "UNREADABLE_FILE", "BAD_TOPLEVEL", "EXTRA_FILE"),
    ),
    "fields": (
        "results and records have their fields",
        ("MISSING_FIELD", "BAD_TYPE", "FEATURE_ID_MISMATCH", "MISSING_FEATURE", "MISSING_CONDITION"),
    ),
    "results": (
        "there are causal features, and checkpoints agree on them",
        ("NO_CAUSAL", "DUP_RESULT", "CONFLICTING_RESULT", "NONFINITE_D"),
    ),
    "responses": ("responses are texts", ("EMPTY_RESPONSE",)),
    "conditions": ("every feature has every condition", ("MISSING_CONDITIONS", "UNKNOWN_CONDITION", "ALIAS_USED")),
    "trials": ("trials are enough, and stand there once", ("LOW_TRIALS", "DUP_TRIAL")),
    "join": ("causal features stand in the logs", ("LOW_JOIN_RATE",)),
}
"""Check -> its title and the codes of issues that it is about."""


def _check(codes: Sequence[Code], audit: Validation) -> Verdict:
    groups = [group for group in audit.issues if group.code in codes]
    return Verdict(
        findings=tuple(finding for group in groups for finding in _findings(group)),
        compared=audit.total_trials,
        mismatch_count=sum(group.count for group in groups if group.severity == "error"),
        measurements={group.code: float(group.count) for group in groups},
    )


def _findings(group: IssueGroup) -> list[Finding]:
    blocking = group.severity == "error"
    return [Finding(row.file or row.feature, f"{group.code}: {row.message}", blocking=blocking) for row in group.first]


STAGES = tuple(Stage(key, title, partial(_check, codes)) for key, (title, codes) in CHECKS.items())


def suite(subject: Callable[..., Validation]) -> Suite[Validation]:
    return Suite("audit", STAGES, subject, keep_going=True)
