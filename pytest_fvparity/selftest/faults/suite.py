"""Faults around the checks: trials matched wrongly, goldens that are stale or written to, hooks left behind."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fvcore import artifacts
from fvcore.artifacts import Artifact
from fvcore.compare import compare
from fvcore.embedded.random_models import random_model
from fvcore.gates import StageResult, Suite, run_suite
from fvcore.model.hooks import add_to_residual, edit_heads, read_heads
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, trial_keys
from fvcore.prompts import REGIMES, Prompt
from fvcore.trials import Trial
from pytest_fvparity.golden import golden
from pytest_fvparity.golden.golden import Golden, require_comparable
from pytest_fvparity.parity.checks import STAGES, ParityRun
from pytest_fvparity.parity.implementation import INPUTS, Implementation
from pytest_fvparity.parity.tolerances import Tolerances
from pytest_fvparity.reference.reference import Recording
from pytest_fvparity.selftest.bed import Bed, Recorded, bed_of
from pytest_fvparity.selftest.catalogue import Observed, Outcome, candidate_fault, fault, observed

PROVENANCE: dict[str, Any] = {
    "repository": "none",
    "commit": "none",
    "sources": {},
    "normalisations": {"applied": [], "already": []},
    "versions": {},
}


@candidate_fault(
    "F70",
    "trials matched by their number alone",
    "results stand in the order of a shuffled file and are given out by position",
    "injection_output",
    "target_id differs, and is named first",
)
def matched_by_position(bed: Bed) -> Implementation:
    def injection_output(self: Pipeline, prompts: Artifact, fv_vector: Artifact) -> Artifact:
        right = Pipeline.injection_output(self, prompts, fv_vector)
        keys = trial_keys(right)
        shuffled = dict(zip([*keys[1:], keys[0]], keys, strict=True))
        leaves = {key: [leaf.partition("/")[2] for leaf in right if leaf.startswith(f"{key}/")] for key in keys}
        return {f"{key}/{leaf}": right[f"{shuffled[key]}/{leaf}"] for key in keys for leaf in leaves[key]}

    return bed.candidate(injection_output=injection_output)


# ---------------------------------------------------------------- goldens on disk


def _write(bed: Bed, path: Path, **others: Artifact) -> None:
    """The bed's golden as a folder, some of its artifacts replaced."""
    golden.write(Recording(bed.golden.artifacts | others, PROVENANCE, bed.profile), path)


def _judge(bed: Bed, path: Path, candidate: Implementation) -> list[StageResult]:
    """The six checks against the golden in a folder, opened before the candidate is asked, as in a run."""

    def subject() -> ParityRun:
        recorded = Golden.open(path)
        require_comparable(recorded.profile, bed.profile)
        device = bed.profile.conditions.device
        return ParityRun(candidate, recorded, Tolerances.read(None, (), bed.lm.dtype, device))

    return list(run_suite(Suite("parity", STAGES, subject)))


@fault(
    "F71",
    "stale golden folder",
    "a tensor file of another model beside this one's labels; a whole folder of another model; a folder that was "
    "recorded with tensors of another model under this one's name",
    Outcome.REFUSED,
    None,
    "by the file's hash; by the profile; the last, which looks sound, fails at mean_activations",
)
def stale_folder(bed: Bed) -> Observed:
    hf = random_model(bed.family, len(bed.lm.tokenizer), seed=1)
    other = bed_of(bed.family, LanguageModel.wrap(hf, bed.lm.tokenizer, bed.lm.name), bed.trials, bed.settings)
    stale = "mean_activations"
    with tempfile.TemporaryDirectory() as scratch:
        own, others, mixed = (Path(scratch) / name for name in ("own", "others", "mixed"))
        _write(bed, own)
        _write(other, others)
        _write(bed, mixed, **{stale: other.golden.artifacts[stale]})
        shutil.copy(others / f"{stale}.safetensors", own)
        seen = [observed(_judge(bed, path, bed.candidate())) for path in (own, others, mixed)]
    if (seen[2].outcome, seen[2].key) != (Outcome.FAILS, stale):
        return seen[2]
    return next((s for s in seen[:2] if s.outcome is not Outcome.REFUSED), seen[0])


@fault(
    "F72",
    "golden overwritten by the candidate",
    "a faulty candidate writes its results over the golden's files before they are compared; a faulty candidate edits "
    "in place the lists that it is handed",
    Outcome.SUITE,
    None,
    "the checks compare the candidate with itself; or the golden is another after the run",
)
def overwritten_golden(bed: Bed) -> Observed:
    seen = [_overwritten_on_disk(bed), _overwritten_in_memory(bed)]
    return next((s for s in seen if s.outcome is not Outcome.SUITE), seen[0])


