"""The method on TransformerLens: `hook_z` is what enters the output projection, `hook_out` what leaves a block.

Needs the extra `transformer-lens` (version 4, whose bridge runs the Hugging Face model itself, without processing its
weights). `hook_result`, which some take for a head's activation, lies behind the projection.
"""

import copy
from typing import cast

import torch
from torch import Tensor

from fvcore.artifacts import Artifact, Leaf
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Settings, trial_keys
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity.candidates.adapters.stations import Edit, HeadPatch, Stations, library

SIDES = {"hook_in": ":input", "hook_out": ""}


class TransformerLens(Stations):
    def __init__(self, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> None:
        super().__init__(lm, trials, settings)
        bridge = library("transformer_lens.model_bridge", "transformer-lens").TransformerBridge
        # The bridge rebuilds the model it is given, and the model belongs to the session: it gets a copy.
        hf = copy.deepcopy(lm.hf)
        self.bridge = bridge.boot_transformers(
            str(lm.source or lm.name), hf_model=hf, tokenizer=lm.tokenizer, device=lm.device, dtype=hf.dtype
        )

    def heads(self, ids: Tensor) -> Tensor:
        names = [f"blocks.{layer}.attn.hook_z" for layer in range(self.lm.n_layers)]
        _, cache = self.bridge.run_with_cache(ids, names_filter=lambda name: name in names)
        return torch.cat([cache[name] for name in names])

    def logits(self, ids: Tensor, edit: Edit | None = None) -> Tensor:
        hooks = []
        if edit is not None:
            place = "attn.hook_z" if isinstance(edit, HeadPatch) else "hook_out"
            hooks = [(f"blocks.{edit.layer}.{place}", lambda value, hook: edit.apply(value))]
        return cast("Tensor", self.bridge.run_with_hooks(ids, fwd_hooks=hooks)[0])

    @torch.no_grad()
    def block_outputs(self, prompts: Artifact, layer: int) -> Artifact:
        """For --fv-drill: what enters and what leaves the modules of a block, under Hugging Face's names."""
        block = f"blocks.{layer}."
        leaves: dict[str, Leaf] = {}
        for key in trial_keys(prompts):
            _, cache = self.bridge.run_with_cache(
                self.ids(prompts[f"{key}/clean/input_ids"]),
                names_filter=lambda name: name.startswith(block) and name.endswith(tuple(SIDES)),
            )
            for name, value in cache.items():
                path, _, side = name.removeprefix(block).rpartition(".")
                leaves[f"{key}/{self.hf_path(layer, path)}{SIDES[side]}"] = value[0]
        return leaves

    def hf_path(self, layer: int, path: str) -> str:
        """`attn.o` of TransformerLens is `self_attn.o_proj`, or `attn.c_proj`; each part of a bridge knows its own name."""
        part, names = self.bridge.blocks[layer], []
        for word in path.split(".") if path else ():
            part = getattr(part, word)
            names.append(part.name)
        return ".".join(names) or "block"


make = TransformerLens
