"""GitHub's workflow commands: one annotation for the earliest failure of each report, ten at most."""

from collections.abc import Sequence

from fvcore import escapes
from pytest_fvparity.report.markdown import cut
from pytest_fvparity.report.report import Report

MOST = 10  # GitHub shows ten a step and drops the rest in silence
LONGEST = 4000  # characters of a message
KINDS = {"FAIL": "error", "NOT_RUN": "warning"}


def workflow_commands(reports: Sequence[Report]) -> list[str]:
    """Failures first, then what was not run; the last line counts what had no place."""
    concerned = [r for kind in KINDS for r in sorted(reports, key=lambda r: r.named) if r.overall_status == kind]
    if len(concerned) <= MOST:
        return [_annotation(report) for report in concerned]
    rest = concerned[MOST - 1 :]
    names = ", ".join("/".join(report.named) for report in rest)
    kind = KINDS[rest[0].overall_status]
    return [*map(_annotation, concerned[: MOST - 1]), _command(kind, {"title": f"parity: {len(rest)} more"}, names)]


def _annotation(report: Report) -> str:
    earliest = report.first_divergence
    where = f"{earliest.status} at {earliest.check_key}" if earliest else report.overall_status
    properties = {"file": earliest.artifact if earliest else None, "title": f"{report.fixed_trials_id}: {where}"}
    reproduce = f"\nreproduce: {report.repro_command}" if report.repro_command else ""
    return _command(KINDS[report.overall_status], properties, report.headline + reproduce)


def _command(kind: str, properties: dict[str, str | None], message: str) -> str:
    texts = {name: _data(value) for name, value in properties.items() if value}
    given = ",".join(f"{name}={text.replace(':', '%3A').replace(',', '%2C')}" for name, text in texts.items())
    return f"::{kind} {given}::{_data(cut(message, LONGEST))}"


def _data(text: str) -> str:
    return escapes.lines(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
