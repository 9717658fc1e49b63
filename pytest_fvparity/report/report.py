"""From stage results to the report: one value per trials file that everything else is a rendering of.

The field names are those of the milestone plans' diff report; the schema is published as `docs/report.schema.json`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fvcore import escapes
from fvcore.gates import Finding, StageResult, Status, first_line
from fvcore.profile import Part
from fvcore.provenance import now
from pytest_fvparity.drill.conclusion import lines as drill_lines
from pytest_fvparity.golden.part import NOT_COMPARED
from pytest_fvparity.parity.implementation import CHECK_KEYS, LIVE, NO_CANDIDATE
from pytest_fvparity.parity.partial import LACKS
from pytest_fvparity.report.story import sentence

SCHEMA_VERSION = 1
UNKNOWN = "unknown"
SAID_OF_A_RUN = {"candidate", "n_trials", "n_compared_trials"}
LARGEST = ("max_abs_diff", "max_rel_diff")
HEADS = ("aie_expected", "aie_actual", "heads_expected", "heads_actual", "scores_actual")


class ReportPart(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Mismatch(ReportPart):
    """One located disagreement. `coordinate` names the axes: layer, head, slot, dim, trial, position."""

    where: str
    json_pointer: str
    message: str
    expected: Any = None
    got: Any = None
    abs_diff: float | str | None = None
    rel_diff: float | str | None = None
    coordinate: dict[str, int | str] = {}


class ToleranceRow(ReportPart):
    """What a leaf was compared with: |got - expected| <= max(atol, of_max * max|expected|, of_norm * norm) + rtol *
    |expected|, and the rule it comes from.

    `max_abs_diff` is the largest difference over all trials, `used` the largest share of its bound that one takes: 1 is
    on the limit.
    """

    leaf: str
    rtol: float
    atol: float
    of_max: float
    of_norm: float
    rule: str
    max_abs_diff: float | str | None = None
    used: float | str | None = None


class ErrorCount(ReportPart):
    """How many elements have which magnitude and which error, both by decade: n is from 10^n up to 10^(n+1), -999 is zero,
    999 is not finite."""

    magnitude: int
    error: int
    count: int


class ErrorTable(ReportPart):
    """The errors of a leaf, counted by the magnitude of what was expected, over all trials in which it differs."""

    leaf: str
    counts: list[ErrorCount]


class Source(ReportPart):
    """Where the candidate's answer comes from: a file, inside the project relative to it, and the line of its method."""

    file: str
    line: int | None = None


class Kind(ReportPart):
    """The leaves of one name that differ, trials folded: how many of their values do, and the one that is off by most."""

    leaf: str
    count: int
    compared: int
    example: Mismatch | None = None


class Place(ReportPart):
    """How many values are wrong under one index of an axis; `label` is what the index is known by."""

    index: int | str
    label: str = ""
    count: int


class AxisCount(ReportPart):
    """The indices of an axis (layer, head, slot, rank, trial, prompt) under which something is wrong: how many of how
    many, and those with most of it."""

    axis: str
    n: int
    n_wrong: int
    places: list[Place] = Field(min_length=1)


class ErrorMap(ReportPart):
    """Of a leaf the largest difference for every pair of indices of two axes, and how many values are wrong there."""

    leaf: str
    rows: str
    columns: str
    row_indices: list[int]
    column_indices: list[int]
    labels: list[str]
    largest: list[list[float | str]]
    outside: list[list[int]]


class Where(ReportPart):
    """Where a key differs. Bounded: of `n_kinds` kinds and of an axis the twelve with most, of a map 128 rows and columns."""

    kinds: list[Kind]
    n_kinds: int
    axes: list[AxisCount]
    maps: list[ErrorMap]