def _overwritten_on_disk(bed: Bed) -> Observed:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "golden"
        _write(bed, path)
        results = _judge(bed, path, _writes_results(bed, path))
    if observed(results).outcome is Outcome.PASSES:
        return Observed(Outcome.PASSES, None, "a faulty candidate wrote over the golden, and all checks pass")
    return Observed(Outcome.SUITE, None, observed(results).message)


def _writes_results(bed: Bed, path: Path) -> Implementation:
    """A candidate that runs its whole pipeline when it is first asked, and saves what it found."""

    def prompt(self: Pipeline, trial: Trial, regime: str) -> Prompt:
        alone = self.lm.tokenizer(trial.query.output.strip(), add_special_tokens=False).input_ids
        return replace(Pipeline.prompt(self, trial, regime), answer_ids=tuple(alone))

    def prompt_boundary(self: Pipeline) -> Artifact:
        found: dict[str, Artifact] = {}
        for key, inputs in INPUTS.items():
            found[key] = getattr(Pipeline, key)(self, *(found[name] for name in inputs))
            artifacts.save(found[key], path / key)
        return found["prompt_boundary"]

    return bed.candidate(prompt=prompt, prompt_boundary=prompt_boundary)


def _overwritten_in_memory(bed: Bed) -> Observed:
    def slot_map(self: Pipeline, prompts: Any) -> Artifact:
        for key in trial_keys(prompts):
            for regime in REGIMES:
                prompts[f"{key}/{regime}/input_ids"].insert(0, self.lm.tokenizer.bos_token_id)
        return Pipeline.slot_map(self, prompts)

    own = replace(bed, golden=Recorded(copy.deepcopy(bed.golden.artifacts)))
    said = observed(own.judge(bed.candidate(slot_map=slot_map)))
    for key, artifact in bed.golden.artifacts.items():
        difference = compare(artifact, own.golden.artifacts[key]).first_mismatch
        if difference:
            return Observed(Outcome.PASSES, None, f"the golden was changed: {difference.where} {difference.message}")
    return Observed(Outcome.SUITE, None, said.message)


# ---------------------------------------------------------------- hooks


@fault(
    "F73",
    "hook left registered after an exception",
    "an exception inside each of fvcore's hooks; a candidate that sets its own hook and raises before it removes it",
    Outcome.SUITE,
    None,
    "hooks on the model after the run; the next run, of a sound candidate, fails",
)
def hook_left_behind(bed: Bed) -> Observed:
    seen = [_next_run(bed, raises) for raises in (_raises_in_fvcores_hooks, _raises_beside_its_own_hook)]
    return next((s for s in seen if s.outcome is not Outcome.SUITE), seen[0])


def _next_run(bed: Bed, raises: Callable[[Pipeline], None]) -> Observed:
    """What a sound candidate is told after one that raises, on a model that both share."""

    def top_heads(self: Pipeline, *inputs: Artifact) -> Artifact:
        raises(self)
        raise AssertionError("unreachable: the candidate raises")

    hf = copy.deepcopy(bed.lm.hf)  # what is left on it must not reach the bed
    shared = replace(bed, lm=LanguageModel.wrap(hf, bed.lm.tokenizer, bed.lm.name))
    before = _n_hooks(hf)
    first = observed(shared.judge(shared.candidate(top_heads=top_heads)))
    if (first.outcome, first.key) != (Outcome.ERRORS, "top_heads"):
        return first
    then = observed(shared.judge(shared.candidate()))
    if then.outcome is not Outcome.PASSES:
        return then
    if left := _n_hooks(hf) - before:
        return Observed(Outcome.PASSES, None, f"{left} hook(s) left on the model, and nobody says so")
    return Observed(Outcome.SUITE, None, first.message)


def _n_hooks(hf: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


def _raises_in_fvcores_hooks(self: Pipeline) -> None:
    def fail(heads: torch.Tensor) -> None:
        raise IndexError("index 99 is out of bounds")

    ids, vector = self.lm.ids([1, 2]), torch.zeros(self.lm.d_model)
    with suppress(IndexError), read_heads(self.lm) as heads:
        self.lm.logits(ids)
        fail(heads[0])
    with suppress(IndexError), add_to_residual(self.lm, 0, vector):
        self.lm.logits(ids)
        fail(vector)
    with edit_heads(self.lm, 0, fail):
        self.lm.logits(ids)


def _raises_beside_its_own_hook(self: Pipeline) -> None:
    def silence_a_head(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        heads = args[0].clone()
        heads[..., : self.lm.d_head] = 0
        return (heads,)

    handle = self.lm.o_proj(0).register_forward_pre_hook(silence_a_head)
    probabilities = self.lm.logits(self.lm.ids([1, 2]))[0, -1].softmax(-1)
    probabilities[len(probabilities)]  # an index past the vocabulary
    handle.remove()
