"""A failure judged again from its file, by the very check that found it: its own leaves, or what a candidate says now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fvcore.exits import FAILED, PASSED, UNJUDGED
from fvcore.formats import FormatError
from fvcore.gates import Finding, Refused, Stage, StageResult, Status, first_line, run_stage
from pytest_fvparity.bundle.bundle import CANDIDATE, GOLDEN, Bundle, First, Recorded
from pytest_fvparity.parity.checks import TITLES, ParityRun
from pytest_fvparity.parity.implementation import PER_TRIAL_KEYS, Implementation
from pytest_fvparity.parity.words import FAULTS

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings

DIGESTS = ("weights_sha", "tokenizer_sha", "dtype", "quant")


def replayed(bundle: Bundle, candidate: Implementation | None = None, lm: LanguageModel | None = None) -> StageResult:
    """Of the leaves that the run's candidate gave; or of what `candidate` answers to the golden's own inputs.

    Raises FormatError where the leaves cannot be compared, which those of no run are.
    """
    key = bundle.key
    recorded, golden = (Recorded(bundle, side) for side in (CANDIDATE, GOLDEN))
    run = ParityRun(candidate or recorded, golden, bundle.tolerances, continuation=bundle.continuation)
    if candidate is not None and key in PER_TRIAL_KEYS:  # which may answer for more trials than are in the file
        run = replace(run, max_trials=len(bundle.places))
    if lm is not None:
        run = replace(run, model=lm.hf, tokenizer=lm.tokenizer, **_said_by(lm, bundle, run.golden))
    if candidate is not None and (lacking := [one for one in bundle.left_out if one.startswith(GOLDEN)]):
        raise Refused(f"{', '.join(lacking)}: too large for the bundle, so no candidate can be asked for {key} here")
    answer = run.actual if candidate is None else run.isolated
    result = run_stage("parity", Stage(key, TITLES[key], lambda run: run.compare(key, answer(key))), lambda: run)
    if candidate is None and bundle.first and result.status is Status.ERROR:
        raise FormatError(f"the bundle's leaves cannot be compared ({first_line(result.message)})")
    return result


def _said_by(lm: LanguageModel, bundle: Bundle, golden: Any) -> dict[str, Any]:
    from pytest_fvparity.parity.at_hand import continuation_of, log_effects_of

    settings = settings_of(bundle)
    return {
        "continuation": continuation_of(lm, golden, settings),
        "log_effects": log_effects_of(lm, golden, settings, bundle.tolerances),
    }


def settings_of(bundle: Bundle) -> Settings:
    """What the run was asked for beside model and trials."""
    from fvcore.pipeline import Settings

    same = ("edit_layer", "n_top_heads", "token_class_idx", "alpha", "reference_profile")
    return Settings(**{name: getattr(bundle.profile.identity, name) for name in same})


def require_same(lm: LanguageModel, bundle: Bundle) -> None:
    """Raise Refused, naming the fields, for a model that is not the run's."""
    from fvcore.provenance import model_identity

    here, then = model_identity(lm, DIGESTS), bundle.profile.identity
    other = [
        f"{name} {getattr(then, name):.12}, here {here[name]:.12}"
        for name in DIGESTS
        if here[name] != getattr(then, name)
    ]
    if other:
        raise Refused(
            f"--model {lm.name} is not the model of the bundle, {bundle.profile.conditions.model}: {'; '.join(other)}"
        )


def status_of(bundle: Bundle, result: StageResult, by_candidate: bool) -> int:
    """0: this candidate agrees. 1: the failure is there. 3: it could not be judged, or the leaves do not show it."""
    if result.status is Status.PASS:
        return PASSED if by_candidate else UNJUDGED
    return FAILED if result.status is Status.FAIL else UNJUDGED


def is_same(first: First | None, found: Finding | None) -> bool:
    """Whether the same place holds the same two values. The words of some findings say more where a model is at hand."""
    if first is None or found is None:
        return first is None and found is None
    names = ("where", "expected", "actual")
    return all(repr(getattr(first, name)) == repr(getattr(found, name)) for name in names)


def told(bundle: Bundle, result: StageResult, by_candidate: bool) -> Iterator[str]:
    """What was run, what it said, and what is said now; each text is the file's own and acts nowhere once escaped."""
    identity, conditions = bundle.profile.identity, bundle.profile.conditions
    yield f"{bundle.key} of {identity.dataset}/{identity.fixed_trials_id}, {conditions.model}, {bundle.written_at}"
    yield f"candidate then: {bundle.candidate}; {len(bundle.places)} of {identity.n_trials} trials are in the file"
    for name, (golden, then) in bundle.golden_profile.diff_conditions(bundle.profile).items():
        yield f"condition {name}: golden {golden}, then {then}"
    found, pattern = result.verdict.first_mismatch, result.verdict.details.get("signature")
    same = is_same(bundle.first, found) and (found is not None or first_line(result.message) == bundle.message)
    if result.status is Status.PASS:
        agrees = f"{result.verdict.compared} values agree"
        yield (
            f"PASS: {agrees}" if by_candidate else f"{agrees}: the failure is not in the leaves; it takes the candidate"
        )
    else:
        there = same or (by_candidate and found and bundle.first and found.where == bundle.first.where)
        where = "as in the run" if same else "at the same place" if there else "otherwise than in the run"
        yield f"{result.status}: {where}"
        yield from _finding(found, pattern) if found else [first_line(result.message)]
        yield from _worst(result)
    # With a model at hand a run has more words for the same place.
    if not same or (bundle.first and found and (bundle.first.message, bundle.signature) != (found.message, pattern)):
        yield "the run said:"
        yield from _finding(bundle.first, bundle.signature) if bundle.first else [f"  {bundle.message}"]
    if bundle.fault in FAULTS:
        yield f"whose fault, as the run found: {FAULTS[bundle.fault]}"


def _worst(result: StageResult) -> Iterator[str]:
    """The difference off by most, in the words of the run's terminal; what is no difference of numbers is told already."""
    from pytest_fvparity.report import story
    from pytest_fvparity.report.report import check_of

    check = check_of(result)
    if (row := story.largest(check)) and story.measured(row):
        yield f"  worst {story.worst(check)}"


def _finding(found: First | Finding, pattern: str | None) -> Iterator[str]:
    yield f"  {found.where}: {found.message}"
    if found.expected is not None or found.actual is not None:
        yield f"    expected {found.expected!r:.200}"
        yield f"    actual   {found.actual!r:.200}"
    yield from [f"  {pattern}"] if pattern else []
