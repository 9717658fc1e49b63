"""Faults of station 4, indirect effects and top heads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fvcore import effects, pipeline
from fvcore.artifacts import Artifact
from fvcore.effects import average_indirect_effect, probability_with_head_replaced
from fvcore.heads import Head, top_heads
from fvcore.model.hooks import edit_heads, split_heads
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError
from fvcore.pipeline import Pipeline, trial_keys
from fvcore.slots import SlotMap
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.reference import reference
from pytest_fvparity.selftest.bed import Bed
from pytest_fvparity.selftest.bed import bed as recorded_bed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, candidate_fault, fault, observed
from pytest_fvparity.selftest.copies import bed_on, changed, deep_bed

KEY = "top_heads"

Effect = Callable[[LanguageModel, list[int], int, SlotMap, Tensor], Tensor]


@contextmanager
def with_effect(bed: Bed, effect: Effect) -> Iterator[Implementation]:
    """A candidate that computes each trial's effect by `effect`: model, ids, target, slots, means -> (layer, head)."""

    def of_one_trial(*inputs: Any, all_token_classes: bool) -> Tensor:
        return effect(*inputs)

    with patch.object(pipeline, "causal_indirect_effect", of_one_trial):
        yield bed.candidate()


def every_head(lm: LanguageModel, value: Callable[[int, int], Tensor]) -> Tensor:
    """(layer, head)"""
    return torch.tensor([[float(value(layer, head)) for head in range(lm.n_heads)] for layer in range(lm.n_layers)])


def patched_runs(lm: LanguageModel, ids: list[int], target: int, slots: SlotMap, means: Tensor) -> Tensor:
    """The target's probability with each head replaced at the last token."""
    last, slot = slots.query_predictive_token, slots.query_predictive_slot
    return every_head(
        lm,
        lambda layer, head: probability_with_head_replaced(
            lm, ids, target, layer, head, {last: means[layer, head, slot]}
        ),
    )


# ---------------------------------------------------------------- what the effect is measured on


@candidate_fault(
    "F38",
    "indirect effect on the clean prompts",
    "the station reads the clean prompts and their slot maps",
    KEY,
    "effects of another size and sign",
)
def clean_regime(bed: Bed) -> Implementation:
    def clean(artifact: Artifact) -> Artifact:
        return {leaf: artifact.get(leaf.replace("/corrupted/", "/clean/"), value) for leaf, value in artifact.items()}

    def faulty(self: Pipeline, prompts: Artifact, slot_map: Artifact, means: Artifact) -> Artifact:
        return Pipeline.top_heads(self, clean(prompts), clean(slot_map), means)

    return bed.candidate(top_heads=faulty)


@candidate_fault(
    "F39",
    "indirect effect in log-probability instead of probability",
    "log_softmax in place of softmax",
    KEY,
    "scores some hundred times as large",
)
@contextmanager
def in_logprob(bed: Bed) -> Iterator[Implementation]:
    def target_logprob(lm: LanguageModel, ids: Sequence[int], target: int) -> Tensor:
        return torch.log_softmax(lm.logits(lm.ids(ids))[0, -1], dim=-1)[target]

    with patch.object(effects, "target_probability", target_logprob):
        yield bed.candidate()


@candidate_fault(
    "F39-logit",
    "indirect effect in logits instead of probability",
    "no softmax at all",
    KEY,
    "scores some hundred times as large",
)
@contextmanager
def in_logits(bed: Bed) -> Iterator[Implementation]:
    def target_logit(lm: LanguageModel, ids: Sequence[int], target: int) -> Tensor:
        return lm.logits(lm.ids(ids))[0, -1, target]

    with patch.object(effects, "target_probability", target_logit):
        yield bed.candidate()


@candidate_fault(
    "F40",
    "baseline taken from the patched run of another head",
    "each head's effect is measured against the run before it",
    KEY,
    "the first head's effect is right",
)
def previous_run_as_baseline(bed: Bed) -> AbstractContextManager[Implementation]:
    def effect(lm: LanguageModel, ids: list[int], target: int, slots: SlotMap, means: Tensor) -> Tensor:
        base = effects.target_probability(lm, ids, target)
        runs = patched_runs(lm, ids, target, slots, means).flatten()
        return (runs - torch.cat([base.reshape(1), runs[:-1]])).view(lm.n_layers, lm.n_heads)

    return with_effect(bed, effect)


