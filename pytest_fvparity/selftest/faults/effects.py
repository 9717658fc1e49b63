"""Faults of station 4, indirect effects and top heads."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fvcore import effects, pipeline
from fvcore.artifacts import Artifact
from fvcore.effects import average_indirect_effect
from fvcore.experiments.steps.scores import ranked, read_scores
from fvcore.formats import write_csv
from fvcore.heads import Head, top_heads
from fvcore.model.hooks import edit_heads, split_heads
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError
from fvcore.pipeline import Pipeline, trial_keys
from fvcore.slots import SlotMap
from pytest_fvparity.parity.partial import IN_LOGPROB
from pytest_fvparity.reference import reference
from pytest_fvparity.selftest.catalogue import (
    Observed,
    Outcome,
    Plant,
    Plants,
    error_of,
    observed,
    on,
    patching,
    replacing,
)
from pytest_fvparity.selftest.mean_heads import ids_of
from pytest_fvparity.selftest.rig import Rig, changed, deep_rig_of, rig_of


def with_effect(effect: Callable[[Tensor, Tensor], Tensor], width: int = 0) -> Plant:
    """A candidate that makes a trial's effects (layer, head) by `effect` of the target's probability () and of those with
    each head replaced at the last token (layer, head). Prompts are padded behind to `width`, and then that is padding."""

    def effects_of(lm: LanguageModel, ids: list[int], target: int, slots: SlotMap, means: Tensor, *_: Any) -> Tensor:
        row = lm.ids([*ids, *[0] * (width - len(ids))])

        def probability() -> Tensor:
            return torch.softmax(lm.logits(row)[0, len(ids) - 1], dim=-1)[target]

        def replaced(layer: int, head: int) -> Tensor:
            def edit(heads: Tensor) -> None:
                heads[-1, -1, head] = means[layer, head, slots.query_predictive_slot]

            with edit_heads(lm, layer, edit):
                return probability()

        runs = [[replaced(layer, head) for head in range(lm.n_heads)] for layer in range(lm.n_layers)]
        return effect(probability(), torch.tensor(runs))

    return patching(effects, "causal_indirect_effect", effects_of)


def padding_replaced(rig: Rig) -> Observed:
    prompts = rig.golden.prompt_boundary()
    width = max(len(ids_of(prompts, key, "corrupted")) for key in trial_keys(prompts))
    return with_effect(lambda base, runs: runs - base, width)(rig)


def clean(artifact: Artifact) -> Artifact:
    return {leaf: artifact.get(leaf.replace("/corrupted/", "/clean/"), value) for leaf, value in artifact.items()}


def said_in_logprob(reading: Callable[[Tensor], Tensor]) -> Plant:
    """A candidate that says of its effects that they are in log-probabilities, and takes this of the logits (vocab,)."""

    def plant(rig: Rig) -> Observed:
        def read(lm: LanguageModel, ids: list[int], target: int) -> Tensor:
            return reading(lm.logits(lm.ids(ids))[0, -1])[target]

        with patch.object(effects, "target_probability", read):
            return observed(rig.judge(rig.candidate(effects=IN_LOGPROB)))

    return plant


def without_tokens(lm: LanguageModel, ids: list[int], target: int) -> Tensor:
    """The target's probability among all tokens but four others, those behind the three likeliest."""
    logits = lm.logits(lm.ids(ids))[0, -1].clone()
    behind = [token for token in logits.topk(8).indices.tolist()[3:] if token != target]
    logits[behind[:4]] = -torch.inf
    return logits.softmax(-1)[target]


def effects_then(change: Callable[[Tensor], Tensor]) -> Plant:
    """A candidate that changes the effects of every trial before it averages them."""
    right = effects.causal_indirect_effect
    return patching(effects, "causal_indirect_effect", lambda *of: change(right(*of)))


def diluted(cie: Tensor, token_class_idx: int = -1) -> Tensor:
    return average_indirect_effect(torch.cat([cie, torch.zeros_like(cie)]), token_class_idx)


