"""What goes into a failure's file: of the trials concerned both sides' leaves, at the key and at the keys it was given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.artifacts import Artifact, limited_to, trial_of
from fvcore.compare import EXACT, compare
from fvcore.gates import Finding, Verdict, said
from fvcore.pipeline import trial_keys
from fvcore.provenance import now
from pytest_fvparity.bundle import bundle as bundles
from pytest_fvparity.bundle.bundle import CANDIDATE, GOLDEN, MODEL, Allowed, Bundle, First
from pytest_fvparity.parity.implementation import INPUTS, PER_TRIAL_KEYS
from pytest_fvparity.parity.partial import FURTHER, IN_LOGPROB

if TYPE_CHECKING:
    from fvcore.profile import Profile
    from fvcore.trials.fixed import FixedTrials
    from pytest_fvparity.parity.checks import ParityRun

MOST_TRIALS = 4
"""Of keys whose leaves belong to single trials: that of the first finding, those of the largest, and others beside them."""


@dataclass(frozen=True)
class Keeper:
    """Writes the file of a run's earliest failure into `folder`; what else a bundle says of the run."""

    folder: Path
    trials: FixedTrials
    profile: Profile
    golden_profile: Profile
    candidate: str

    def __call__(self, run: ParityRun, key: str, told: Verdict | Exception) -> str:
        """What kept it from being written, if anything did: a verdict stands whatever becomes of its file."""
        if run.memory.failed - {key}:
            return ""
        try:
            bundles.write(bundles.place(self.folder, key), self.bundle(run, key, told))
        except Exception as error:
            return f"no bundle was written: {said(error)}"
        return ""

    def bundle(self, run: ParityRun, key: str, told: Verdict | Exception) -> Bundle:
        verdict = told if isinstance(told, Verdict) else Verdict()
        first, kept = verdict.first_mismatch, concerned(run, key, verdict)
        file, places = self.trials.file, [one.trial_idx for one in self.trials.trials if one.key in kept]
        tokenizer = Path(file.meta.model_name_for_tokenizer)  # a hub's id, or a path of this machine
        meta: dict[str, Any] = {"n_trials": len(places), "dataset_json": Path(file.meta.dataset_json).name}
        meta |= {"model_name_for_tokenizer": tokenizer.name} if tokenizer.is_absolute() else {}
        records = [file.trials[at] for at in places]
        effects = getattr(run.candidate, "effects", None)
        leaves, left_out = leaves_of(run, key, kept)
        fields: dict[str, Any] = dict(
            schema_version=bundles.SCHEMA_VERSION,
            written_at=now(),
            key=key,
            first=_first(first) if first else None,
            message="" if isinstance(told, Verdict) else _text(said(told)),
            **{name: verdict.details.get(name) for name in ("signature", "fault")},
            mismatch_count=verdict.mismatch_count,
            compared=verdict.compared,
            candidate=self.candidate,
            effects=effects if isinstance(effects, str) else None,
            profile=self.profile,
            golden_profile=self.golden_profile,
            target_regime=self.trials.target_regime,
            trials=file.model_copy(
                update={"meta": file.meta.model_copy(update=meta), "splits": None, "trials": records}
            ),
            places=places,
            allowed=_allowed(run, key),
            noise=dict(run.tolerances.noise.largest.get(key, {})),
            slices=dict(run.part.slices),
            incomplete=list(run.part.incomplete),
            left_out=left_out,
            leaves=leaves,
        )
        return Bundle(**fields)


def concerned(run: ParityRun, key: str, verdict: Verdict) -> list[str]:
    """The trials whose leaves are kept, in their order: all of a key that is a mean over them."""
    every = trial_keys(run.expected("prompt_boundary"))
    if key not in PER_TRIAL_KEYS:
        return every
    every = every[: run.max_trials]
    places = [finding.where for finding in verdict.findings if finding.blocking]
    examples = [kind["example"] for kind in verdict.details.get("where", {}).get("kinds", ()) if kind["example"]]
    shown = [row["where"] for row in sorted(examples, key=lambda row: -(row["abs_diff"] or math.inf))]
    found = filter(None, map(trial_of, [*places[:1], *shown, *places]))
    first = list(dict.fromkeys([*found, *every]))[:MOST_TRIALS]
    return [trial for trial in dict.fromkeys([*every, *first]) if trial in first]


