"""M7: what was brought to zero on the antonyms stays at zero on the q_ids of a relation run.

One q_id first, then a few, then all others: a fault that every q_id has is found in the first minute. The only milestone
that looks at a relation run.
"""

from collections.abc import Sequence
from pathlib import Path

from fvcore.formats import FormatError, read_json, write_json
from pytest_fvparity.golden.golden import search_roots
from pytest_fvparity.milestones.setup import Failed, MilestoneOutcome, Setup, run_pytest
from pytest_fvparity.transfer import SUITE
from pytest_fvparity.transfer.report import NAME, TransferReport, by_cause
from pytest_fvparity.transfer.runs import QId, q_ids_of

SEVERAL = 3


def run(setup: Setup) -> MilestoneOutcome:
    """PASS: every q_id in every phase, and the reference agrees at all six keys on at least one."""
    if setup.relation_root is None:
        raise Failed(
            "M7 holds a relation run against stations and reference: --relation-root DIR (`fvcore relation run`)"
        )
    q_ids = q_ids_of(setup.relation_root)
    compared = setup.compared_weights()
    for q_id in (q_id for q_id in q_ids if q_id.state == "completed"):
        # What stays at zero must be what was brought there.
        if q_id.weights_sha != compared:
            raise Failed(
                f"{q_id.name} was computed with other weights than those that M2 compared: run M2 on that model"
            )
    roots = search_roots(setup.golden, Path.cwd())
    with_golden = [q for q in q_ids if q.state == "completed" and q.has_golden(roots, setup.reference_profile)]
    if not with_golden:
        raise Failed(
            "there is no golden of any of the run's q_ids; record some: pytest -m transfer --fv-regen-golden --fv-src=PATH "
            f"--fv-relation-root={setup.relation_root} --fv-qid={q_ids[0].name}"
        )
    reports: dict[str, TransferReport] = {}
    for phase, some in phases(q_ids, with_golden).items():
        reports[phase] = _judged(setup, phase, some)
        if reports[phase].failures:
            break
    return _ended(setup, reports, q_ids)


def phases(q_ids: Sequence[QId], with_golden: Sequence[QId]) -> dict[str, list[QId]]:
    """Smoke: one of which there is a golden. Then a few, such ones first, then all that are left; an empty phase is none."""
    first = with_golden[0]
    completed = [q for q in q_ids if q.state == "completed" and q != first]
    several = sorted(completed, key=lambda q: q not in with_golden)[: SEVERAL - 1]
    rest = [q for q in q_ids if q != first and q not in several]
    return {name: some for name, some in (("smoke", [first]), ("several", several), ("all", rest)) if some}


def _judged(setup: Setup, phase: str, q_ids: Sequence[QId]) -> TransferReport:
    """The transfer suite of some q_ids in a pytest of its own, from the current folder, and its report."""
    assert setup.relation_root is not None
    folder = setup.layout.runs / "m7" / phase
    words = [f"--fv-relation-root={setup.relation_root}", *(f"--fv-qid={q_id.name}" for q_id in q_ids)]
    words += [f"--fv-report-dir={folder}", *([f"--fv-golden={setup.golden}"] if setup.golden else []), *setup.running]
    path = folder.joinpath(SUITE, *setup.relation_root.parts[-2:], NAME)
    code = run_pytest(SUITE, words, path, f"{phase}: ")
    report = TransferReport.model_validate(read_json(path))
    if code and not report.failures:
        raise Failed(f"{phase}: pytest ended with status {code}; what it printed says why")
    return report


def _ended(setup: Setup, reports: dict[str, TransferReport], q_ids: Sequence[QId]) -> MilestoneOutcome:
    failures = [failure for report in reports.values() for failure in report.failures]
    compared = sorted({q_id for report in reports.values() for q_id in report.compared_with_reference})
    judged = {q_id for report in reports.values() for q_id in report.q_ids}
    files = [setup.layout.runs / name for name in ("m7_transfer_report.json", "m7_failures.json")]
    write_json(files[0], {name: report.model_dump(mode="json") for name, report in reports.items()})
    rows = [failure.model_dump(mode="json") for failure in failures]
    write_json(files[1], {"by_cause": by_cause(failures), "failures": rows})
    if failures:
        last = list(reports)[-1]
        return MilestoneOutcome(False, f"{last}: {reports[last].headline}", files)
    if not compared:
        raise FormatError(f"{files[0]}: no q_id was compared with the reference, though there are goldens")
    n_skipped = sum(q_id.state == "skipped" for q_id in q_ids)
    message = (
        f"{len(judged) - n_skipped} q_ids hold what the stations give ({n_skipped} skipped, too few rows); "
        f"the six keys agree with the reference on {', '.join(compared)}"
    )
    return MilestoneOutcome(True, message, files)
