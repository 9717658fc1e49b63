"""The six checks, in the pipeline's order. Read this page first.

Every check compares what the candidate says at one key with what the golden says. In a run the candidate is *chained*:
it is handed its own earlier artifacts. A key that fails, and with `--fv-keep-going` every key behind one that failed, is
judged once more *isolated*, on the golden's artifacts: if it fails there, the fault is its own, otherwise it comes from
earlier keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fvcore.gates import Finding, NotHeld, NotProvided, PartlyProvided, Stage, Verdict, merge, said
from pytest_fvparity.drill import drilled
from pytest_fvparity.parity.asking import InHand, formed
from pytest_fvparity.parity.custody import left_by_candidate, require_unspoilt
from pytest_fvparity.parity.implementation import CHECK_KEYS, INPUTS, PER_TRIAL_KEYS, Answers, Implementation, copied
from pytest_fvparity.parity.partial import FURTHER, HELD_TO, IN_LOGPROB, LACKS, LAST_SLOT, completed, offered
from pytest_fvparity.parity.refinements import REFINEMENTS
from pytest_fvparity.parity.signatures import signed
from pytest_fvparity.parity.where import placed

if TYPE_CHECKING:
    from torch import nn

    from fvcore.artifacts import Artifact
    from fvcore.model.model import LanguageModel
    from pytest_fvparity.golden.part import Part
    from pytest_fvparity.parity.at_hand import Continuation, LogEffects
    from pytest_fvparity.parity.tolerances import Tolerances

TITLES = {
    "prompt_boundary": "Prompt and token boundary",
    "slot_map": "Slot map",
    "mean_activations": "Mean head activations",
    "top_heads": "Indirect effects and top heads",
    "fv_vector": "Function vector",
    "injection_output": "Injection output",
}

AXES: dict[str, tuple[str, ...]] = {
    "mean_activations": ("layer", "head", "slot", "dim"),
    LAST_SLOT: ("layer", "head", "dim"),
    "cie": ("trial", "layer", "head", "token_class"),
    "cie_logprob": ("trial", "layer", "head", "token_class"),
    "aie": ("layer", "head"),
    "aie_logprob": ("layer", "head"),
    "scores": ("rank",),
    "function_vector": ("dim",),
    "head_terms": ("rank", "dim"),
    "base_logits": ("token_id",),
    "with_logits": ("token_id",),
}

NOT_PROVIDED = "not_provided"
"""Under which a verdict's details say what of the key the candidate does not provide."""

PROVES_NOTHING = "the tolerance is as large as the reference's own values, so that zeros would pass"


@dataclass
class Memory:
    """What is kept from one stage of a suite to the next: the candidate's artifacts, and what became of the keys."""

    expected: dict[str, Artifact] = field(default_factory=dict)
    actual: dict[str, Artifact] = field(default_factory=dict)
    # Whether a key agrees on the candidate's own inputs, also of keys whose stage was not selected.
    agrees: dict[str, bool] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    # Keys that differ from the golden by a tie alone: later keys take the golden's choice, or they would differ too.
    tied: set[str] = field(default_factory=set)
    # Keys of which the candidate does not provide something -> what that is; later keys were handed the golden's of it.
    lent: dict[str, str] = field(default_factory=dict)
    # Keys for which the candidate said something else when it was asked again, and where.
    unsteady: dict[str, Finding] = field(default_factory=dict)
    # What the candidate has in hand; what of it changed, and what was left on the model, since the last stage.
    in_hand: InHand = field(default_factory=InHand)
    left: list[Finding] = field(default_factory=list)
    # By how many bytes memory grew at most while the candidate worked on a key.
    peak: dict[str, int] = field(default_factory=dict)