class Check(ReportPart):
    """One check key. `fault` says why a key failed: own (on golden inputs too), inherited (an earlier key failed), or
    accumulated (it agrees on golden inputs and no earlier key failed: differences within tolerance add up), or unsteady
    (the candidate answers another thing to the very same inputs). `signature` is the pattern of its differences, in words, `drill` the modules around the first that differs, where it was looked for."""

    key: str
    status: Status
    n_compared: int = 0
    mismatch_count: int | None = None
    max_abs_diff: float | str | None = None
    max_rel_diff: float | str | None = None
    tolerances: list[ToleranceRow] = []
    errors: list[ErrorTable] = []
    measurements: dict[str, float | str] = {}
    fault: str | None = None
    signature: str | None = None
    blocked_by: str | None = None
    message: str = ""
    golden_path: str | None = None
    candidate_path: str | None = None
    source: Source | None = None
    first_mismatch: Mismatch | None = None
    where: Where | None = None
    drill: list[str] = []
    details: list[Mismatch] = []
    warnings: list[Mismatch] = []
    duration_sec: float = 0.0
    stdout: str = ""
    stderr: str = ""
    repro_command: str = ""

    @model_validator(mode="after")
    def _is_no_empty_pass(self) -> Self:
        if self.status is Status.PASS and (self.mismatch_count or self.details or self.n_compared < 1):
            n = self.mismatch_count or len(self.details)
            said = f"{n} mismatch(es)" if n else f"{self.n_compared} values compared"
            raise ValueError(f"{self.key} is said to be PASS, with {said}: such a check agrees with nothing")
        return self


class Divergence(ReportPart):
    """The earliest disagreement of the run: stage, file, key, trial, coordinate, both values."""

    check_key: str
    status: str
    artifact: str | None
    leaf: str | None
    json_pointer: str | None
    trial_id: int | None
    trial_idx: int | None
    coordinate: dict[str, int | str]
    expected: Any
    got: Any
    abs_diff: float | str | None
    rel_diff: float | str | None
    message: str


class Shard(ReportPart):
    """One of the reports that a merged one was made of: when it ran, the keys taken from it, and where it ran."""

    created_at: str
    keys: list[str]
    conditions: dict[str, Any]


class Report(ReportPart):
    """One trials file's parity run, or several of them merged: then `shards` says which. `bundle` is the earliest failure
    in a file, `model_directory` a word that no other directory has."""

    schema_version: int = SCHEMA_VERSION
    created_at: str
    overall_status: str
    headline: str
    dataset: Part
    fixed_trials_id: Part
    model: str
    candidate: str | None = None
    reference_profile: str | None
    mode: str = "chained"
    n_trials: int | None
    n_compared_trials: int | None
    profile: dict[str, Any] | None
    golden_profile: dict[str, Any] | None
    golden_path: str | None
    reference: dict[str, Any] | None
    conditions: dict[str, list[Any]]
    tolerance_sources: list[str]
    first_divergence: Divergence | None
    checks: list[Check]
    repro_command: str | None
    trials: list[dict[str, Any]]
    heads: dict[str, Any]
    shards: list[Shard] = []
    under: str = ""
    model_directory: str = ""
    bundle: str | None = None

    @model_validator(mode="after")
    def _has_each_key_once(self) -> Self:
        keys = [check.key for check in self.checks]
        if odd := [key for key in keys if key not in CHECK_KEYS or keys.count(key) > 1]:
            raise ValueError(f"checks: expected each of the six keys once at most, found {', '.join(odd)}")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """What it is of, and where it lies: dataset and id of the trials, and the reference's profile where it is not `src`."""
        return self.dataset, self.fixed_trials_id, *([self.under] if self.under else [])

    @property
    def failed_key(self) -> str | None:
        return self.first_divergence.check_key if self.first_divergence else None

    @property
    def replay_command(self) -> str | None:
        """What judges the failure again that lies in a file."""
        return escapes.shell(["fvparity", "replay", self.bundle]) if self.bundle else None

    @property
    def beside(self) -> str:
        """What it was compared with, in a word."""
        return "reference" if self.golden_path == LIVE else "golden"

    @property
    def by_key(self) -> dict[str, Check]:
        return {check.key: check for check in self.checks}

    def of_profile(self, part: str) -> dict[str, Any]:
        """Its `identity` or its `conditions`; nothing of a run that did not come to have a profile."""
        found: dict[str, Any] = (self.profile or {}).get(part, {})
        return found


