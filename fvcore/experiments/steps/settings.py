"""What is chosen for a run, and which choice belongs to which stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fvcore.experiments.steps.layout import safe_name
from fvcore.experiments.steps.scores import SCORES
from fvcore.fast import engines
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError

STEP6_KEYS = ("delta_acc", "mean_delta_logit", "mean_delta_logprob", "mean_delta_p")
"""What the best injection layer can be chosen by."""


class Settings(BaseModel):
    """Defaults are the plan's. `layers` and `heads` limit StepD's sweep; `max_memory` (bytes) changes no result."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    seed: int = 0
    engine: Literal["fast", "exact"] = "fast"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    score_key: str = "mean_delta_p"
    topk: int = Field(default=20, ge=1)
    alpha: float = 1.0
    zeroshot_trailing_space: bool = False
    edit_layer: int | Literal["all"] = "all"
    n_eval: int = Field(default=50, ge=1)
    with_replacement: bool = False
    step6_score_key: str = "mean_delta_logprob"
    max_memory: int | None = None

    def layers_of(self, lm: LanguageModel) -> list[int]:
        return _chosen(self.layers, lm.n_layers, "layer")

    def heads_of(self, lm: LanguageModel) -> list[int]:
        return _chosen(self.heads, lm.n_heads, "head")

    def edit_layers(self, lm: LanguageModel) -> list[int]:
        if self.edit_layer == "all":
            return list(range(lm.n_layers))
        if not 0 <= self.edit_layer < lm.n_layers:
            raise ModelError(
                f"edit_layer out of range: {self.edit_layer} not in [0, {lm.n_layers - 1}] "
                f"({lm.name} has {lm.n_layers} layers; --edit-layer takes one of them, or all)"
            )
        return [self.edit_layer]

    def require_fit(self, lm: LanguageModel) -> None:
        """Raise the one clear error a wrong setting deserves, before anything is computed."""
        n = len(self.layers_of(lm)) * len(self.heads_of(lm))
        if self.topk > n:
            raise ModelError(
                f"top {self.topk} heads asked for, the sweep over {lm.name} has {n} heads; "
                f"the number is not lowered silently: choose 1 to {n} with --topk"
            )
        self.edit_layers(lm)
        if self.score_key not in SCORES:
            raise ModelError(f"unknown score {self.score_key!r} (--score-key); expected one of {', '.join(SCORES)}")
        if self.step6_score_key not in STEP6_KEYS:
            raise ModelError(f"unknown score {self.step6_score_key!r}; Step6 knows {', '.join(STEP6_KEYS)}")


def _chosen(chosen: tuple[int, ...] | None, n: int, what: str) -> list[int]:
    if chosen is None:
        return list(range(n))
    if not chosen:
        raise ModelError(f"no {what} chosen (--{what}s); choose some of 0 to {n - 1}")
    if outside := [one for one in chosen if not 0 <= one < n]:
        raise ModelError(f"{what} {outside[0]} is not in [0, {n - 1}] (--{what}s)")
    return sorted(set(chosen))


FIELDS: dict[str, tuple[str, ...]] = {
    "stepd": ("seed", "layers", "heads", "score_key"),
    "heatmap": ("score_key", "topk"),
    "stepe": ("seed", "score_key", "topk", "alpha"),
    "zeroshot": ("zeroshot_trailing_space",),
    "step6": ("seed", "alpha", "n_eval", "with_replacement", "step6_score_key"),
}
"""The settings that a stage's files depend on; `edit_layer` says which files there are, not what stands in them."""


def settings_of(stage: str, settings: Settings, lm: LanguageModel) -> dict[str, Any]:
    """Everything a stage's files depend on, as plain values, the model as it was really loaded included."""
    chosen = {name: getattr(settings, name) for name in FIELDS[stage]}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    return plain if stage == "heatmap" else plain | identity(lm, settings)


def identity(lm: LanguageModel, settings: Settings) -> dict[str, Any]:
    return {
        "model": safe_name(lm.name),
        "weights_sha": lm.weights_sha,
        "tokenizer_sha": lm.tokenizer_sha,
        "dtype": lm.dtype,
        "device": lm.device.type,
        "quant": lm.quant,
        "attn_implementation": lm.attn_implementation,
        "engine": engines.chosen(lm, settings.engine),
    }
