"""The method on nnsight: heads and edits are assignments inside a trace.

Needs the extra `nnsight`.
"""

import copy
from typing import cast

import torch
from torch import Tensor

from fvcore.model.model import LanguageModel
from fvcore.pipeline import Settings
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity.candidates.adapters.stations import Addition, Edit, HeadPatch, Stations, library


class NNsight(Stations):
    def __init__(self, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> None:
        super().__init__(lm, trials, settings)
        # nnsight rewrites the modules it wraps, and the model belongs to the session: it gets a copy.
        self.nnsight = library("nnsight", "nnsight")
        self.hf = copy.deepcopy(lm.hf)
        self.net = self.nnsight.NNsight(self.hf)

    def heads(self, ids: Tensor) -> Tensor:
        projections = [self.net.get(self.lm.spec.out_proj_path(layer)) for layer in range(self.lm.n_layers)]
        with self.net.trace(ids, use_cache=False):
            seen = self.nnsight.save([projection.input for projection in projections])
        return self.split(torch.cat(seen))

    def logits(self, ids: Tensor, edit: Edit | None = None) -> Tensor:
        with self.net.trace(ids, use_cache=False):
            if isinstance(edit, HeadPatch):
                projection = self.net.get(self.lm.spec.out_proj_path(edit.layer))
                projection.input = edit.apply(self.split(projection.input)).flatten(2)
            if isinstance(edit, Addition):
                block = self.net.get(self.lm.spec.block_path(edit.layer))
                block.output = edit.to_block(block.output)
            logits = self.net.output.logits.save()
        return cast("Tensor", logits[0])


make = NNsight
