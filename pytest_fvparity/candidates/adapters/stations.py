"""The numeric stations over two things a library must do: read the heads, and give the logits of an edited model.

Written a second time, on purpose: prompts and slots are fvcore's, of the numbers nothing is. A subclass says `heads` and
`logits`; everything else is arithmetic on what these return and on the leaves of earlier artifacts.
"""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fvcore.artifacts import Artifact, Leaf
from fvcore.effects import TOKEN_CLASSES
from fvcore.gates import StageError
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, Settings, trial_keys
from fvcore.trials.fixed import FixedTrials

N_GENERATED = 16


@dataclass(frozen=True)
class HeadPatch:
    """One head's activations replaced, before the output projection, at some tokens: token -> (d_head,)."""

    layer: int
    head: int
    values: Mapping[int, Tensor]

    def apply(self, z: Tensor) -> Tensor:
        """z: (1, token, head, d_head)"""
        z = z.clone()
        for token, value in self.values.items():
            z[0, token, self.head] = value.to(z)
        return z


@dataclass(frozen=True)
class Addition:
    """`vector` (d_model,) added to the output of block `layer` at the tokens from `first` up to `last`."""

    layer: int
    vector: Tensor
    first: int
    last: int | None = None

    def apply(self, residual: Tensor) -> Tensor:
        """residual: (1, token, d_model)"""
        residual = residual.clone()
        residual[:, self.first : self.last] += self.vector.to(residual)
        return residual

    def to_block(self, output: Any) -> Any:
        """A block's output is a tensor or a tuple that begins with one, by version of transformers."""
        return (self.apply(output[0]), *output[1:]) if isinstance(output, tuple) else self.apply(output)


Edit = HeadPatch | Addition