@dataclass
class ParityRun:
    """The subject of a parity suite: both sides, as the fixtures give them, and the suite's memory."""

    candidate: Implementation
    golden: Implementation
    tolerances: Tolerances
    max_trials: int | None = None
    memory: Memory = field(default_factory=Memory)
    model: nn.Module | None = None  # what a candidate may leave hooks on, and other things
    tokenizer: Any = None  # its own
    continuation: Continuation | None = None  # None: generated ids are compared without a word on near ties
    log_effects: LogEffects | None = None  # the golden's, for who measures in log-probabilities
    reference: Callable[[], LanguageModel] | None = None  # loads a model of its own, if a failing mean is drilled into
    repeat: int = 1  # how often the candidate is asked for each key
    # Keeps a failure in a file; says what kept it from that, if anything did.
    keep: Callable[[ParityRun, str, Verdict | Exception], str] | None = None

    def __post_init__(self) -> None:
        if getattr(self.candidate, "effects", None) == IN_LOGPROB:
            self.tolerances = replace(self.tolerances, held_to=HELD_TO)

    @property
    def part(self) -> Part:
        """What the golden holds of a recording; one of a user's own make holds all."""
        from pytest_fvparity.golden.part import WHOLE

        part: Part = getattr(self.golden, "part", WHOLE)
        return part

    def expected(self, key: str) -> Artifact:
        """The golden's artifact. It is asked for once, and only copies of it are handed out of here."""
        if key not in self.memory.expected:
            inputs = [copied(self.expected(name)) for name in INPUTS[key]]
            self.memory.expected[key] = getattr(self.golden, key)(*inputs)
        return self.memory.expected[key]

    def actual(self, key: str) -> Artifact:
        """The candidate's artifact on its own inputs (chained); computed once."""
        if key not in self.memory.actual:
            # Who has all answers already needs no input, nor a golden that could stand in for one.
            names = () if isinstance(self.candidate, Answers) else INPUTS[key]
            inputs = [self._chained_input(name) for name in names]
            self.memory.actual[key] = self._ask(key, inputs)
        return self.memory.actual[key]

    def chained_again(self, key: str) -> Artifact:
        """The candidate's answer on its own inputs, asked for once more."""
        return self._ask(key, [self._chained_input(name) for name in INPUTS[key]])

    def is_given_the_goldens(self, key: str) -> bool:
        """Whether the candidate's own inputs of a key are the golden's, to the last bit."""
        from fvcore.compare import compare

        return all(compare(self.expected(name), self._chained_input(name)).passed for name in INPUTS[key])

    def isolated(self, key: str) -> Artifact:
        """The candidate's artifact on the golden's inputs."""
        return self._ask(key, [self.expected(name) for name in INPUTS[key]])

    def compare(self, key: str, actual: Artifact) -> Verdict:
        from fvcore.compare import compare
        from pytest_fvparity.golden.part import NOT_COMPARED

        expected = self.expected(key)
        if key in PER_TRIAL_KEYS:
            expected, actual = self._limited(expected), self._limited(actual)
        whole = actual
        expected, actual, left_out = self.part.cut(key, expected, actual, _axes)
        offer = offered(key, expected, actual, getattr(self.candidate, "effects", None), self.log_effects)
        expected = offer.expected
        actual = {leaf: value for leaf, value in actual.items() if leaf in expected or leaf not in FURTHER}
        if not actual:
            raise NotProvided(f"the candidate gave none of {offer.absent}")
        verdict = self.part.placed(key, compare(expected, actual, self.tolerances.of(key), _axes), _axes)
        if not verdict.compared:
            return Verdict((Finding(key, "nothing was compared: no leaf holds a value"),), mismatch_count=1)
        details = dict(verdict.details)
        largest = details.pop("largest", {})
        rows = [{**row, **largest.get(row["leaf"], {})} for row in self.tolerances.table(key, expected)]
        verdict = replace(verdict, details={**details, "tolerances": rows})
        if offer.absent:
            verdict = replace(verdict, details={**verdict.details, NOT_PROVIDED: offer.absent})
        unsteady = self.memory.unsteady.get(key)
        if key in REFINEMENTS:
            verdict = REFINEMENTS[key](self, verdict, expected, whole)
        if not verdict.passed:
            verdict = placed(self, key, signed(self, key, verdict, expected, whole, _axes), expected, actual, _axes)
        if offer.own_ranking:
            self.memory.tied.add(key)
        lent = " and ".join(self.memory.lent[name] for name in INPUTS[key] if name in self.memory.lent)
        notes = [
            *([f"{NOT_COMPARED}{left_out}"] if left_out else []),
            *([offer.note] if offer.note else []),
            *([f"{LACKS}{offer.absent}"] if offer.absent and not verdict.passed else []),
            *([f"judged on the reference's {lent}, for the candidate provides none"] if lent else []),
            *_notes(self.candidate, key),
            *(f"{leaf}: {PROVES_NOTHING}" for leaf in self.tolerances.proving_nothing(key, expected)),
        ]
        warnings = [Finding(key, note, blocking=False) for note in notes]
        peak = {"peak_memory_mib": round(self.memory.peak[key] / 2**20, 1)} if key in self.memory.peak else {}
        measurements = {**verdict.measurements, **peak}
        verdict = replace(verdict, findings=(*verdict.findings, *warnings), measurements=measurements)
        # Behind all refinements: what changes from one time to the next is no tie.
        return merge(Verdict((unsteady,), mismatch_count=1), verdict) if unsteady else verdict

    def chained(self, key: str) -> Verdict:
        """The verdict on the candidate's own inputs; it is remembered, also when the candidate fails."""
        self.memory.agrees[key] = False
        try:
            if not self.part.whole(key) and not self.expected(key):
                raise NotHeld(f"the golden has nothing of {key}: it is not compared")
            verdict = self.compare(key, self.actual(key))
        except NotProvided:
            self.memory.agrees[key] = True  # later keys take the golden's artifact in its place
            raise
        self.memory.agrees[key] = verdict.passed
        return verdict

    def agrees(self, key: str) -> bool:
        """Whether a key agrees on the candidate's own inputs; judged now if its stage was not selected."""
        if key not in self.memory.agrees:
            with suppress(Exception):
                self.chained(key)
        return self.memory.agrees[key]

    def _chained_input(self, key: str) -> Artifact:
        try:
            actual = self.actual(key)
        except NotProvided:
            if not self.part.whole(key):
                raise
            self.memory.lent[key] = key
            return self.expected(key)  # what a candidate leaves out is not its fault at a later key
        if self.part.whole(key):
            actual = self._completed(key, actual)
        if key == "top_heads":
            self.agrees(key)  # whether it is a tie must be known, also when that stage was not selected
        return self.expected(key) if key in self.memory.tied else actual

    def _completed(self, key: str, actual: Artifact) -> Artifact:
        """With what the candidate does not provide of it, which is not its fault at a later key either."""
        expected = self.expected(key)
        if absent := offered(key, expected, actual).absent:
            self.memory.lent[key] = f"{absent} of {key}"
        return completed(key, expected, actual)

    def _ask(self, key: str, inputs: Sequence[Artifact]) -> Artifact:
        from fvcore.model.memory import peak_memory

        if (method := getattr(self.candidate, key, None)) is None:
            raise NotProvided(f"the candidate {type(self.candidate).__name__} has no method {key!r}")
        if key == "injection_output" and inputs:
            inputs = [self._limited(inputs[0]), *inputs[1:]]

        def answer() -> Artifact:
            hand = self.memory.in_hand
            artifact = formed(key, method(*hand.handed(key, inputs)), self.expected(key))
            return hand.took(key, artifact)

        try:
            # Memory that the candidate takes beside its weights; nobody's who only looks up what was recorded.
            with (
                left_by_candidate(self, key),
                nullcontext() if isinstance(self.candidate, Answers) else peak_memory() as peak,
            ):
                given = answer() if self.repeat == 1 else self._asked_again(key, answer)
        finally:
            self.memory.left += self.memory.in_hand.changed(key, _axes)
        if peak is not None:
            self.memory.peak[key] = max(peak.n_bytes, self.memory.peak.get(key, 0))
        return given

    def _asked_again(self, key: str, answer: Callable[[], Artifact]) -> Artifact:
        """The first answer; where a later one is another is remembered, for then no comparison says anything.

        Two are the same if every value is, to the last bit, but that 0.0 and -0.0 are one value, and all NaN are.
        """
        from fvcore.compare import compare

        first = answer()
        for _ in range(self.repeat - 1):
            if changed := compare(first, answer(), axes=_axes).first_mismatch:
                by = "" if changed.abs_diff is None else f": differs by {changed.abs_diff:.3g}"
                message = f"is not the same when asked again (asked {self.repeat} times){by}"
                self.memory.unsteady.setdefault(key, replace(changed, message=message))
                break
        return first

    def _limited(self, artifact: Artifact) -> Artifact:
        """The leaves of the trials that are compared: the golden's first ones."""
        if self.max_trials is None:
            return artifact
        from fvcore.artifacts import limited_to
        from fvcore.pipeline import trial_keys

        return limited_to(artifact, trial_keys(self.expected("prompt_boundary"))[: self.max_trials])


