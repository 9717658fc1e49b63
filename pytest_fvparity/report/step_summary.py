"""What the page of a CI run shows: a line for each report, and whole those that are not green, as far as there is room."""

from collections.abc import Sequence

from pytest_fvparity.report.markdown import LEAST, size, within
from pytest_fvparity.report.render import markdown, summaries
from pytest_fvparity.report.report import Report, worst_first

GREEN = {"PASS", "PARTIAL"}


def identity(report: Report) -> list[str]:
    """By which a runner knows again that it has shown it."""
    return ["step summary", *report.named, report.created_at]


def step_summary(reports: Sequence[Report], room: int) -> str:
    """Markdown in at most `room` bytes. Reports share what is left, so that a long failure hides no other one; what is green
    is cut first."""
    ordered = worst_first(reports)
    if len(ordered) == 1:
        return markdown(ordered[0], room)
    table = summaries(ordered)["summary.md"] if ordered else ""
    parts = [within(table, max(LEAST, room // 4), "All runs are in `summary.html`.")]
    told = [report for report in ordered if report.overall_status not in GREEN]
    for n, report in enumerate(told):
        title = f"\n## {'/'.join(report.named)}\n"
        share = (room - sum(size(part) + 1 for part in parts)) // (len(told) - n) - size(title) - 1
        if share < LEAST:
            break
        parts += [title, markdown(report, share)]
    return "\n".join(parts)
