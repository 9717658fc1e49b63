"""M6: after a patch, from the repaired stage on; then all of it twice, with the same numbers."""

from typing import Any

from fvcore.compare import changes
from fvcore.formats import write_json
from pytest_fvparity.milestones.m2_parity import deliver
from pytest_fvparity.milestones.setup import Failed, MilestoneOutcome, Setup
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.render import REPORT, read_report
from pytest_fvparity.report.report import Report, earliest_failure


def run(setup: Setup) -> MilestoneOutcome:
    """The keys from the one that failed on; when they pass, all six, two times."""
    if not (last := setup.layout.runs / f"{REPORT}.json").is_file():
        raise Failed("M6 verifies a repair of what M2 found, and M2 was not run here: fvparity milestone m2")
    failed = earliest_failure(read_report(last).checks)
    repaired = failed.key if failed else CHECK_KEYS[0]
    keys = CHECK_KEYS[CHECK_KEYS.index(repaired) :]
    folder = setup.layout.runs / "m6"
    if keys != CHECK_KEYS:
        again = setup.parity(folder / "repaired", setup.comparing(), keys)
        if earliest_failure(again.checks):
            return _ended(setup, repaired, [again], f"from {repaired} on: {again.headline}")
    runs = [setup.parity(folder / name, setup.comparing()) for name in ("first", "second")]
    first, second = map(numbers, runs)
    if different := [name for name in first if changes(first[name], second.get(name))]:
        return _ended(setup, repaired, runs, f"a second run gave other numbers: {', '.join(different)}")
    suite = deliver(setup, runs[1])
    if not suite.passed:
        return _ended(setup, repaired, runs, suite.message)
    done = _ended(setup, repaired, runs, f"{suite.message}; from {repaired} on, then twice in full, the same numbers")
    return MilestoneOutcome(True, done.message, [*done.files, *suite.files])


def _ended(setup: Setup, repaired: str, runs: list[Report], message: str) -> MilestoneOutcome:
    path = setup.layout.runs / "m6_reverify.json"
    write_json(path, {"from": repaired, "message": message, "runs": [numbers(run) for run in runs]})
    return MilestoneOutcome(False, message, [path])


def numbers(report: Report) -> dict[str, Any]:
    """What two runs of one profile must share: everything but times, memory and the machine's own words."""
    compared = ("status", "n_compared", "mismatch_count", "max_abs_diff", "max_rel_diff")
    checks = {key: [getattr(check, name) for name in compared] for key, check in report.by_key.items()}
    return {**checks, "trials": report.trials, "heads": report.heads, "identity": report.of_profile("identity") or None}