def _notes(candidate: Implementation, key: str) -> list[str]:
    """What a candidate says of a key beyond its leaves, if it says anything; a note decides nothing."""
    notes = getattr(candidate, "notes", None)
    if not callable(notes):
        return []
    try:
        found = notes(key) or ()
        return [found] if isinstance(found, str) else [str(note) for note in found]
    except Exception as error:
        return [f"notes of {key} failed: {type(error).__name__}: {error}"]


def check(run: ParityRun, key: str) -> Verdict:
    """The check of one key: chained first; if that fails, isolated, to say whose fault it is."""
    require_unspoilt(run.model)
    try:
        verdict = _judge(run, key)
    except Exception as error:
        if not isinstance(error, NotProvided):
            run.memory.failed.add(key)
            if run.keep:
                run.keep(run, key, error)
        for found in run.memory.left:
            error.add_note(found.message)
        raise
    finally:  # what is left each time it is asked is told once
        left, run.memory.left = list({found.message: found for found in run.memory.left}.values()), []
    if left:
        verdict = merge(Verdict(tuple(left), mismatch_count=len(left), details={"fault": "own"}), verdict)
    if not verdict.passed:
        run.memory.failed.add(key)
        with left_by_candidate(run, key):  # it is asked once more there, and what it leaves is told already
            verdict = drilled(run, key, verdict)
        run.memory.left = []
        if why := run.keep and run.keep(run, key, verdict):
            verdict = replace(verdict, findings=(*verdict.findings, Finding(key, why, blocking=False)))
    elif absent := verdict.details.get(NOT_PROVIDED):
        told = "".join(f"; {note}" for note in _notes(run.candidate, key))
        raise PartlyProvided(f"{verdict.compared} values agree with the reference; {LACKS}{absent}{told}", verdict)
    return verdict


