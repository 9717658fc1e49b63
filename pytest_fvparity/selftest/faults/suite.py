"""Faults around the checks: trials matched wrongly, goldens that are stale or written to, hooks left behind."""

import copy
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from fvcore import artifacts
from fvcore.artifacts import Artifact
from fvcore.compare import compare
from fvcore.embedded.random_models import random_model
from fvcore.gates import Suite, run_suite
from fvcore.model.hooks import add_to_residual, edit_heads, read_heads
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, trial_keys
from fvcore.prompts import REGIMES
from pytest_fvparity.golden import golden
from pytest_fvparity.golden.golden import Golden, require_comparable
from pytest_fvparity.parity.checks import STAGES, ParityRun
from pytest_fvparity.parity.implementation import INPUTS, Implementation
from pytest_fvparity.reference.reference import Recording
from pytest_fvparity.selftest.catalogue import Observed, Outcome, Plant, Plants, first_other, observed, replacing
from pytest_fvparity.selftest.faults.prompts import answer_alone, prompted_by
from pytest_fvparity.selftest.rig import Recorded, Rig, changed

PROVENANCE: dict[str, Any] = {
    "repository": "none",
    "commit": "none",
    "sources": {},
    "normalisations": {"applied": [], "already": []},
    "versions": {},
}


def matched_by_position(self: Pipeline, prompts: Artifact, fv_vector: Artifact) -> Artifact:
    right = Pipeline.injection_output(self, prompts, fv_vector)
    keys = trial_keys(right)
    shuffled = dict(zip([*keys[1:], keys[0]], keys, strict=True))
    leaves = {key: [leaf.partition("/")[2] for leaf in right if leaf.startswith(f"{key}/")] for key in keys}
    return {f"{key}/{leaf}": right[f"{shuffled[key]}/{leaf}"] for key in keys for leaf in leaves[key]}


def write(rig: Rig, path: Path, **others: Artifact) -> None:
    """The rig's golden as a folder, some of its artifacts replaced."""
    golden.write(Recording(rig.artifacts | others, PROVENANCE, rig.profile), path)


def judged_by(path: Path, rig: Rig, candidate: Implementation) -> Observed:
    """The six checks against the golden in a folder, opened before the candidate is asked, as in a run."""

    def subject() -> ParityRun:
        recorded = Golden.open(path)
        require_comparable(recorded.profile, rig.profile)
        return replace(rig, golden=recorded).run(candidate)

    return observed(list(run_suite(Suite("parity", STAGES, subject))))


def stale_folder(rig: Rig) -> Observed:
    tokenizer = rig.lm.tokenizer
    other = rig.on(LanguageModel.wrap(random_model(rig.family, len(tokenizer), seed=1), tokenizer, rig.lm.name))
    stale = "mean_activations"
    with tempfile.TemporaryDirectory() as scratch:
        own, others, mixed = (Path(scratch) / name for name in ("own", "others", "mixed"))
        write(rig, own)
        write(other, others)
        write(rig, mixed, **{stale: other.artifacts[stale]})
        shutil.copy(others / f"{stale}.safetensors", own)
        *refused, failing = (judged_by(path, rig, rig.candidate()) for path in (own, others, mixed))
    if (failing.outcome, failing.key) != (Outcome.FAILS, stale):
        return failing
    return first_other(refused, lambda seen: seen.outcome is Outcome.REFUSED)


def overwritten_on_disk(rig: Rig) -> Observed:
    """By a candidate that runs its whole pipeline when it is first asked, and saves what it made."""

    def prompt_boundary(self: Pipeline) -> Artifact:
        made: dict[str, Artifact] = {}
        for key, inputs in INPUTS.items():
            made[key] = getattr(Pipeline, key)(self, *(made[name] for name in inputs))
            artifacts.save(made[key], path / key)
        return made["prompt_boundary"]

    faulty = rig.candidate(prompt=prompted_by(answer_alone), prompt_boundary=prompt_boundary)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "golden"
        write(rig, path)
        seen = judged_by(path, rig, faulty)
    if seen.outcome is Outcome.PASSES:
        return Observed(Outcome.PASSES, None, "a faulty candidate wrote over the golden, and all checks pass")
    return Observed(Outcome.SUITE, None, seen.message)


def overwritten_in_memory(rig: Rig) -> Observed:
    def slot_map(self: Pipeline, prompts: Any) -> Artifact:
        for key in trial_keys(prompts):
            for regime in REGIMES:
                prompts[f"{key}/{regime}/input_ids"].insert(0, self.lm.tokenizer.bos_token_id)
        return Pipeline.slot_map(self, prompts)

    own = replace(rig, golden=Recorded(copy.deepcopy(rig.artifacts)))
    said = observed(own.judge(rig.candidate(slot_map=slot_map)))
    for key, artifact in rig.artifacts.items():
        difference = compare(artifact, own.artifacts[key]).first_mismatch
        if difference:
            return Observed(Outcome.PASSES, None, f"the golden was changed: {difference.where} {difference.message}")
    return Observed(Outcome.SUITE, None, said.message)


