"""M5: where the first divergence is, by stage, file and key, with a command that shows it again."""

from pathlib import Path

from fvcore.formats import read_json, write_text
from pytest_fvparity.milestones.m2_parity import told
from pytest_fvparity.milestones.m3_reference import DUMP
from pytest_fvparity.milestones.setup import MilestoneOutcome, Setup
from pytest_fvparity.report.render import REPORT, read_report, write_report
from pytest_fvparity.report.report import Report


def run(setup: Setup) -> MilestoneOutcome:
    """From M2's report alone; where M3 ran, the reference's numbers are also those of its dump."""
    report = read_report(setup.layout.runs / f"{REPORT}.json")
    folder = setup.layout.diff
    write_report(report, folder)
    problems = [*_unnamed(report), *_other_numbers(report, setup.layout.reference / DUMP)]
    files = [folder / f"{REPORT}.{kind}" for kind in ("json", "md", "html")]
    write_text(folder / "repro_command.txt", f"{report.repro_command or 'nothing differs'}\n")
    return MilestoneOutcome(not problems, "; ".join(problems) or told(report), [*files, folder / "repro_command.txt"])


def _unnamed(report: Report) -> list[str]:
    """A divergence that nobody could look for is no diff report."""
    found = report.first_divergence
    if report.overall_status == "PASS" or (found and found.check_key and found.artifact and report.repro_command):
        return []
    if found is None:
        return [f"{report.overall_status}, and no divergence is named: {report.headline}"]
    needed = {"file": found.artifact, "reproduce command": report.repro_command}
    lacking = [name for name, value in needed.items() if not value]
    return [f"the divergence at {found.check_key} has no {' and no '.join(lacking)}"]


def _other_numbers(report: Report, dump: Path) -> list[str]:
    """Trials are matched by (trial_id, trial_idx), never by position."""
    if not dump.is_file():
        return []
    known = {(row["trial_id"], row["trial_idx"]): row for row in read_json(dump)["trials"]}
    found = []
    for row in report.trials:
        if (key := (row["trial_id"], row["trial_idx"])) not in known:
            found.append(f"trial {key} is not in {dump.name}")
        elif known[key]["base_logprob"] != row["base_logprob_src"]:
            found.append(f"trial {key}: the reference's numbers here are not those of {dump.name}: run M3 again")
    return found
