"""M2: the six checks."""

from pytest_fvparity.milestones.setup import MilestoneOutcome, Setup
from pytest_fvparity.report.render import write_report
from pytest_fvparity.report.report import Report


def run(setup: Setup) -> MilestoneOutcome:
    """PASS alone is a pass: a part, a golden of a part or a refusal is none."""
    setup.require_golden()
    return deliver(setup, setup.parity(setup.layout.runs / "m2", setup.comparing()))


def told(report: Report) -> str:
    """The headline, behind a milestone's own verdict."""
    return report.headline.removeprefix("PASS: ")


def deliver(setup: Setup, report: Report) -> MilestoneOutcome:
    """The suite's files in the milestones' folder."""
    files = write_report(report, setup.layout.runs)
    return MilestoneOutcome(report.overall_status == "PASS", told(report), files)
