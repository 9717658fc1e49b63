"""transfer_report.json: every q_id of the run, both suites of each, and what failed by its cause."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from fvcore.experiments.errors import DEVICE
from fvcore.gates import UNHARMED, Finding, StageResult, Status, first_line
from fvcore.provenance import now
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.transfer.runs import QId
from pytest_fvparity.transfer.stages import KEYS

NAME = "transfer_report.json"
SCHEMA_VERSION = 1

Results = Mapping[str, StageResult]
"""By stage key."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageFailure(_Model):
    """One stage of one q_id. `cause`: data, tokenizer, target boundary, memory, device, numeric or code."""

    q_id: str
    suite: str
    key: str
    status: str
    cause: str
    where: str = ""
    message: str = ""
    expected: str | None = None
    actual: str | None = None


class QRow(_Model):
    """State as the run has it; statuses by key of the files' suite, and of the reference's where there is a golden."""

    state: str
    files: dict[str, str]
    reference: dict[str, str] | None


class TransferReport(_Model):
    schema_version: int = SCHEMA_VERSION
    created_at: str
    relation_root: str
    overall_status: str
    headline: str
    n_q_ids: int
    compared_with_reference: list[str]
    by_cause: dict[str, list[str]]
    q_ids: dict[str, QRow]
    failures: list[StageFailure]
    notes: dict[str, list[str]]


def assemble(
    root: str,
    q_ids: Sequence[QId],
    files: Mapping[str, Results],
    reference: Mapping[str, Results],
    tolerances: Sequence[str] = (),
) -> TransferReport:
    """`files` and `reference` are the planned stages' results by q_id; `tolerances` is what others than the defaults come
    from."""
    rows = {
        q.name: QRow(state=q.state, files=_statuses(files, q.name) or {}, reference=_statuses(reference, q.name))
        for q in q_ids
    }
    suites = (("transfer", files), ("parity", reference))
    statuses = {result.status for _, by_q_id in suites for results in by_q_id.values() for result in results.values()}
    # Without a device nothing runs; where something did, what was not run is missing.
    harmless = UNHARMED if statuses == {Status.NOT_RUN} else UNHARMED - {Status.NOT_RUN}
    failures = [
        _failure(q_id, suite, result, q_ids)
        for suite, results in suites
        for q_id in sorted(results)
        for result in results[q_id].values()
        if result.status not in harmless
    ]
    agreeing = dict.fromkeys(CHECK_KEYS, str(Status.PASS))
    compared = [name for name, row in rows.items() if row.reference == agreeing]
    status, headline = _conclusion(rows, failures, compared)
    loosened = f" under tolerances of {' and '.join(tolerances)}" if tolerances else ""
    return TransferReport(
        created_at=now(),
        relation_root=root,
        overall_status=status,
        headline=headline + loosened,
        n_q_ids=len(q_ids),
        compared_with_reference=compared,
        by_cause=by_cause(failures),
        q_ids=rows,
        failures=failures,
        notes=_notes(files),
    )


def by_cause(failures: Iterable[StageFailure]) -> dict[str, list[str]]:
    """Cause -> the q_ids that have such a failure, in order."""
    pairs = dict.fromkeys((failure.cause, failure.q_id) for failure in failures)
    return {cause: [q_id for other, q_id in pairs if other == cause] for cause, _ in pairs}


def _notes(files: Mapping[str, Results]) -> dict[str, list[str]]:
    """What is worth knowing and is no difference, by q_id."""
    notes: dict[str, list[str]] = {}
    for q_id, results in sorted(files.items()):
        found = [(key, f) for key, result in results.items() for f in result.verdict.findings if not f.blocking]
        if found:
            notes[q_id] = list(dict.fromkeys(f"{key} {finding.where}: {finding.message}" for key, finding in found))
    return notes


def _statuses(results: Mapping[str, Results], q_id: str) -> dict[str, str] | None:
    """By key; None where no stage of this q_id was planned."""
    return {key: str(result.status) for key, result in results[q_id].items()} if q_id in results else None


def _conclusion(rows: Mapping[str, QRow], failures: Sequence[StageFailure], compared: Sequence[str]) -> tuple[str, str]:
    """PASS: every stage of every q_id agrees, and the reference agrees at all six keys of at least one."""
    n_skipped = sum(row.state == "skipped" for row in rows.values())
    told = f"{len(rows) - n_skipped} q_ids and {n_skipped} skipped"
    if failures:
        first = failures[0]
        what = f"{first.where}: {first.message}" if first.where else first.message
        n = len({failure.q_id for failure in failures})
        return "FAIL", f"FAIL: {n} of {told} differ; first {first.q_id}, {first.suite} {first.key}: {what}"
    if any(Status.NOT_RUN in row.files.values() for row in rows.values()):
        return "NOT_RUN", f"NOT_RUN: nothing of {told} was compared, for want of a device"
    partial = [name for name, row in rows.items() if row.state != "skipped" and set(row.files) != set(KEYS)]
    if partial:
        return "PARTIAL", f"PARTIAL: not every stage of {', '.join(partial)} was selected; what was compared agrees"
    if not compared:
        return "PARTIAL", f"PARTIAL: the files of {told} hold what the stations give; there is no golden of any of them"
    agree = f"{', '.join(compared)} agree with the reference"
    return "PASS", f"PASS: the files of {told} hold what the stations give; {agree}"


BY_KEY = {"prompt_boundary": "target boundary", "slot_map": "tokenizer", "qid_status": "data", "sampled_trials": "data"}
"""What a stage that differs is about; the others are about numbers."""

WORDS = (
    ("memory", ("MemoryError", "out of memory", "OutOfMemory")),
    ("device", DEVICE),
    ("target boundary", ("boundary", "target_first_token_id")),
    ("tokenizer", ("BOS",)),
)


def _failure(q_id: str, suite: str, result: StageResult, q_ids: Sequence[QId]) -> StageFailure:
    first = result.verdict.first_mismatch or Finding("", first_line(result.message, str(result.status)))
    own = next((q.cause for q in q_ids if q.name == q_id), None)
    return StageFailure(
        q_id=q_id,
        suite=suite,
        key=result.key,
        status=str(result.status),
        cause=own if own and result.key == "qid_status" else _cause(result, first.message),
        where=first.where,
        message=first.message,
        expected=None if first.expected is None else f"{first.expected!r:.200}",
        actual=None if first.actual is None else f"{first.actual!r:.200}",
    )


def _cause(result: StageResult, message: str) -> str:
    for cause, words in WORDS:
        if any(word in message for word in words):
            return cause
    if result.status is Status.CRASHED or "\nTraceback" in result.message:
        return "code"
    return BY_KEY.get(result.key, "numeric" if result.status is Status.FAIL else "data")
