"""What a discovery is made on: a model, the autoencoders of its layers, and the contexts that both are looked at in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fvcore.embedded.planted import Planted
from fvcore.experiments.folder import Folder
from fvcore.experiments.model_choice import one_thread_if_small
from fvcore.experiments.sae.autoencoder import SAE
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.contexts import CONTEXTS
from fvcore.experiments.sae.schemas import Context, PromptsSample
from fvcore.formats import read_json, validated
from fvcore.model.model import LanguageModel, load
from fvcore.model.residual import residual_stream

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class Autoencoders(Protocol):
    """Where the autoencoder of a layer comes from, on the model's device."""

    def sae(self, layer: int) -> SAE: ...
    def rows(self, layer: int, ids: Sequence[int]) -> SAE: ...


@dataclass(frozen=True)
class Held:
    """Autoencoders that are there already: layer -> autoencoder."""

    saes: Mapping[int, SAE]

    def sae(self, layer: int) -> SAE:
        return self.saes[layer]

    def rows(self, layer: int, ids: Sequence[int]) -> SAE:
        return self.saes[layer].rows(torch.tensor(list(ids)))


@dataclass(frozen=True)
class Columns:
    """Some features of a layer, in the order of `ids`, or all. What is active is right also where that depends on all of them."""

    sae: SAE
    ids: Sequence[int]
    picked: Tensor | None = None

    def encode(self, hidden: Tensor) -> Tensor:
        """(..., d_model) -> (..., feature)."""
        found = self.sae.encode(hidden)
        return found if self.picked is None else found[..., self.picked]

    def pre(self, hidden: Tensor) -> Tensor:
        """(..., d_model) -> activations before the gate (..., feature)."""
        if self.picked is None:
            return self.sae.pre(hidden)
        return hidden.to(self.weights.dtype) @ self.weights + self.sae.b_enc[self.picked]

    @property
    def weights(self) -> Tensor:
        """Of the encoder, (d_model, feature)."""
        return self.sae.w_enc if self.picked is None else self.sae.w_enc[:, self.picked]

    @property
    def directions(self) -> Tensor:
        """(feature, d_model), each of length 1."""
        return self.sae.w_dec if self.picked is None else self.sae.w_dec[self.picked]

    @property
    def threshold(self) -> Tensor:
        return self.sae.threshold if self.picked is None else self.sae.threshold[self.picked]


@dataclass(frozen=True)
class Plain:
    """A context as it is: its residual stream behind a layer (token, d_model); layer -> what leaves it at the last token."""

    hidden: Tensor
    ends: dict[int, Tensor]


@dataclass(frozen=True)
class Bench:
    """positions: which tokens of a context count for sources: all, or the last one; special ones if they are not excluded"""

    lm: LanguageModel
    store: Autoencoders
    contexts: Sequence[Context]
    positions: str = "all"
    exclude_special: bool = True
    kept: dict[tuple[int, int], list[Plain]] = field(default_factory=dict, repr=False, compare=False)

    def ids(self, context: Context) -> Tensor:
        """(1, token)."""
        return self.lm.ids(context.input_ids)

    def counted(self, context: Context) -> Tensor:
        """Which tokens count (token,)."""
        counts = torch.ones(context.n_tokens, dtype=torch.bool, device=self.lm.device)
        if self.exclude_special:
            counts &= ~torch.tensor(context.special, device=self.lm.device)
        if self.positions == "last":
            counts[:-1] = False
        return counts

    def columns(self, layer: int, ids: Sequence[int] | None = None) -> Columns:
        """Features of a layer; of a TopK autoencoder the whole has to be there, for it alone says which are active."""
        if ids is None:
            whole = self.store.sae(layer)
            return Columns(whole, range(whole.d_sae))
        try:
            return Columns(self.store.rows(layer, ids), ids)
        except ValueError:
            return Columns(self.store.sae(layer), ids, torch.tensor(list(ids), device=self.lm.device))

    def plain(self, layer: int, last: int) -> list[Plain]:
        """Every context without an edit, behind `layer` and at the end of each layer from there to `last`."""
        if (layer, last) not in self.kept:
            self.kept.clear()  # of one layer at a time: contexts are long, and layers many
            self.kept[layer, last] = [self._plain(context, layer, last) for context in self.contexts]
        return self.kept[layer, last]

    def _plain(self, context: Context, layer: int, last: int) -> Plain:
        stream = residual_stream(self.lm, self.ids(context), last=last)
        return Plain(stream[layer][0], {at: hidden[0, -1] for at, hidden in stream.items() if at >= layer})


def load_model(settings: PathwaysConfig) -> LanguageModel:
    """The model of a config, in as many threads as it asks for; a small one in one, unless it does."""
    model, seed = settings.model, settings.runtime.seed
    spec = None if model.spec == "auto" else model.spec
    lm = load(model.name, model.device, DTYPES[model.dtype], attn=model.attn, seed=seed, spec=spec)
    if settings.runtime.threads is None:
        one_thread_if_small(lm)
    else:
        torch.set_num_threads(settings.runtime.threads)
    return lm


def of(settings: PathwaysConfig) -> Bench:
    """The model, its autoencoders and the contexts that a config names; the same on every machine."""
    from fvcore.experiments.sae.store import Store

    lm = load_model(settings)
    return Bench(
        lm,
        Store(settings.sae, lm.d_model, lm.device),
        contexts_of(settings),
        settings.discover.positions,
        settings.contexts.exclude_special,
    )


def contexts_of(settings: PathwaysConfig) -> list[Context]:
    path = Folder(settings.paths.out) / CONTEXTS
    return validated(PromptsSample, read_json(path), path, "contexts").contexts


def planted(world: Planted) -> Bench:
    """The planted model with its autoencoders, the same rows at every layer, and its contexts."""
    lm = LanguageModel.wrap(world.hf, name="planted")
    zeros = torch.zeros(len(world.rows))
    made = {
        layer: SAE(layer, world.rows.T, zeros, world.rows, torch.zeros(lm.d_model), zeros + world.threshold, zeros + 1)
        for layer in range(lm.n_layers)
    }
    contexts = [
        Context(
            id=f"planted-{number:02d}",
            type="bare",
            prompt_type="planted",
            text_sha="",
            source=None,
            n_tokens=len(ids),
            input_ids=ids,
            special=tuple(at == 0 for at in range(len(ids))),
        )
        for number, ids in enumerate(world.contexts)
    ]
    return Bench(lm, Held(made), contexts)