def next_run_after(raises: Callable[[Pipeline], None], rig: Rig) -> Observed:
    """What a sound candidate is told after one that raises, on a model that both share."""

    def top_heads(self: Pipeline, *inputs: Artifact) -> Artifact:
        raises(self)
        raise AssertionError("unreachable: the candidate raises")

    shared = replace(rig, lm=changed(rig.lm))  # what is left on it must not reach the rig
    before = n_hooks(shared.lm.hf)
    first = observed(shared.judge(shared.candidate(top_heads=top_heads)))
    if (first.outcome, first.key) != (Outcome.ERRORS, "top_heads"):
        return first
    then = observed(shared.judge(shared.candidate()))
    if then.outcome is not Outcome.PASSES:
        return then
    if left := n_hooks(shared.lm.hf) - before:
        return Observed(Outcome.PASSES, None, f"{left} hook(s) left on the model, and nobody says so")
    return Observed(Outcome.SUITE, None, first.message)


def n_hooks(hf: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


def raises_in_fvcores_hooks(self: Pipeline) -> None:
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


def raises_beside_its_own_hook(self: Pipeline) -> None:
    def silence_a_head(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        heads = args[0].clone()
        heads[..., : self.lm.d_head] = 0
        return (heads,)

    handle = self.lm.o_proj(0).register_forward_pre_hook(silence_a_head)
    probabilities = self.lm.logits(self.lm.ids([1, 2]))[0, -1].softmax(-1)
    probabilities[len(probabilities)]  # an index past the vocabulary
    handle.remove()


def leaving(leave: Callable[[LanguageModel], object]) -> Plant:
    """A candidate that leaves something on the model after its means; the next one must find nothing of it."""

    def mean_activations(self: Pipeline, *inputs: Artifact) -> Artifact:
        answer = Pipeline.mean_activations(self, *inputs)
        leave(self.lm)
        return answer

    def plant(rig: Rig) -> Observed:
        shared = replace(rig, lm=changed(rig.lm))
        seen = observed(shared.judge(shared.candidate(mean_activations=mean_activations)))
        then = observed(shared.judge(shared.candidate()))
        return seen if then.outcome is Outcome.PASSES else then

    return plant


def scaled(lm: LanguageModel) -> None:
    with torch.no_grad():
        cast("torch.Tensor", lm.o_proj(1).weight).mul_(1.5)


def scaled_through_data(lm: LanguageModel) -> None:
    cast("torch.Tensor", lm.o_proj(1).weight).data *= 1.5


def patched(lm: LanguageModel) -> None:
    lm.o_proj(0).forward = lambda x: 0 * x


def swapped(lm: LanguageModel) -> None:
    lm.blocks[0], lm.blocks[1] = lm.blocks[1], lm.blocks[0]


def reads_hidden_states(lm: LanguageModel) -> None:
    found = lm.hf(input_ids=lm.ids([1, 2]), output_hidden_states=True).hidden_states
    assert len(found) > lm.n_layers, "the library's hooks are gone"


def edited(artifact: Artifact) -> None:
    with torch.inference_mode():
        artifacts.tensor_leaf(artifact, "mean_activations").mul_(1.05)


def edits_its_input(self: Pipeline, *inputs: Artifact) -> Artifact:
    answer = Pipeline.top_heads(self, *inputs)
    edited(inputs[2])
    return answer


def edits_its_answer(rig: Rig) -> Observed:
    given: list[Artifact] = []

    def mean_activations(self: Pipeline, *inputs: Artifact) -> Artifact:
        given.append(Pipeline.mean_activations(self, *inputs))
        return given[-1]

    def top_heads(self: Pipeline, *inputs: Artifact) -> Artifact:
        edited(given[-1])
        return Pipeline.top_heads(self, *inputs)

    return replacing(mean_activations=mean_activations, top_heads=top_heads)(rig)


PLANTS: dict[str, Plants] = {
    "F70": replacing(injection_output=matched_by_position),
    "F71": stale_folder,
    "F72": (overwritten_on_disk, overwritten_in_memory),
    "F73-state": tuple(map(leaving, (scaled, scaled_through_data, patched, swapped, lambda lm: lm.hf.train()))),
    "F73-library": leaving(reads_hidden_states),
    "F73-input": replacing(top_heads=edits_its_input),
    "F73-answer": edits_its_answer,
    "F73": (partial(next_run_after, raises_in_fvcores_hooks), partial(next_run_after, raises_beside_its_own_hook)),
}