def deep(rig: Rig) -> Rig:
    return deep_rig_of(rig.family)


def ranked_by(rank: Callable[[Tensor, int], list[Head]], made: Callable[[Rig], Rig] = deep) -> Plant:
    """A candidate that ranks its heads by `rank`: effects (layer, head) and how many."""
    return on(made, patching(pipeline, "top_heads", lambda aie, k, layers: rank(aie, k)))


def flat_topk(aie: Tensor, k: int, head_of: Callable[[int], tuple[int, int]]) -> list[Head]:
    """In the order of torch.topk over all heads."""
    best = aie.flatten().topk(k)
    return [Head(*head_of(i), value) for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def tied(rig: Rig) -> Rig:
    """Every other layer's heads write nothing, so the effect of each is exactly 0."""
    return deep(rig).on(writing(0, deep(rig), step=2), n_top_heads=deep(rig).settings.n_top_heads // 2)


def damped(rig: Rig) -> Rig:
    """What heads write is so much smaller that effects are: of large ones six decimals keep the order."""
    return deep(rig).on(writing(1e-3, deep(rig)))


def writing(factor: float, rig: Rig, step: int = 1) -> LanguageModel:
    """A copy of the rig's model in which the heads of every `step`-th layer write `factor` times as much."""
    lm = changed(rig.lm)
    for layer in range(0, lm.n_layers, step):
        cast("Tensor", lm.o_proj(layer).weight).mul_(factor)
    return lm


def ranked_from_file(aie: Tensor, k: int) -> list[Head]:
    rows = [
        {"layer": layer, "head": head, "mean_delta_p": f"{float(aie[layer, head]):.6f}"}
        for layer in range(aie.shape[0])
        for head in range(aie.shape[1])
    ]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "aie_scores.csv"
        write_csv(path, tuple(rows[0]), rows)
        best = ranked(read_scores(path, "mean_delta_p"), "mean_delta_p", k)
    return [Head(row["layer"], row["head"], float(aie[row["layer"], row["head"]])) for row in best]


def averaging_class(taken: int) -> Plant:
    """The rank-4 effect's class `taken` is averaged in place of class 1."""
    average = patching(pipeline, "average_indirect_effect", lambda cie, _: average_indirect_effect(cie, taken))
    return on(lambda rig: rig_of(rig.family, token_class_idx=1), average)


def recomputing(project: Callable[[Any, Tensor], Tensor]) -> Plant:
    """What leaves the projection is replaced by `project(module, edited heads)`."""

    def edit_and_recompute(lm: LanguageModel, layer: int, edit: Callable[[Tensor], None]) -> RemovableHandle:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            heads = args[0].clone()
            edit(split_heads(heads, lm))
            return project(module, heads)

        return lm.o_proj(layer).register_forward_hook(hook)

    return patching(effects, "edit_heads", edit_and_recompute)


def without_bias(module: Any, heads: Tensor) -> Tensor:
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
    return nn.functional.linear(heads, weight)


def job_of(lm: LanguageModel, rig: Rig) -> dict[str, Any]:
    """What the reference is told of a model; nothing of a checkout is run. Raises RecordingError as `run` does."""
    told = patch.object(reference, "_answer", side_effect=EOFError)  # where its process would begin
    with patch.object(reference, "require_checkout", Path), told as answer, suppress(EOFError):
        reference.run(Path(), lm, rig.trials, rig.settings)
    return cast("dict[str, Any]", answer.call_args.args[2])


def misleading_names(rig: Rig) -> Observed:
    paths = [Path("/models/Llama-3.1-8B"), Path("/models/gpt2-medium")]
    told = {job_of(replace(rig.lm, name=path.name, source=path), rig)["branch"] for path in paths}
    if told != {reference.BRANCHES[rig.lm.spec.name]}:
        return Observed(Outcome.PASSES, None, f"the reference is told {told}")
    return Observed(Outcome.REFERENCE_ONLY, None, f"the reference is told {told.pop()!r} whatever the path")


def no_branch(rig: Rig) -> Observed:
    lm = replace(rig.lm, spec=rig.lm.spec.changed(name="new_family"), source=Path("/models/new"))
    otherwise = "the reference would be started without a branch"
    return error_of(reference.RecordingError, lambda: job_of(lm, rig), otherwise)


class Wrapper(nn.Module):
    """A model inside a module, as adapters for fine-tuning make it."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.config, self.inner = hf.config, hf


def layer_number_from_third_part(rig: Rig) -> Observed:
    deeper = rig.lm.spec.changed(blocks_path=f"inner.{rig.lm.spec.blocks_path}")
    lm = replace(rig.lm, hf=Wrapper(rig.lm.hf), spec=deeper, source=Path("/models/wrapped"))
    otherwise = "the reference would be started, and read no layer number in {!r}"
    return error_of(reference.RecordingError, lambda: job_of(lm, rig)["attn_hook_names"][0], otherwise)


def wrapped_model(rig: Rig) -> Observed:
    otherwise = "taken without a word"
    return error_of(ModelError, lambda: LanguageModel.wrap(Wrapper(rig.lm.hf), rig.lm.tokenizer), otherwise)


PLANTS: dict[str, Plants] = {
    "F38": replacing(
        top_heads=lambda self, prompts, slots, means: Pipeline.top_heads(self, clean(prompts), clean(slots), means)
    ),
    "F39": patching(
        effects,
        "target_probability",
        lambda lm, ids, target: torch.log_softmax(lm.logits(lm.ids(ids))[0, -1], dim=-1)[target],
    ),
    "F39-said": said_in_logprob(lambda logits: logits.log_softmax(dim=-1)),
    "F39-said-wrong": (
        said_in_logprob(lambda logits: logits.softmax(dim=-1)),
        said_in_logprob(lambda logits: logits.half().log_softmax(dim=-1).float()),
        said_in_logprob(lambda logits: (logits.softmax(dim=-1) + 1e-6).log()),
    ),
    "F39-said-log2": said_in_logprob(lambda logits: logits.softmax(dim=-1).log2()),
    "F39-logit": patching(effects, "target_probability", lambda lm, ids, target: lm.logits(lm.ids(ids))[0, -1, target]),
    "F39-tokens": patching(effects, "target_probability", without_tokens),
    "F40": with_effect(lambda base, runs: runs - torch.cat([base[None], runs.flatten()[:-1]]).view_as(runs)),
    "F40-sign": with_effect(lambda base, runs: base - runs),
    "F41": padding_replaced,
    "F42": patching(pipeline, "average_indirect_effect", diluted),
    "F43": ranked_by(lambda aie, k: top_heads(aie.double().round(decimals=4), k)),
    "F43-digits": ranked_by(lambda aie, k: [head._replace(aie=round(head.aie, 3)) for head in top_heads(aie, k)]),
    "F43-effects": effects_then(lambda cie: cie.round(decimals=4)),
    "F43-small": effects_then(lambda cie: cie.where(cie.abs() >= 1e-4, 0)),
    "F44": ranked_by(lambda aie, k: flat_topk(aie, k, lambda i: divmod(i, aie.shape[0])[::-1])),
    "F45": ranked_by(lambda aie, k: [h._replace(aie=float(aie[h.layer, h.head])) for h in top_heads(aie.abs(), k)]),
    "F45-smallest": ranked_by(lambda aie, k: [head._replace(aie=-head.aie) for head in top_heads(-aie, k)]),
    "F46": ranked_by(lambda aie, k: flat_topk(aie, k, lambda i: divmod(i, aie.shape[1])), tied),
    "F47": averaging_class(-1),
    "F47-off-by-one": averaging_class(0),
    "F48": recomputing(lambda module, heads: nn.functional.linear(heads, module.weight, module.bias)),
    "F49": recomputing(without_bias),
    "F50": misleading_names,
    "F50-family": no_branch,
    "F51": layer_number_from_third_part,
    "F51-spec": wrapped_model,
    "F52": ranked_by(ranked_from_file, damped),
}
