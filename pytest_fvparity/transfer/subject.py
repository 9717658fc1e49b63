"""What the transfer stages judge: a q_id's files, and what the stations give on the same trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from fvcore.artifacts import Artifact, tensor_leaf
from fvcore.experiments.folder import Folder
from fvcore.experiments.plan_files import heads_in, read_vector
from fvcore.experiments.relation.gates import QIdStatus
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.scores import Row, read_scores
from fvcore.formats import FormatError, read_json, read_jsonl, read_pt
from fvcore.injection import inject
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, Settings
from fvcore.trials.fixed import FixedTrials
from fvcore.trials.sampled import SampledTrials, as_fixed, read
from fvcore.vectors import function_vector
from pytest_fvparity.parity.tolerances import Tolerances


@dataclass(frozen=True)
class Transfer:
    """One q_id of a run beside the stations. The stations use engine `exact`, whatever the run used."""

    folder: Folder
    lm: LanguageModel
    tolerances: Tolerances

    @cached_property
    def status(self) -> QIdStatus:
        found = QIdStatus.read(self.folder)
        if found is None:
            raise FormatError(f"{self.folder.root}: no status; `fvcore relation run` writes it")
        return found

    @cached_property
    def sampled(self) -> SampledTrials:
        return read(self.folder / layout.SAMPLED)

    @cached_property
    def fixed(self) -> FixedTrials:
        return as_fixed(self.sampled, self.folder / layout.SAMPLED)

    @cached_property
    def clean_mean(self) -> Tensor:
        """(layer, head, d_head)"""
        name = layout.q_mean(self.status.q_id)
        value = read_pt(self.folder / name)
        if not isinstance(value, dict) or not isinstance(value.get("clean_mean"), Tensor):
            raise FormatError(f"{self.folder / name}: expected a tensor clean_mean")
        return cast("Tensor", value["clean_mean"])

    def scores(self, name: str) -> list[Row]:
        return read_scores(self.folder / name, "mean_delta_p")

    @cached_property
    def metrics(self) -> list[Row]:
        """A row for each trial and head."""
        return read_jsonl(self.folder / layout.TRIAL_METRICS)

    @cached_property
    def delta_p(self) -> Tensor:
        """(trial, layer, head), float64; zero where the sweep did not come."""
        found = torch.zeros(len(self.sampled.trials), self.lm.n_layers, self.lm.n_heads, dtype=torch.float64)
        for row in self.metrics:
            found[row["trial_idx"], row["layer"], row["head"]] = row["delta_p"]
        return found

    @cached_property
    def heads(self) -> list[list[int]]:
        """In rank order."""
        path = self.folder / layout.TOP_HEADS
        return heads_in(read_json(path), path)

    @cached_property
    def vector(self) -> Tensor:
        return read_vector(self.folder / layout.FV)

    @cached_property
    def stations(self) -> Pipeline:
        topk = len(self.heads)
        return Pipeline(self.lm, self.fixed, Settings(edit_layer=0, n_top_heads=topk, engine="exact"))

    @cached_property
    def prompts(self) -> tuple[Artifact, Artifact]:
        """What the stations say, as all below: prompts and their slots."""
        prompts = self.stations.prompt_boundary()
        return prompts, self.stations.slot_map(prompts)

    @cached_property
    def means(self) -> Artifact:
        return self.stations.mean_activations(*self.prompts)

    @cached_property
    def top_heads(self) -> Artifact:
        return self.stations.top_heads(*self.prompts, self.means)

    def injected(self, layer: int, row: Row) -> Artifact:
        """What the station gives for one of Step6's examples, with the run's own vector; fp32 as Step6."""
        ids, target = self.lm.tokenizer(row["prompt"]).input_ids, row["target_id"]
        vector = self.vector.to(self.lm.device, next(self.lm.hf.parameters()).dtype)
        found = inject(self.lm, ids, target, vector, layer, float(self.status.config["alpha"]))
        return {"base_logprob": found.base_logprob, "with_logprob": found.with_logprob}

    def vector_of(self, heads: Sequence[Sequence[int]]) -> Tensor:
        """The stations' vector of these heads, (d_model,)."""
        return function_vector(self.lm, tensor_leaf(self.means, "mean_activations"), heads).cpu()
