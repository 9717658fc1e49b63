"""What the steps ask of the model, by engine: `fast` where it holds, `exact` otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fvcore import activations, effects
from fvcore.experiments.errors import StepError
from fvcore.fast import sweep
from fvcore.fast.chunks import chunk_size, in_chunks
from fvcore.fast.engines import why_not_fast
from fvcore.injection import inject
from fvcore.model.model import LanguageModel
from fvcore.slots import SlotMap

Tell = Callable[[int, int], None]
"""Called while work goes on: the layer it came to, and how many rows were done since the last call."""

READINGS = ("p", "logit", "logprob")


def silent(layer: int, n_rows: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True, slots=True)
class Injected:
    """Readings (p, logit, logprob) of each prompt's target in fp32, and the token that the model prefers."""

    base: Tensor  # (prompt, 3)
    injected: Tensor  # (prompt, layer, 3)
    base_ids: Tensor  # (prompt,)
    injected_ids: Tensor  # (prompt, layer)


@dataclass(frozen=True, slots=True)
class Measure:
    lm: LanguageModel
    engine: str = "fast"
    max_memory: int | None = None

    @property
    def fast(self) -> bool:
        return self.engine == "fast" and not why_not_fast(self.lm)

    @property
    def used(self) -> str:
        """The engine that gives the numbers."""
        return "fast" if self.fast else "exact"

    def means(self, prompts: Sequence[tuple[Sequence[int], SlotMap]]) -> Tensor:
        """(layer, head, slot, d_head), float32"""
        if self.fast:
            return sweep.mean_head_activations(self.lm, prompts, self.max_memory)
        return activations.mean_head_activations(self.lm, prompts)

    def heads(
        self, cases: Sequence[sweep.Case], means: Tensor, heads: Sequence[sweep.Head], tell: Tell = silent
    ) -> tuple[Tensor, Tensor]:
        """Readings of the target without and with each head replaced, in the logits' dtype.

        means: (layer, head, slot, d_head)     returns: (trial, 3) and (trial, head, 3), float32
        """
        if self.fast:
            found = sweep.target_readings(self.lm, cases, means, heads, self.max_memory, tell)
        else:
            found = torch.stack([self._exact(case, means, heads, tell) for case in cases])
        return found[:, 0], found[:, 1:]

    def _exact(self, case: sweep.Case, means: Tensor, heads: Sequence[sweep.Head], tell: Tell) -> Tensor:
        rows: list[Tensor] = []
        for layer in sorted({layer for layer, _ in heads}):
            own = [head for head in heads if head[0] == layer]
            readings = effects.target_readings(self.lm, *case, means, own)
            rows.append(readings if not rows else readings[1:])
            tell(layer, len(own))
        return torch.cat(rows)

    def injected(
        self,
        prompts: Sequence[Sequence[int]],
        targets: Sequence[int],
        vector: Tensor,
        layers: Sequence[int],
        alpha: float = 1.0,
        tell: Tell = silent,
    ) -> Injected:
        """`alpha * vector` (d_model,) at the last token behind each of the layers (rising), one layer at a time.

        Raises StepError where it changes nothing: an intervention that does nothing is no result.
        """
        vector = vector.to(self.lm.device, self.lm.hf.dtype)
        pairs = list(zip(prompts, targets, strict=True))
        each = sweep.trial_bytes(self.lm, max(map(len, prompts)))
        each += (1 + len(layers)) * sweep.variant_bytes(self.lm, 1)
        size = chunk_size(each, self.lm.device, len(pairs) if self.fast else 1, self.max_memory)

        def readings(some: Sequence[tuple[Sequence[int], int]]) -> Injected:
            logits = self._injected_logits(some, vector, layers, alpha).float()
            wanted = torch.tensor([target for _, target in some])[:, None].expand(-1, logits.shape[1])
            found, preferred = effects.read_targets(logits, wanted).cpu(), logits.argmax(-1).cpu()
            tell(layers[-1], len(some) * len(layers))
            return Injected(found[:, 0], found[:, 1:], preferred[:, 0], preferred[:, 1:])

        parts = list(in_chunks(pairs, size, readings))
        found = Injected(
            *(torch.cat([getattr(part, name) for part in parts]) for name in Injected.__dataclass_fields__)
        )
        idle = [layer for i, layer in enumerate(layers) if bool((found.injected[:, i] == found.base).all())]
        if idle and alpha and bool(vector.any()):
            raise StepError(f"injection had no effect at layer {', '.join(map(str, idle))}: base and with are equal")
        return found

    def _injected_logits(
        self, some: Sequence[tuple[Sequence[int], int]], vector: Tensor, layers: Sequence[int], alpha: float
    ) -> Tensor:
        """(prompt, 1 + layer, vocab), the first row without the vector."""
        if self.fast:
            base, injected = sweep.injected_logits(self.lm, [ids for ids, _ in some], vector, layers, alpha)
            return torch.cat([base[:, None], injected], dim=1)
        rows = []
        for ids, target in some:
            runs = [inject(self.lm, ids, target, vector, layer, alpha) for layer in layers]
            rows.append(torch.stack([runs[0].base_logits, *(run.with_logits for run in runs)]))
        return torch.stack(rows)