def _judge(run: ParityRun, key: str) -> Verdict:
    can_isolate = all(map(run.part.whole, INPUTS[key]))  # the golden has this key's inputs, and all of each
    raised: Exception | None = None
    try:
        chained = run.chained(key)
    except NotProvided:
        raise
    except Exception as error:
        raised = error
    if raised is not None:
        # A broken earlier artifact can make this key's code fail: only then is the error not its own. What is raised on the
        # golden's inputs as well is told by itself: the two are one fault.
        if not INPUTS[key] or not can_isolate or not run.compare(key, run.isolated(key)).passed:
            raise raised
        broken = Finding(key, f"fails on the candidate's own inputs: {said(raised)}")
        return Verdict((broken,), compared=1, mismatch_count=1, details={"fault": _origin(run, key)})
    # Where it cannot be told whose fault it is, it is not guessed.
    if (chained.passed and not run.memory.failed) or not can_isolate:
        return chained
    try:
        isolated = run.compare(key, run.isolated(key)) if INPUTS[key] else chained
    except Exception:
        if chained.passed:
            raise
        isolated = chained  # its code fails on golden inputs: the fault is here, and the chained numbers locate it
    if chained.passed and isolated.passed:
        return chained
    fault = "own" if not isolated.passed and not chained.passed else _origin(run, key)
    # A fault of its own can cancel an earlier one: then only the golden's inputs show it.
    shown = isolated if chained.passed else chained
    details = {name: value for name, value in shown.details.items() if fault != "inherited" or name != "signature"}
    return replace(shown, details={**details, "fault": fault})  # a pattern would name a mistake that is not there


def _origin(run: ParityRun, key: str) -> str:
    """Why a key agrees on one side's inputs and differs on the other's."""
    if run.is_given_the_goldens(key):
        return "unsteady"
    if run.memory.agrees[key]:
        return "own"
    with suppress(Exception):
        if run.compare(key, run.chained_again(key)).passed:
            return "unsteady"
    return "accumulated" if all(run.agrees(name) for name in CHECK_KEYS if name in _feeding(key)) else "inherited"


def _feeding(key: str) -> set[str]:
    """Every key whose artifact reaches this one, directly or not."""
    return {name for direct in INPUTS[key] for name in (direct, *_feeding(direct))}


STAGES: tuple[Stage[ParityRun], ...] = tuple(Stage(key, TITLES[key], partial(check, key=key)) for key in CHECK_KEYS)


def _axes(leaf: str) -> Sequence[str]:
    return AXES.get(leaf.rpartition("/")[2], ())
