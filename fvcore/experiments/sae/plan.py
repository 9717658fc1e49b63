"""What a run would cost, before anything is computed: counts, passes, operations, memory and time.

Nothing is loaded: a block of the model is passed over on a device without memory, where shapes alone are followed, so that
parameters, operations and what a backward pass must keep are counted and not guessed. What the driver of a device takes
(about half a gigabyte) is not in it, nor what an allocator keeps for later.
"""

import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvcore.experiments.folder import Folder
from fvcore.experiments.sae import features
from fvcore.experiments.sae.bench import contexts_of
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.contexts import CONTEXTS
from fvcore.experiments.sae.features import FEATURES
from fvcore.formats import read_yaml
from fvcore.model.model import config_on_disk, without_weights
from fvcore.model.spec import ModelError

SHAPES = Path(__file__).parent / "configs" / "shapes.yaml"
ASSUMED_TOKENS = 150
REACHED = 0.4
"""Of the rate at which a device multiplies large matrices: what passes over a model reach of it."""

BYTES_A_ROW = {"candidates": 12_000, "replay": 1_600, "validated_pathways": 1_400}
GB = 1e9


@dataclass(frozen=True)
class Block:
    """Of one block: parameters, and of one token in it the operations of a forward pass and the bytes that a backward pass keeps."""

    parameters: int
    operations: float
    kept: float


