"""The search: where between a prompt's tokens and the mean over prompts the candidate leaves the reference.

The reference is a model loaded anew, run as fvcore runs it. What enters the output projection of the first bad layer
decides, because the means are made of nothing else: if it agrees on every trial, the difference is made after the
modules; if not, all modules before it are compared on the first trial where it differs.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from fvcore.model.hooks import read_heads
from fvcore.pipeline import slots_of, trial_keys
from pytest_fvparity.drill.candidate_modules import OtherTokens, modules_of
from pytest_fvparity.drill.conclusion import Conclusion
from pytest_fvparity.drill.differences import INPUT, OUTPUT, Difference, Point, difference, values_until
from pytest_fvparity.drill.readings import Trial, explanation, mean_of
from pytest_fvparity.parity.noise import FACTOR

if TYPE_CHECKING:
    from fvcore.slots import SlotMap
    from pytest_fvparity.drill import Run

KEY = "mean_activations"
Heads = Mapping[str, Tensor]
"""Trial -> (token, n_heads * d_head)."""


def search(run: Run, layer: int) -> Conclusion:
    """Drill into one layer, on the golden's clean prompts, one trial at a time."""
    with nothing_disturbed():
        return _Search(run, layer).conclusion()


class _Search:
    def __init__(self, run: Run, layer: int) -> None:
        assert run.reference is not None
        self.layer = layer
        prompts, slot_map = run.expected("prompt_boundary"), run.expected("slot_map")
        self.ids = {key: cast("list[int]", prompts[f"{key}/clean/input_ids"]) for key in trial_keys(prompts)}
        self.slots: dict[str, SlotMap] = {key: slots_of(slot_map, key, "clean") for key in self.ids}
        golden = cast("Tensor", run.expected(KEY)[KEY]).detach().double().cpu()
        with nothing_disturbed():
            self.lm = run.reference()
        self.width = self.lm.d_heads[layer]  # narrower heads stand in means with zeros behind them
        self.golden = golden[layer, ..., : self.width]
        self.allowed = run.tolerances.of(KEY)(KEY).allowed(golden)[layer, ..., : self.width]
        # The rule in force is about heads. For a module on another scale the same share of its own size is allowed:
        # rounding grows with what is summed, and the rule was chosen well above rounding and far below a fault.
        self.share = float(self.allowed.max()) / max(float(self.golden.abs().max()), 1e-30)
        self.o_proj = self.lm.spec.out_proj_path(layer)
        self.projections = {self.lm.spec.out_proj_path(n) for n in self.lm.head_layers}
        self.modules = modules_of(run.candidate, run.model, self.lm, (prompts, slot_map))

    def conclusion(self) -> Conclusion:
        reference = {key: self.reference_heads(ids) for key, ids in self.ids.items()}
        if not self.agree(means := self.means(reference)):
            return Conclusion("not_reproduced", self.not_reproduced(means))
        try:
            heads = self.modules.heads(self.lm, self.layer, self.ids)
        except OtherTokens as error:
            sentence = f"the candidate's model was given something else than the reference's prompt: {error}"
            return Conclusion("token_ids", sentence, error.trial, fed=self.modules.fed.get(error.trial, {}))
        if self.agree(self.means(heads)):
            return Conclusion("after_modules", self.after_modules(heads))
        return self.first_module(reference, heads)

    def reference_heads(self, ids: Sequence[int]) -> Tensor:
        """(token, n_heads * d_head)"""
        with nothing_disturbed(), torch.inference_mode(), read_heads(self.lm) as heads:
            self.lm.logits(self.lm.ids(ids))
        return heads[self.layer][0].flatten(1).cpu()

    def by_trial(self, heads: Heads) -> list[Trial]:
        return [(heads[key].reshape(-1, self.lm.n_heads, self.width), slots) for key, slots in self.slots.items()]

    def means(self, heads: Heads) -> Tensor:
        """(head, slot, d_head)"""
        return mean_of(self.by_trial(heads)).double()

    def candidates_means(self) -> Tensor:
        """The candidate's means of this layer."""
        return self.modules.means().detach().double().cpu()[self.layer, ..., : self.width]

    def agree(self, means: Tensor, other: Tensor | None = None) -> bool:
        """Whether means of this layer are the golden's, or others, by the rule in force."""
        other = self.golden if other is None else other
        return means.shape == other.shape and bool(((means - other).abs() <= self.allowed).all())

    def not_reproduced(self, means: Tensor) -> str:
        same = means.shape == self.golden.shape
        off = f"off by up to {float((means - self.golden).abs().max()):.3g}" if same else "of another shape"
        return (
            f"no module is blamed, for the model that --fv-model names ({self.lm.name}, loaded anew) does not give the "
            f"reference's means of this layer either: they are {off}. Other weights, attention implementation, library or "
            "machine than recorded?"
        )

    def after_modules(self, heads: Heads) -> str:
        sentence = (
            f"no module differs: what enters {self.o_proj} agrees on all {len(heads)} trials, so the difference is made "
            "after the modules: reading the heads, choosing positions, or averaging over slots."
        )
        means = self.candidates_means()
        if self.agree(means):
            return f"{sentence} Asked again, the candidate gave means that agree: it does not say the same twice"
        if known := explanation(self.by_trial(heads), means, self.allowed):
            return f"{sentence} Its means are what comes of {known}"
        wrong = ((means - self.golden).abs() > self.allowed).any(dim=-1).any(dim=0).nonzero().flatten().tolist()
        words = {slots.idx_map[first] for slots in self.slots.values() for first, _ in slots.idx_avg.values()}
        if set(wrong) <= words:
            return f"{sentence} Only slots of words with several tokens differ ({len(wrong)}): look at their average"
        return f"{sentence} {len(wrong)} of {means.shape[1]} slots differ"

    def first_module(self, reference: Heads, heads: Heads) -> Conclusion:
        at = Point(self.o_proj, INPUT)
        apart = {key: difference(at, reference[key], heads[key], self.share) for key in self.ids}
        beyond = (key for key, step in apart.items() if step.beyond)
        trial = next(beyond, None) or max(apart, key=lambda key: apart[key].largest)
        with nothing_disturbed():
            want = values_until(self.lm, self.ids[trial], self.layer)
        rows = self.modules.differences(trial, self.ids[trial], want, self.share)
        too = "" if self.agree(self.means(heads), self.candidates_means()) else READING

        def conclusion(kind: str, first: Difference | None, sentence: str) -> Conclusion:
            tolerance = f"at each position {self.share:.2g} of the reference's largest magnitude there"
            return Conclusion(kind, sentence + too, trial, first, rows, tolerance, self.modules.fed.get(trial, {}))

        if first := next((row for row in rows if row.beyond), None):
            sentence = f"the first that differs is {_where(first)}. {_why(first, rows, self.projections)}"
            return conclusion("module", first, sentence)
        if apart[trial].beyond:
            return conclusion("unsteady", None, f"{named(apart[trial])} {UNSTEADY}")
        first = _doubtful(rows) or next((row for row in rows if not row.equal), None)
        off = f"; the first that is off is {_where(first)}" if first else ""
        return conclusion("accumulated", first, TOGETHER + off)