def assemble(
    results: Mapping[str, StageResult],
    rows: Mapping[str, Mapping[str, Any]],
    context: Mapping[str, Any],
    commands: Mapping[str, str],
    keep_going: bool,
    place: tuple[str | None, str],
    under: str = "",
) -> Report:
    """Build the report of one trials file.

    `results` are of every selected key, in order; `rows` what came back, by key, with its output; `context` what the rows
    say of the run; `commands` reproduce a key; `place` is dataset and id where no row tells them; `under` what else its folder
    is named by.
    """
    checks = [_check(result, rows.get(key, {}), commands[key], context) for key, result in results.items()]
    same = ("candidate", "n_trials", "n_compared_trials", "profile", "golden_path", "reference")
    said: dict[str, Any] = {name: context.get(name) for name in same}
    details = {key: result.verdict.details for key, result in results.items()}
    return Report(
        created_at=now(),
        **conclusion(checks, context),
        dataset=context.get("dataset", place[0] or UNKNOWN),
        fixed_trials_id=context.get("fixed_trials_id", place[1]),
        model=context.get("model", UNKNOWN),
        mode="keep-going" if keep_going else "chained",
        reference_profile=(context.get("profile") or {}).get("identity", {}).get("reference_profile"),
        golden_profile=context.get("golden"),
        **said,
        conditions=context.get("conditions", {}),
        tolerance_sources=context.get("tolerances", []),
        checks=checks,
        under=under,
        trials=_words(details.get("injection_output", {}).get("trials", [])),
        heads={k: _words(v) for k, v in details.get("top_heads", {}).items() if k in HEADS},
    )