@dataclass(frozen=True)
class Plan:
    """What a discovery with these settings would cost; features and contexts as they are, or as the settings allow for."""

    settings: PathwaysConfig
    limit: int | None = None

    @cached_property
    def config(self) -> Any:
        """Of the model, from disk; of one that is not there, if its sizes are known."""
        from transformers import AutoConfig

        name, shapes = self.settings.model.name, read_yaml(SHAPES)
        try:
            return config_on_disk(name)
        except ModelError:
            if name not in shapes:
                raise
            return AutoConfig.for_model(**shapes[name])

    @cached_property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.settings.model.dtype)  # type: ignore[no-any-return]

    @cached_property
    def parameters(self) -> int:
        return sum(one.numel() for one in without_weights(self.config, self.dtype).parameters())

    @cached_property
    def block(self) -> Block:
        one, two = (_counted(self.config, self.dtype, n, self.tokens) for n in (1, 2))
        return Block(two[0] - one[0], (two[1] - one[1]) / self.tokens, (two[2] - one[2]) / self.tokens)

    @cached_property
    def per_layer(self) -> dict[int, int]:
        """Layer -> its features."""
        if ((folder := Folder(self.settings.paths.out)) / FEATURES).is_file():
            return dict(sorted(Counter(one.layer for one in features.read(folder)).items()))
        first, last = self.settings.features.layers
        last = min(last, self.config.get_text_config().num_hidden_layers - 1)
        return dict.fromkeys(range(first, last + 1), self.settings.features.top_k_per_layer)

    @cached_property
    def contexts(self) -> tuple[int, int]:
        """How many, and the tokens of the longest."""
        if (Folder(self.settings.paths.out) / CONTEXTS).is_file():
            found = contexts_of(self.settings)
            return len(found), max(one.n_tokens for one in found)
        return 2 * self.settings.contexts.per_prompt, ASSUMED_TOKENS

    @property
    def tokens(self) -> int:
        return self.contexts[1]

    @cached_property
    def targets(self) -> dict[int, int]:
        """Layer -> targets, of the first `limit` features; those of the first layer have no sources."""
        found, left = {}, sum(self.per_layer.values()) if self.limit is None else self.limit
        for layer, n in self.per_layer.items():
            found[layer] = min(n, left)
            left -= found[layer]
        return {layer: n for layer, n in list(found.items())[1:] if n}

    @cached_property
    def sources(self) -> dict[int, int]:
        """Layer of targets -> sources before it that are replayed for each target, at most."""
        chosen = self.settings.discover
        return {
            layer: min(chosen.top_k, sum(n for before, n in self.per_layer.items() if before < layer))
            for layer in self.targets
        }

    @property
    def pathways(self) -> int:
        return sum(self.targets[layer] * self.sources[layer] for layer in self.targets)

    @cached_property
    def replayed(self) -> dict[int, float]:
        """Layer of sources -> rows of passes that begin behind it: modes, random directions, random features."""
        chosen, n_contexts = self.settings.discover.replay, self.contexts[0]
        last = max(self.targets, default=-1)
        of_source = n_contexts * len(chosen.modes) + chosen.control_directions
        of_null = 2 * chosen.control_directions * min(chosen.control_contexts, n_contexts)
        return {layer: n * of_source + of_null for layer, n in self.per_layer.items() if layer < last}

    @cached_property
    def batches(self) -> dict[int, int]:
        """Layer of targets -> passes of `batch_size` of them in a context, forwards and backwards."""
        chosen = self.settings.discover
        steps = chosen.ig_steps if chosen.attribution == "ig" else 1
        return {layer: -(-n // chosen.batch_size) * steps for layer, n in self.targets.items()}

    @property
    def passes(self) -> dict[str, float]:
        return {
            "gradient passes": sum(self.batches.values()) * self.contexts[0],
            "rows of replay": sum(self.replayed.values()),
        }

    @cached_property
    def operations(self) -> dict[str, float]:
        """Of each part. One pass forward serves a batch of targets; back, each of them costs as much, without gradients of weights."""
        first, last = min(self.per_layer, default=0), max(self.targets, default=0)
        row = self.block.operations * self.tokens
        together = self.settings.discover.batch_size
        blocks = sum(n * (layer + 1 + together * (layer - first)) for layer, n in self.batches.items())
        return {
            "gradients": blocks * self.contexts[0] * row,
            "replay": sum(n * (last - layer) for layer, n in self.replayed.items()) * row,
        }

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes on the device, by what takes them; gradients and replays are never there at once."""
        chosen, text = self.settings.discover, self.config.get_text_config()
        depth, size = max(self.targets, default=0) - min(self.per_layer, default=0), self.dtype.itemsize
        row, rows = self.tokens * text.hidden_size, chosen.replay.batch_rows
        return {
            "weights of the model": self.parameters * size,
            "kept for the backward pass of a context": self.tokens * self.block.kept * depth,
            f"gradients of {chosen.batch_size} targets": (
                chosen.batch_size * (self.tokens * self.block.kept + row * (depth + 1) * size)
            ),
            "autoencoders, at most": self.autoencoders,
            f"a replay of {rows} rows": rows * (self.tokens * self.block.kept + row * size * (depth + 1)),
        }

    @property
    def autoencoders(self) -> float:
        """The budget, or a whole one where that takes more: random features are drawn from all of a layer."""
        text, chosen = self.config.get_text_config(), self.settings.sae
        known = read_yaml(SHAPES)["autoencoders"].get(chosen.source, 0)
        size: int = getattr(torch, chosen.dtype).itemsize
        return max(2.0 * int(known) * int(text.hidden_size) * size, chosen.gpu_budget_gb * GB)

    @property
    def peak(self) -> float:
        """Bytes on the device at once."""
        weights, kept, gradients, autoencoders, replay = self.memory.values()
        return weights + autoencoders + max(kept + gradients, replay)

    @property
    def written(self) -> float:
        targets = sum(self.targets.values())
        return targets * BYTES_A_ROW["candidates"] + self.pathways * sum(list(BYTES_A_ROW.values())[1:])

    def seconds(self, rate: float) -> float:
        """At so many operations a second for large matrices, of which passes reach `REACHED`."""
        return sum(self.operations.values()) / (rate * REACHED)

    def values(self) -> dict[str, Any]:
        """All of it as plain values."""
        device, rate = measured_rate(self.settings.model.device, self.dtype)
        return {
            "model": {
                "name": self.settings.model.name,
                "parameters": self.parameters,
                "dtype": self.settings.model.dtype,
            },
            "counts": {
                "features": sum(self.per_layer.values()),
                "targets": sum(self.targets.values()),
                "contexts": self.contexts[0],
                "tokens_of_a_context": self.tokens,
                "pathways_at_most": self.pathways,
            },
            "passes": self.passes,
            "operations": self.operations,
            "memory_gb": {name: n / GB for name, n in self.memory.items()} | {"at the peak": self.peak / GB},
            "seconds": {f"here, on {device} at {rate / 1e12:.3g} TFLOP/s": self.seconds(rate)}
            | {"on a device of 1,000 TFLOP/s": self.seconds(1e15)},
            "written_mb": self.written / 1e6,
        }


def _counted(config: Any, dtype: torch.dtype, n_blocks: int, n_tokens: int) -> tuple[int, float, float]:
    """Parameters, operations of a forward pass and bytes kept for the backward pass of a model of so many blocks."""
    from torch.utils.flop_counter import FlopCounterMode

    model = without_weights(config, dtype, n_blocks).requires_grad_(False)
    held = {one.untyped_storage()._cdata for one in model.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        seen.setdefault(value.untyped_storage()._cdata, value)
        return value

    size = config.get_text_config().hidden_size
    with torch.device("meta"):
        given = torch.zeros(1, n_tokens, size, dtype=dtype, requires_grad=True)
        # A mask of its own: the library looks at values to make one, and here are none.
        mask = torch.zeros(1, 1, n_tokens, n_tokens, dtype=dtype)
    counter = FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), counter:
        model.base_model(inputs_embeds=given, attention_mask=mask, use_cache=False)
    kept = sum(value.untyped_storage().nbytes() for at, value in seen.items() if at not in held)
    return sum(one.numel() for one in model.parameters()), float(counter.get_total_flops()), float(kept)


def measured_rate(device: str, dtype: torch.dtype, size: int = 1024) -> tuple[str, float]:
    """The device that is here, and operations a second of its multiplying two square matrices."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    one = torch.ones(size, size, dtype=dtype, device=name)
    n, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.1:
        _ = float((one @ one)[0, 0])
        n += 1
    return name, n * 2 * size**3 / (time.perf_counter() - started)


def lines(values: dict[str, Any]) -> list[str]:
    """A plan in words."""
    counts, passes = values["counts"], values["passes"]
    return [
        f"model: {values['model']['name']}, {values['model']['parameters']:,} parameters in {values['model']['dtype']}",
        f"features: {counts['features']:,}, of which {counts['targets']:,} are targets; contexts: {counts['contexts']} of "
        f"{counts['tokens_of_a_context']} tokens; pathways at most: {counts['pathways_at_most']:,}",
        "passes: " + ", ".join(f"{n:,.0f} {name}" for name, n in passes.items()),
        "operations: " + ", ".join(f"{n:.2g} for {name}" for name, n in values["operations"].items()),
        "memory on the device:",
        *(f"  {name}: {n:.3g} GB" for name, n in values["memory_gb"].items()),
        *(f"time {name}: {seconds / 3600:.2g} h" for name, seconds in values["seconds"].items()),
        f"written: {values['written_mb']:.3g} MB",
    ]
