"""M2: the six checks."""

from pytest_fvparity.milestones.setup import MilestoneOutcome, Setup
from pytest_fvparity.report.render import REPORT, write_report
from pytest_fvparity.report.report import Report

FILES = (
    "parity_suite_report.json",
    "parity_suite_stages.csv",
    "parity_suite.log",
    "injection_parity_trials.csv",
    "injection_parity_report.json",
    f"{REPORT}.json",
    f"{REPORT}.md",
    f"{REPORT}.html",
)


def run(setup: Setup) -> MilestoneOutcome:
    """PASS alone is a pass: a part, a golden of a part or a refusal is none."""
    setup.require_golden()
    return deliver(setup, setup.parity(setup.layout.runs / "m2", setup.comparing()))


def told(report: Report) -> str:
    """The headline, behind a milestone's own verdict."""
    return report.headline.removeprefix("PASS: ")


def deliver(setup: Setup, report: Report) -> MilestoneOutcome:
    """The suite's files in the milestones' folder."""
    write_report(report, setup.layout.runs)
    files = [setup.layout.runs / name for name in FILES]
    return MilestoneOutcome(report.overall_status == "PASS", told(report), files)