@candidate_fault(
    "F40-sign",
    "sign of the effect reversed",
    "base run minus patched run",
    KEY,
    "every effect times -1",
)
def sign_reversed(bed: Bed) -> AbstractContextManager[Implementation]:
    def effect(lm: LanguageModel, ids: list[int], target: int, slots: SlotMap, means: Tensor) -> Tensor:
        return effects.target_probability(lm, ids, target) - patched_runs(lm, ids, target, slots, means)

    return with_effect(bed, effect)


@candidate_fault(
    "F41",
    "replacement at position -1 of a right-padded batch",
    "prompts are padded on the right to one length, and the last position of each row is replaced",
    KEY,
    "effect 0 on every prompt shorter than the longest",
)
def padding_replaced(bed: Bed) -> AbstractContextManager[Implementation]:
    prompts = bed.golden.prompt_boundary()
    width = max(len(cast("list[int]", prompts[f"{key}/corrupted/input_ids"])) for key in trial_keys(prompts))

    def effect(lm: LanguageModel, ids: list[int], target: int, slots: SlotMap, means: Tensor) -> Tensor:
        row, last = lm.ids([*ids, *[0] * (width - len(ids))]), len(ids) - 1

        def probability() -> Tensor:
            return torch.softmax(lm.logits(row)[0, last], dim=-1)[target]

        def replaced(layer: int, head: int) -> Tensor:
            def edit(heads: Tensor) -> None:
                heads[-1, -1, head] = means[layer, head, slots.query_predictive_slot]

            with edit_heads(lm, layer, edit):
                return probability()

        return every_head(lm, replaced) - probability()

    return with_effect(bed, effect)


@candidate_fault(
    "F42",
    "mean over more trials than there are",
    "effects are stored in a tensor for twice the trials and averaged with its empty rows",
    KEY,
    "the same order, scores half as large",
)
@contextmanager
def diluted_mean(bed: Bed) -> Iterator[Implementation]:
    def average(cie: Tensor, token_class_idx: int = -1) -> Tensor:
        return average_indirect_effect(torch.cat([cie, torch.zeros_like(cie)]), token_class_idx)

    with patch.object(pipeline, "average_indirect_effect", average):
        yield bed.candidate()


# ---------------------------------------------------------------- how heads are ranked


def ranked_by(bed: Bed, rank: Callable[[Tensor, int], list[Head]]) -> Observed:
    """What is seen of a candidate that ranks its heads by `rank`."""
    with patch.object(pipeline, "top_heads", rank):
        return observed(bed.judge(bed.candidate()))


def rounded(aie: Tensor, digits: int) -> Tensor:
    return torch.tensor([[round(float(value), digits) for value in row] for row in aie], dtype=torch.float64)


@fault(
    "F43",
    "rounding before sorting",
    "heads are ranked by scores rounded to four decimals; 24 heads, all ranked",
    Outcome.FAILS,
    KEY,
    "another order among heads that are equal in four decimals; scores and effects equal",
)
def rounded_before_ranking(bed: Bed) -> Observed:
    return ranked_by(deep_bed(bed.family), lambda aie, k: top_heads(rounded(aie, 4), k))


@fault(
    "F43-digits",
    "rounding to other digits",
    "ranked before rounding, but scores rounded to three decimals; 24 heads, all ranked",
    Outcome.FAILS,
    KEY,
    "scores only, by up to 5e-4",
)
def rounded_to_three_digits(bed: Bed) -> Observed:
    def rank(aie: Tensor, k: int) -> list[Head]:
        return [head._replace(aie=round(head.aie, 3)) for head in top_heads(aie, k)]

    return ranked_by(deep_bed(bed.family), rank)