def conclusion(checks: Sequence[Check], context: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a report that follow from its checks; `context` has tolerances, and `SAID_OF_A_RUN`."""
    failed = earliest_failure(checks)
    divergence = _divergence(failed) if failed else None
    pattern = f"; {failed.signature}" if failed and failed.signature else ""
    return {
        "overall_status": overall_status(checks),
        "headline": _headline(checks, divergence, context) + pattern,
        "first_divergence": divergence,
        "repro_command": failed.repro_command if failed else None,
    }


def concluded(report: Report) -> Report:
    """The same checks under the conclusion that follows from them, whatever the file says of itself."""
    context = {"tolerances": report.tolerance_sources, **report.model_dump(include=SAID_OF_A_RUN)}
    return report.model_copy(update=conclusion(report.checks, context))


def overall_status(checks: Sequence[Check]) -> str:
    """PASS if all six keys agree, PARTIAL if those that were selected do, NOT_RUN if none could be run, else FAIL."""
    found = {check.status for check in checks}
    some = [check for check in checks if check.status == Status.PASS or is_partial(check)]
    if some and all(check.status in AGREEING or is_partial(check) for check in checks):
        whole = found == {Status.PASS} and len(checks) == len(CHECK_KEYS) and not left_out(checks)
        return "PASS" if whole else "PARTIAL"
    return "NOT_RUN" if found == {Status.NOT_RUN} else "FAIL"


AGREEING = frozenset({Status.PASS, Status.NOT_HELD})
"""Statuses of a run in which all that the golden holds agrees, as long as one of them is PASS."""


def is_partial(check: Check) -> bool:
    """Whether the candidate provides a part of the key, and that part agrees."""
    return check.status == Status.NOT_PROVIDED and check.n_compared > 0


def left_out(checks: Sequence[Check]) -> list[str]:
    """What was not compared because the golden does not hold it: keys, and parts of others."""
    parts = [(check.key, w.message) for check in checks for w in check.warnings if w.message.startswith(NOT_COMPARED)]
    keys = [check.key for check in checks if check.status == Status.NOT_HELD]
    return keys + [f"of {key} {message.removeprefix(NOT_COMPARED)}" for key, message in parts]


def not_provided(checks: Sequence[Check]) -> list[str]:
    """What the candidate does not provide: keys, and leaves of others, also of those that differ in what is provided."""

    def lacking(check: Check) -> str:
        told = [*(w.message for w in check.warnings if w.message.startswith(LACKS)), check.message][0]
        leaves = told.partition(LACKS)[2]
        return f"of {check.key} {leaves}" if leaves else check.key if check.status == Status.NOT_PROVIDED else ""

    return list(filter(None, map(lacking, checks)))


OVERALL = ("FAIL", "NOT_RUN", "PARTIAL", "PASS")
"""Overall statuses, the worst first. FAIL alone turns a session red; under --fv-require-gpu it is what others call NOT_RUN."""


def worst_first(reports: Iterable[Report]) -> list[Report]:
    """So that a cut takes the best."""
    return sorted(reports, key=lambda report: (OVERALL.index(report.overall_status), report.named))


def earliest_failure(checks: Sequence[Check]) -> Check | None:
    """The first key that failed itself; blocked keys stand behind one, and what is not provided says nothing."""
    ranks = {Status.PASS: 4, Status.BLOCKED: 3, Status.NOT_HELD: 2, Status.NOT_PROVIDED: 1}
    if overall_status(checks) in {"PASS", "PARTIAL"}:
        return None
    open_ones = [check for check in checks if check.status != Status.PASS]
    return min(open_ones, key=lambda check: ranks.get(check.status, 0), default=None)


def _words(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as words, at any depth."""
    if isinstance(value, dict):
        return {key: _words(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_words(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def check_of(result: StageResult) -> Check:
    """One key as a report has it, of what its result says alone."""
    return _check(result, {}, "", {})


def _check(result: StageResult, row: Mapping[str, Any], reproduce: str, context: Mapping[str, Any]) -> Check:
    verdict = result.verdict
    blocking = [_mismatch(f) for f in verdict.findings if f.blocking]
    golden = context.get("golden_path")
    return Check(
        key=result.key,
        status=result.status,
        n_compared=verdict.compared,
        mismatch_count=verdict.mismatch_count if verdict.findings or verdict.compared else None,
        **{name: _words(verdict.measurements.get(name)) for name in LARGEST},
        tolerances=_words(verdict.details.get("tolerances", [])),
        errors=[ErrorTable(leaf=leaf, counts=rows) for leaf, rows in verdict.details.get("errors", {}).items()],
        measurements=_words({k: v for k, v in verdict.measurements.items() if k not in LARGEST}),
        fault=verdict.details.get("fault"),
        signature=verdict.details.get("signature"),
        blocked_by=result.blocked_by,
        message=result.message,
        golden_path=f"{golden}/{result.key}.json" if golden and golden != LIVE else None,
        candidate_path=context.get("candidate"),
        source=context.get("whereabouts", {}).get(result.key),
        first_mismatch=blocking[0] if blocking else None,
        where=_where(verdict.details.get("where")),
        drill=_drill(verdict.details.get("drill")),
        details=blocking,
        warnings=[_mismatch(f) for f in verdict.findings if not f.blocking],
        duration_sec=result.duration_s,
        stdout=row.get("stdout", ""),
        stderr=row.get("stderr", ""),
        repro_command=reproduce,
    )


def _where(found: Mapping[str, Any] | None) -> Where | None:
    """As the comparison found it, its examples as rows of a report."""
    if not found:
        return None
    kinds = [
        {**kind, "example": _mismatch(Finding(**kind["example"])) if kind["example"] else None}
        for kind in found["kinds"]
    ]
    return Where.model_validate(_words({**found, "kinds": kinds}))


def _drill(found: Any) -> list[str]:
    """The modules around the first that differs, a line each."""
    return drill_lines(found)[1:] if isinstance(found, dict) and "modules" in found else []


def largest_of(numbers: Iterable[float | str | None]) -> float | str | None:
    """The largest of what is known; a word, which is no finite number, is larger than any."""
    known = [number for number in numbers if number is not None]
    return max(known, key=lambda number: math.inf if isinstance(number, str) else number, default=None)


def _mismatch(finding: Finding) -> Mismatch:
    leaf, _, rest = finding.where.partition("[")
    position = [str(v) for k, v in finding.coordinate.items() if k not in {"trial_id", "trial_idx", "slot_label"}]
    escaped = leaf.replace("~", "~0").replace("/", "~1")
    return Mismatch(
        where=finding.where,
        json_pointer="/" + "/".join([escaped, *(position if rest else [])]),
        message=finding.message,
        expected=_words(finding.expected),
        got=_words(finding.actual),
        abs_diff=_words(finding.abs_diff),
        rel_diff=_words(finding.rel_diff),
        coordinate=dict(finding.coordinate),
    )


def _divergence(check: Check) -> Divergence:
    first = check.first_mismatch
    coordinate = first.coordinate if first else {}
    artifact = check.golden_path
    if artifact and first and "[" in first.where and "position" not in coordinate:
        artifact = artifact.removesuffix(".json") + ".safetensors"
    same = ("json_pointer", "expected", "got", "abs_diff", "rel_diff")
    values: dict[str, Any] = {name: getattr(first, name, None) for name in same}
    trial = {name: coordinate.get(name) for name in ("trial_id", "trial_idx")}
    values |= {name: number if isinstance(number, int) else None for name, number in trial.items()}
    return Divergence(
        check_key=check.key,
        status=check.status,
        artifact=artifact,
        leaf=first.where if first else None,
        coordinate=coordinate,
        **values,
        message=first.message if first else first_line(check.message, check.status),
    )


def _headline(checks: Sequence[Check], divergence: Divergence | None, context: Mapping[str, Any]) -> str:
    """Verdict and earliest divergence in one sentence, with whatever makes the verdict a weaker one."""
    said = _weaker(context)
    loosened = f"{'; ' if said.startswith('no') else ' '}{said}" if said else ""
    if not checks:
        return "FAIL: nothing was compared: there is no check in it"
    if divergence is None:
        return f"{overall_status(checks)}: {_agreement(checks, context)}{loosened}"
    if divergence.status == Status.NOT_PROVIDED:
        parts = ", ".join(check.key for check in checks if is_partial(check))
        absent = (check.key for check in checks if check.status == Status.NOT_PROVIDED and not is_partial(check))
        agreeing = sum(check.status == Status.PASS for check in checks)
        given = f", and so does what is given of {parts}" if parts else ""
        return f"NOT_PROVIDED: {', '.join(absent)} cannot be judged; {agreeing} of 6 check keys agree with the reference{given}"
    if divergence.status == Status.NOT_RUN:
        return f"NOT_RUN: {len(checks)} check keys, nothing was compared: {divergence.message}"
    if divergence.leaf is None:
        return f"{divergence.status}: nothing could be judged at {divergence.check_key}: {divergence.message}"
    failed = next(check for check in checks if check.key == divergence.check_key)
    return f"FAIL at {failed.key}: {sentence(failed)}{loosened}"


def weaker(report: Report) -> str:
    """What makes a verdict a weaker one: that nobody gave a candidate, tolerances that are not the defaults."""
    return _weaker({"candidate": report.candidate, "tolerances": report.tolerance_sources})


def _weaker(context: Mapping[str, Any]) -> str:
    sources = context.get("tolerances")
    nobody = "no candidate given: fvcore judged against the reference" if _is_fvcore(context) else ""
    return " ".join(filter(None, (nobody, f"under tolerances of {' and '.join(sources)}" if sources else "")))


def _is_fvcore(context: Mapping[str, Any]) -> bool:
    return context.get("candidate") == NO_CANDIDATE


def _agreement(checks: Sequence[Check], context: Mapping[str, Any]) -> str:
    n_compared = sum(check.status == Status.PASS for check in checks)
    whole = n_compared == len(CHECK_KEYS)
    scope = "all 6 check keys agree" if whole else f"{n_compared} of 6 check keys compared, all agree"
    n, total = context.get("n_compared_trials"), context.get("n_trials")
    trials = f" ({n} of {total} trials)" if n != total else ""
    ties = sum(warning.message.startswith("tie") for check in checks for warning in check.warnings)
    tied = f", {ties} tie(s) aside" if ties else ""
    largest = [check.max_abs_diff for check in checks if isinstance(check.max_abs_diff, float)]
    difference = f"; largest difference {max(largest):.3g}" if largest else ""
    absent = f"; the golden holds a part, {NOT_COMPARED}{'; '.join(left_out(checks))}" if left_out(checks) else ""
    partly = f"; {LACKS}{'; '.join(lacking)}" if (lacking := not_provided(checks)) else ""
    return f"{scope} with the reference{trials}{tied}{difference}{absent}{partly}"
