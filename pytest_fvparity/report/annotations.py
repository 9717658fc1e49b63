"""What is to be looked at in reports: at the earliest failure of each where the candidate's method is written."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_fvparity.report.report import Check, Report, earliest_failure
from pytest_fvparity.report.story import sentence
from pytest_fvparity.runners import Annotation

KINDS = {"FAIL": "error", "NOT_RUN": "warning"}


def annotations(reports: Sequence[Report], root: Path) -> list[Annotation]:
    """The earliest failure of each report, failures before what was not run; then other keys that differ by their own fault.

    root: the folder that the reports' paths are relative to
    """
    concerned = [r for kind in KINDS for r in sorted(reports, key=lambda r: r.named) if r.overall_status == kind]
    return [*(_earliest(report, root) for report in concerned), *(one for r in concerned for one in _others(r, root))]


def _earliest(report: Report, root: Path) -> Annotation:
    found = report.first_divergence
    where = f"{found.status} at {found.check_key}" if found else report.overall_status
    reproduce = f"\nreproduce: {report.repro_command}" if report.repro_command else ""
    file, line = _written(earliest_failure(report.checks), root)
    if file is None and found and found.artifact:
        file = root / found.artifact
    title = f"{report.fixed_trials_id}: {where}"
    return Annotation(KINDS[report.overall_status], title, report.headline + reproduce, file, line)


def _others(report: Report, root: Path) -> Iterator[Annotation]:
    """Of a run that kept going."""
    earliest = earliest_failure(report.checks)
    for check in report.checks:
        if check is not earliest and check.fault == "own":
            title = f"{report.fixed_trials_id}: {check.status} at {check.key}"
            said = f"{sentence(check)}\nreproduce: {check.repro_command}"
            yield Annotation("error", title, said, *_written(check, root))


def _written(check: Check | None, root: Path) -> tuple[Path | None, int | None]:
    source = check.source if check else None
    return (root / source.file, source.line) if source else (None, None)