@fault(
    "F44",
    "flat indices unravelled column by column",
    "layer and head are remainder and quotient by the number of layers",
    Outcome.FAILS,
    KEY,
    "heads only; effects and scores equal",
)
def column_major(bed: Bed) -> Observed:
    def rank(aie: Tensor, k: int) -> list[Head]:
        n_layers = aie.shape[0]
        best = aie.flatten().topk(k)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [Head(index % n_layers, index // n_layers, value) for value, index in pairs]

    return ranked_by(deep_bed(bed.family), rank)


@fault(
    "F45",
    "heads ranked by the effect's magnitude",
    "abs() before ranking",
    Outcome.FAILS,
    KEY,
    "heads with large negative effects",
)
def by_magnitude(bed: Bed) -> Observed:
    def rank(aie: Tensor, k: int) -> list[Head]:
        return [head._replace(aie=float(aie[head.layer, head.head])) for head in top_heads(aie.abs(), k)]

    return ranked_by(deep_bed(bed.family), rank)


@fault("F45-smallest", "the smallest effects taken", "the other end of the ranking", Outcome.FAILS, KEY)
def smallest(bed: Bed) -> Observed:
    def rank(aie: Tensor, k: int) -> list[Head]:
        return [head._replace(aie=-head.aie) for head in top_heads(-aie, k)]

    return ranked_by(deep_bed(bed.family), rank)


def with_silent_layers(lm: LanguageModel) -> LanguageModel:
    """Every other layer's heads write nothing, so the effect of each is exactly 0."""
    silent = changed(lm, lambda hf: None)
    for layer in range(0, silent.n_layers, 2):
        cast("Tensor", silent.o_proj(layer).weight).zero_()
    return silent


@fault(
    "F46",
    "exact ties in another order",
    "half of 24 heads write nothing and tie at 0, the cut lies inside the tie; the candidate takes torch.topk's order",
    Outcome.TIE,
    KEY,
    "a warning, and later keys take the golden's heads",
)
def ties_in_backend_order(bed: Bed) -> Observed:
    deep = deep_bed(bed.family)
    tied = bed_on(deep, with_silent_layers(deep.lm), n_top_heads=deep.settings.n_top_heads // 2)

    def rank(aie: Tensor, k: int) -> list[Head]:
        best, n_heads = aie.flatten().topk(k), aie.shape[1]
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [Head(index // n_heads, index % n_heads, value) for value, index in pairs]

    return ranked_by(tied, rank)


def averaging(bed: Bed, asked: int, taken: int) -> Observed:
    """What is seen when the rank-4 effect's class `taken` is averaged in place of `asked`."""
    rank_4 = recorded_bed(bed.family, token_class_idx=asked)  # its golden is right: recorded before the patch
    with patch.object(pipeline, "average_indirect_effect", lambda cie, _: average_indirect_effect(cie, taken)):
        return observed(rank_4.judge(rank_4.candidate()))


@fault(
    "F47",
    "default token class on a rank-4 effect",
    "class 1 is asked for, the default -1 is averaged",
    Outcome.FAILS,
    KEY,
    "the rank-4 effect is equal, its mean is not",
)
def default_token_class(bed: Bed) -> Observed:
    return averaging(bed, asked=1, taken=-1)


@fault(
    "F47-off-by-one",
    "token classes numbered from 1",
    "class 1 is asked for, class 0 is averaged",
    Outcome.FAILS,
    KEY,
    "the rank-4 effect is equal, its mean is not",
)
def token_class_off_by_one(bed: Bed) -> Observed:
    return averaging(bed, asked=1, taken=0)


# ---------------------------------------------------------------- the projection, recomputed as the reference does


def recomputing(project: Callable[[Any, Tensor], Tensor]) -> Callable[..., AbstractContextManager[None]]:
    """`edit_heads` that replaces what leaves the projection by `project(module, edited heads)`."""

    @contextmanager
    def edit_and_recompute(lm: LanguageModel, layer: int, edit: Callable[[Tensor], None]) -> Iterator[None]:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            heads = args[0].clone()
            edit(split_heads(heads, lm))
            return project(module, heads)

        handle = lm.o_proj(layer).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    return edit_and_recompute


@candidate_fault(
    "F48",
    "Conv1D treated as Linear in the recomputed projection",
    "the projection is recomputed with the weight transposed",
    KEY,
    "no error, since the weight is square",
    families=("gpt2",),  # the only one with Conv1D
)
@contextmanager
def conv1d_as_linear(bed: Bed) -> Iterator[Implementation]:
    def project(module: Any, heads: Tensor) -> Tensor:
        return nn.functional.linear(heads, module.weight, module.bias)

    with patch.object(effects, "edit_heads", recomputing(project)):
        yield bed.candidate()


def without_bias(module: Any, heads: Tensor) -> Tensor:
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
    return nn.functional.linear(heads, weight)


@candidate_fault(
    "F49",
    "bias dropped in the recomputed projection",
    "the projection is recomputed from its weight alone",
    KEY,
    "every effect holds that of the lost bias",
    families=("gpt2", "gpt_neox"),  # the others' projections have no bias
)
@contextmanager
def recomputed_without_bias(bed: Bed) -> Iterator[Implementation]:
    with patch.object(effects, "edit_heads", recomputing(without_bias)):
        yield bed.candidate()


# ---------------------------------------------------------------- where the reference stumbles


class ReferenceStarted(Exception):
    """The reference's process would have begun with this job."""


def job_of(lm: LanguageModel, bed: Bed) -> dict[str, Any]:
    """What the reference is told of a model; nothing of a checkout is run. Raises RecordingError as `run` does."""

    def start(python: str, job: Path) -> None:
        raise ReferenceStarted(job.read_text())

    with tempfile.TemporaryDirectory() as directory, patch.object(reference, "_start", start):
        checkout = Path(directory)
        for name in ("src/utils/extract_utils.py", "src/compute_indirect_effect.py"):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).touch()
        try:
            reference.run(checkout, lm, bed.trials, bed.settings)
        except ReferenceStarted as started:
            job: dict[str, Any] = json.loads(str(started))
            return job
    raise AssertionError("reference.run ended without starting the reference")


@fault(
    "F50",
    "a model whose name none of the reference's branches fits",
    "models lie at /models/Llama-3.1-8B and /models/gpt2-medium",
    Outcome.REFERENCE_ONLY,
    signature="UnboundLocalError in the reference at top_heads; here it is told its own name for the family",
)
def misleading_names(bed: Bed) -> Observed:
    paths = [Path("/models/Llama-3.1-8B"), Path("/models/gpt2-medium")]
    told = {job_of(replace(bed.lm, name=path.name, source=path), bed)["branch"] for path in paths}
    if told != {reference.BRANCHES[bed.lm.spec.name]}:
        return Observed(Outcome.PASSES, None, f"the reference is told {told}")
    return Observed(Outcome.REFERENCE_ONLY, None, f"the reference is told {told.pop()!r} whatever the path")


@fault(
    "F50-family",
    "a family that none of the reference's branches fits",
    "a family fvcore knows and the reference does not",
    Outcome.REFERENCE_ONLY,
    signature="UnboundLocalError in the reference at top_heads; here an error that names the families, before it starts",
)
def no_branch(bed: Bed) -> Observed:
    lm = replace(bed.lm, spec=replace(bed.lm.spec, name="new_family"), source=Path("/models/new"))
    try:
        job_of(lm, bed)
    except reference.RecordingError as error:
        return Observed(Outcome.REFERENCE_ONLY, None, str(error))
    return Observed(Outcome.PASSES, None, "the reference would be started without a branch")


class Wrapper(nn.Module):
    """A model inside a module, as adapters for fine-tuning make it."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.config, self.inner = hf.config, hf


@fault(
    "F51",
    "layer number read from the third part of a module's name",
    "a spec whose blocks lie one module deeper, as in a wrapped or multimodal model",
    Outcome.REFERENCE_ONLY,
    signature="ValueError in the reference at top_heads; here an error that says so, before it starts",
)
def layer_number_from_third_part(bed: Bed) -> Observed:
    deeper = replace(bed.lm.spec, blocks_path=f"inner.{bed.lm.spec.blocks_path}")
    lm = replace(bed.lm, hf=Wrapper(bed.lm.hf), spec=deeper, source=Path("/models/wrapped"))
    try:
        names = job_of(lm, bed)["attn_hook_names"]
    except reference.RecordingError as error:
        return Observed(Outcome.REFERENCE_ONLY, None, str(error))
    return Observed(Outcome.PASSES, None, f"the reference would be started, and read no layer number in {names[0]!r}")


@fault(
    "F51-spec",
    "a wrapped model under the spec of the bare one",
    "the model is put inside a module of its own",
    Outcome.REFERENCE_ONLY,
    signature="an error that names the missing part and what stands in its place",
)
def wrapped_model(bed: Bed) -> Observed:
    try:
        LanguageModel.wrap(Wrapper(bed.lm.hf), bed.lm.tokenizer)
    except ModelError as error:
        return Observed(Outcome.REFERENCE_ONLY, None, str(error))
    return Observed(Outcome.PASSES, None, "taken without a word")