def leaves_of(run: ParityRun, key: str, kept: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The leaves by their names in a bundle, and what there was no room for: the largest of what the key was given."""
    known = run.memory.actual
    golden = {name: run.expected(name) for name in (key, *INPUTS[key])}
    golden[key] = _with_log_effects(run, key)
    given = {name: known[name] for name in INPUTS[key] if name in known}
    own = {name: artifact for name, artifact in given.items() if not compare(golden[name], artifact).passed}
    parts = {(GOLDEN, name): artifact for name, artifact in golden.items()}
    parts |= {(CANDIDATE, name): artifact for name, artifact in own.items()}
    parts |= {(CANDIDATE, key): known[key]} if key in known else {}
    parts = {at: limited_to(artifact, kept) for at, artifact in parts.items()}
    parts[MODEL, key] = {name: value for name, value in _continuations(run, key).items() if trial_of(name) in kept}
    held, room = dict[str, Any](), bundles.MOST_BYTES - bundles.MOST_TEXT
    left_out = []
    for (side, name), artifact in sorted(parts.items(), key=lambda part: (part[0][1] != key, _n_bytes(part[1]))):
        room -= _n_bytes(artifact)
        if room < 0 and name != key:
            left_out.append(f"{side}/{name}")
            room += _n_bytes(artifact)
        else:
            held |= {f"{side}/{name}/{leaf}": value for leaf, value in artifact.items()}
    return held, left_out


def _n_bytes(artifact: Artifact) -> int:
    return sum(getattr(value, "nbytes", 0) for value in artifact.values())


def _with_log_effects(run: ParityRun, key: str) -> Artifact:
    """The golden's artifact, with what the model at hand says of it where the candidate measures another quantity."""
    expected = run.expected(key)
    asked = key == "top_heads" and getattr(run.candidate, "effects", None) == IN_LOGPROB
    if not asked or run.log_effects is None or "cie_logprob" in expected:
        return expected
    return {**expected, "cie_logprob": run.log_effects()}


def _continuations(run: ParityRun, key: str) -> dict[str, Any]:
    """What the model at hand was asked for while the key was compared: by trial and mode."""
    asked, found = run.continuation, dict[str, Any]()
    if key != "injection_output" or asked is None or key not in run.memory.actual:
        return found

    def recording(trial: str, mode: str, generated: Sequence[int]) -> Any:
        found[f"{trial}/{mode}"] = asked(trial, mode, generated)
        return found[f"{trial}/{mode}"]

    replace(run, continuation=recording).compare(key, run.actual(key))
    return found


def _allowed(run: ParityRun, key: str) -> list[Allowed]:
    """By the names of the leaves, and of those that a candidate's may be held to."""
    tolerance_of: Callable[[str], Any] = run.tolerances.of(key)
    names = FURTHER | {leaf.rpartition("/")[2] for leaf in (*run.expected(key), *run.memory.actual.get(key, ()))}
    in_force = {name: tolerance_of(name) for name in sorted(names)}
    fields = ("rule", "atol", "rtol", "of_max", "of_norm")
    return [
        Allowed(leaf=leaf, **{name: getattr(one, name) for name in fields})
        for leaf, one in in_force.items()
        if one is not EXACT
    ]


def _first(finding: Finding) -> First:
    values: Mapping[str, Any] = {"expected": finding.expected, "actual": finding.actual}
    return First(
        where=_text(finding.where), message=_text(finding.message), coordinate=dict(finding.coordinate), **values
    )


def _text(words: str) -> str:
    return words.encode(errors="backslashreplace").decode()[:4000]