class Stations(ABC):
    """A candidate: six methods named after the check keys."""

    def __init__(self, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> None:
        if len(widths := set(lm.d_heads)) > 1:
            raise StageError(
                f"heads of {lm.name} are {', '.join(map(str, sorted(widths)))} wide, by layer (0: none); the adapters know "
                "models whose layers have the same heads alone"
            )
        self.lm, self.settings = lm, settings
        text = Pipeline(lm, trials, settings)
        self.prompt_boundary, self.slot_map = text.prompt_boundary, text.slot_map

    @abstractmethod
    def heads(self, ids: Tensor) -> Tensor:
        """What enters the output projections: (layer, token, head, d_head). ids: (1, token)."""

    @abstractmethod
    def logits(self, ids: Tensor, edit: Edit | None = None) -> Tensor:
        """(token, vocab), of the model as it is or edited."""

    @torch.no_grad()
    def mean_activations(self, prompts: Artifact, slot_map: Artifact) -> Artifact:
        """(layer, head, slot, d_head), the mean over the clean prompts."""
        by_trial = [self.by_slot(f"{key}/clean", prompts, slot_map) for key in trial_keys(prompts)]
        return {"mean_activations": torch.stack(by_trial).mean(dim=0)}

    def by_slot(self, at: str, prompts: Artifact, slot_map: Artifact) -> Tensor:
        """(layer, head, slot, d_head); where a word has several tokens, their mean."""
        z = self.heads(self.ids(prompts[f"{at}/input_ids"])).transpose(1, 2)
        first_of = dict(listed(slot_map, f"{at}/idx_map"))
        means = {first: z[:, :, first : last + 1].mean(dim=2) for _, first, last in listed(slot_map, f"{at}/idx_avg")}
        columns = [means[token] if token in means else z[:, :, token] for token in first_of]
        return torch.stack(columns, dim=2).float().cpu()

    @torch.no_grad()
    def top_heads(self, prompts: Artifact, slot_map: Artifact, mean_activations: Artifact) -> Artifact:
        """Effects by trial and their mean, the best heads in order; equal ones by (layer, head)."""
        means: Any = mean_activations["mean_activations"]
        effects = torch.stack([self.effects(key, prompts, slot_map, means) for key in trial_keys(prompts)])
        aie = effects[..., self.settings.token_class_idx].mean(dim=0)  # (layer, head)
        scores, order = aie.flatten().sort(descending=True, stable=True)
        k = self.settings.n_top_heads
        return {
            "cie": effects.squeeze(-1),
            "aie": aie,
            "heads": [list(divmod(int(i), self.lm.n_heads)) for i in order[:k]],
            "scores": torch.tensor([round(float(score), 4) for score in scores[:k]], dtype=torch.float64),
        }

    def effects(self, key: str, prompts: Artifact, slot_map: Artifact, means: Tensor) -> Tensor:
        """How much more likely each head makes the answer: (layer, head, class); one class unless another is asked."""
        ids, target = self.ids(prompts[f"{key}/corrupted/input_ids"]), prompts[f"{key}/target_id"]
        slot_of = dict(listed(slot_map, f"{key}/corrupted/full_idx_map"))
        labels = [label for _, _, label in listed(slot_map, f"{key}/corrupted/labels")]
        names = list(TOKEN_CLASSES.values()) if self.settings.token_class_idx != -1 else ["query_predictive_token"]
        classes = [[token for token, label in enumerate(labels) if re.fullmatch(name, label)] for name in names]

        def probability(edit: Edit | None = None) -> Tensor:
            return self.logits(ids, edit)[-1].softmax(dim=-1)[target]  # type: ignore[index]

        base = probability()
        effects = torch.zeros(self.lm.n_layers, self.lm.n_heads, len(classes))
        for layer, head, i in torch.cartesian_prod(*map(torch.arange, effects.shape)).reshape(-1, 3).tolist():
            values = {token: means[layer, head, slot_of[token]] for token in classes[i]}
            if values:
                effects[layer, head, i] = probability(HeadPatch(layer, head, values)) - base
        return effects

    @torch.no_grad()
    def fv_vector(self, mean_activations: Artifact, top_heads: Artifact) -> Artifact:
        """What the heads write at their means at the last slot, and the sum."""
        means: Any = mean_activations["mean_activations"]
        terms = [self.written(layer, head, means[layer, head, -1]) for layer, head in listed(top_heads, "heads")]
        vector = torch.stack(terms).float().sum(dim=0)
        return {
            "function_vector": vector.to(terms[0].dtype),
            "norm": float(vector.to(terms[0].dtype).float().norm()),
            "head_terms": torch.stack(terms),
        }

    def written(self, layer: int, head: int, z: Tensor) -> Tensor:
        """What a head with activation `z` writes, the projection's bias included: (d_model,)."""
        alone = torch.zeros(1, 1, self.lm.n_heads, self.lm.d_head, dtype=self.lm.hf.dtype, device=self.lm.device)
        alone[0, 0, head] = z.to(alone)
        term: Tensor = self.lm.o_proj(layer)(alone.flatten(2))
        return term.flatten().cpu()

    @torch.no_grad()
    def injection_output(self, prompts: Artifact, fv_vector: Artifact) -> Artifact:
        """Of every trial what the model says without and with the vector."""
        vector: Any = fv_vector["function_vector"]
        leaves: dict[str, Leaf] = {}
        for key in trial_keys(prompts):
            sides = {"base": None, "with": self.settings.alpha * vector}
            for side, added in sides.items():
                found = self.injected(key, prompts, added)
                leaves |= {f"{key}/{side}_{name}": value for name, value in found.items()}
            leaves[f"{key}/target_id"] = prompts[f"{key}/target_id"]
            delta: Any = leaves[f"{key}/with_logprob"]
            leaves[f"{key}/delta_logprob"] = delta - leaves[f"{key}/base_logprob"]
        return leaves

    def injected(self, key: str, prompts: Artifact, vector: Tensor | None) -> dict[str, Leaf]:
        """Next token, likelihood of the answer and greedy generation, with a vector or without."""
        prompt, answer = listed(prompts, f"{key}/corrupted/input_ids"), listed(prompts, f"{key}/corrupted/answer_ids")
        last, target = len(prompt) - 1, prompts[f"{key}/target_id"]

        def logits(ids: list[int], until: int | None = None) -> Tensor:
            edit = None if vector is None else Addition(self.settings.layer_of(self.lm), vector, last, until)
            return self.logits(self.ids(ids), edit)

        following = logits([*prompt, *answer], last + 1)[last:-1].float().log_softmax(dim=-1)
        ids, eos = list(prompt), self.lm.hf.generation_config.eos_token_id
        ends = set(eos) if isinstance(eos, list) else {eos}
        # Without a cache the vector is added again where it was added before.
        while len(ids) < len(prompt) + N_GENERATED and not ends & set(ids[len(prompt) :]):
            ids.append(int(logits(ids)[-1].argmax()))
        now = logits(prompt)[-1].cpu()
        return {
            "logits": now,
            "logprob": float(now.float().log_softmax(dim=-1)[target]),  # type: ignore[index]
            "nll": float(-following[range(len(answer)), answer].mean()),
            "generated": ids[len(prompt) :],
        }

    def split(self, x: Tensor) -> Tensor:
        """(..., n_heads * d_head) -> (..., head, d_head); n_heads * d_head need not be d_model."""
        return x.view(*x.shape[:-1], self.lm.n_heads, self.lm.d_head)

    def ids(self, ids: Any) -> Tensor:
        """One prompt's ids as (1, token) on the model's device."""
        return torch.tensor([ids], device=self.lm.device)


def listed(artifact: Artifact, leaf: str) -> list[Any]:
    value = artifact[leaf]
    if not isinstance(value, list):
        raise StageError(f"leaf {leaf!r} is a {type(value).__name__}, expected a list")
    return value


def library(name: str, extra: str) -> Any:
    """A library that an adapter stands on; a missing one is one sentence with the command."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StageError(f"this adapter needs {extra}: pip install 'pytest-fvparity[{extra}]' ({error})") from error