TOGETHER = "no single module differs by more than is allowed, and together they do"
UNSTEADY = (
    "differs when all trials are run and agrees when this one is looked at: it comes with the other prompts of a batch, or "
    "by chance (dropout?)"
)
READING = ". The means it gives are not those of its own modules' heads either: the reading differs too"


def _where(step: Difference) -> str:
    at = ", ".join(f"{name} {i}" for name, i in step.coordinate.items())
    off = f" by {step.largest:.3g} (allowed {step.allowed:.2g}) at {at}: " if at else ""
    pair = f"expected {step.expected:.6g}, got {step.actual:.6g}" if at else ""
    form = f", {step.other_form}" if step.other_form else ""
    return f"{named(step)},{off}{pair}{form}"


def _doubtful(steps: Sequence[Difference]) -> Difference | None:
    """The first that is off by more than rounding: tolerances are noise times a factor."""
    return next((step for step in steps if step.largest * FACTOR > step.allowed), None)


def _why(first: Difference, rows: Sequence[Difference], projections: Collection[str]) -> str:
    """What lies between this point and the last one that agrees, and how well all before it does."""
    earlier = rows[: rows.index(first)]
    made = _made(first, earlier, projections)
    if all(step.equal for step in earlier):
        return made + ("; all before it is bit for bit equal" if earlier else "")
    doubtful = _doubtful(earlier)
    if doubtful is None:
        return f"{made}; what runs before it is off by rounding, {max(step.largest for step in earlier):.2g} at most"
    off = f"off by {doubtful.largest:.2g} (allowed {doubtful.allowed:.2g})"
    return f"{made} within what is allowed; but {named(doubtful)} is {off}, more than rounding: look there first"


def _made(first: Difference, earlier: Sequence[Difference], projections: Collection[str]) -> str:
    """Said of what was compared alone: a candidate may offer some of its modules."""
    module, side, nth = first.point
    known = {step.point for step in earlier}

    def any_in(whole: str) -> bool:
        return any(point.module.startswith(f"{whole}.") for point in known)

    if side == OUTPUT and any_in(module):
        return "It is made in its own forward, for what its modules give agrees"
    if side == OUTPUT and Point(module, INPUT, nth) in known:
        return "What enters it agrees"
    if module in projections and any_in(module.rpartition(".")[0]):
        return "It is made by the attention itself (positions, mask, scaling, softmax), for what that is given agrees"
    return f"It is made behind {named(earlier[-1])}, which agrees" if earlier else "It is the first that is compared"


def named(step: Difference) -> str:
    verb = "enters" if step.point.side == INPUT else "leaves"
    again = f" in its call {step.point.nth + 1}" if step.point.nth else ""
    return f"what {verb} {step.point.module}{again}"


@contextmanager
def nothing_disturbed() -> Iterator[None]:
    """Random states and torch's switches are put back: loading a model sets both, and a candidate may draw."""
    cudnn = torch.backends.cudnn
    switches: list[tuple[Any, str]] = [(torch.backends.cuda.matmul, "allow_tf32")]
    switches += [(cudnn, name) for name in ("allow_tf32", "benchmark", "deterministic")]
    kept = [getattr(owner, name) for owner, name in switches]
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for (owner, name), value in zip(switches, kept, strict=True):
                setattr(owner, name, value)
            random.setstate(states[0])
            np.random.set_state(states[1])
