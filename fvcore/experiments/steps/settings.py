"""What is chosen for the production steps, and which choice belongs to which stage."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fvcore import names
from fvcore.experiments.config import Config, ConfigError, LayerOrAll, Memory, Numbers, Option
from fvcore.experiments.steps.scores import SCORES
from fvcore.model.spec import ModelError
from fvcore.profile import MOST_SEED
from fvcore.provenance import model_identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fvcore.model.model import LanguageModel

STEPS = ("sample", "stepd", "heatmap", "stepe", "zeroshot", "step6")
STEP6_KEYS = ("delta_acc", "mean_delta_logit", "mean_delta_logprob", "mean_delta_p")
"""What the best injection layer can be chosen by."""


STEP_COMMANDS: dict[str, tuple[Mapping[str, Any], str]] = {
    "stepd": ({"steps": ("sample", "stepd")}, "Sample the trials and compute the indirect effect of every head."),
    "heatmap": ({"steps": ("heatmap",)}, "Draw the scores; the model is not needed."),
    "stepe": ({"steps": ("stepe",)}, "Choose the top heads and make the function vector."),
    "zeroshot": ({"steps": ("zeroshot",)}, "Write the sampled trials' queries without demonstrations."),
    "step6": ({"steps": ("step6",)}, "Add the vector behind a layer, or behind each, and evaluate."),
}
"""`run --steps ...` under the plans' names: what each sets, and its help."""


def _one_of(known: Sequence[str], value: str) -> str:
    if value not in known:
        raise ValueError(f"unknown score {value!r}; expected one of {', '.join(known)}")
    return value


class StepSettings(Config):
    """Defaults are the plan's, and so are the names in files: there `top_heads` is `topk`."""

    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="Of every draw.")
    engine: Literal["fast", "exact", "screened"] = Field(
        default="fast",
        description="fast, where it holds; exact; or screened: heads that cannot come to the top are left out.",
    )
    layers: Numbers | None = Field(default=None, description="StepD's sweep, such as 0,2,5-7 (default: all).")
    heads: Numbers | None = Field(default=None, description="StepD's sweep, such as 0,2,5-7 (default: all).")
    score_key: Annotated[str, AfterValidator(partial(_one_of, SCORES)), Option("metric")] = Field(
        default="mean_delta_p", description="Column of the scores by which heads are chosen."
    )
    top_heads: Annotated[int, Option("topk", "k")] = Field(
        default=20, ge=1, serialization_alias="topk", description="Heads in the vector; never lowered silently."
    )
    alpha: float = Field(default=1.0, description="How strongly the vector is added.")
    zeroshot_trailing_space: bool = Field(default=False, description="The plan's literal prompt, a space at its end.")
    edit_layer: LayerOrAll = Field(default="all", description="A layer, or all.")
    n_eval: int = Field(default=50, ge=1, description="Examples asked for; there may be fewer unique queries.")
    with_replacement: Annotated[bool, Option("allow_query_duplicates")] = Field(
        default=False, description="Exactly n-eval examples, drawn again and again."
    )
    step6_score_key: Annotated[str, AfterValidator(partial(_one_of, STEP6_KEYS))] = Field(
        default="mean_delta_logprob", description="By which the best layer is chosen."
    )
    max_memory: Memory | None = Field(
        default=None,
        description="Memory beside the weights, such as 8GiB (default: half of what is free); changes no result.",
    )

    def layers_of(self, lm: LanguageModel) -> list[int]:
        layers = _chosen(self.layers, lm.n_layers, "layer")
        if self.layers is None:
            return list(lm.head_layers)
        if without := [layer for layer in layers if layer not in lm.head_layers]:
            has = ", ".join(map(str, lm.head_layers))
            raise ModelError(f"layer {without[0]} of {lm.name} has no attention heads (--layers); these have: {has}")
        return layers

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

    def require_fit(self, lm: LanguageModel, steps: Sequence[str] = STEPS) -> None:
        """Raise the one clear error a setting that does not fit the model deserves, before anything is computed."""
        n = len(self.layers_of(lm)) * len(self.heads_of(lm))
        if self.top_heads > n and {"heatmap", "stepe"} & set(steps):
            raise ModelError(
                f"top {self.top_heads} heads asked for, the sweep over {lm.name} has {n} heads; "
                f"the number is not lowered silently: choose 1 to {n} with --top-heads"
            )
        if self.engine == "screened" and self.score_key != "mean_delta_p":
            raise ModelError(
                f"engine screened estimates changes of the probability, --score-key mean_delta_p, not {self.score_key}; use fast"
            )
        self.edit_layers(lm)


def chosen_steps(asked: Sequence[str], pictures: bool) -> list[str]:
    """In their order; without `pictures` the heat map is drawn only where it is asked for by name."""
    if unknown := [step for step in asked if step not in STEPS]:
        raise ConfigError(f"--steps: no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    return [step for step in STEPS if step in (asked or (STEPS if pictures else set(STEPS) - {"heatmap"}))]


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


def settings_of(stage: str, settings: StepSettings, lm: LanguageModel) -> dict[str, Any]:
    """Everything a stage's files depend on, as plain values, the model as it was really loaded included."""
    every = settings.model_dump(mode="json", by_alias=True)
    # Which heads a screened sweep leaves out depends on how many are wanted.
    more = ("topk",) if stage == "stepd" and settings.engine == "screened" else ()
    plain = {name: every[name] for name in (*FIELDS[stage], *more)}
    return plain if stage == "heatmap" else plain | identity(lm, settings)


def identity(lm: LanguageModel, settings: StepSettings) -> dict[str, Any]:
    from fvcore.fast import engines

    return {"model": names.of_model(lm.name), **model_identity(lm), "engine": engines.chosen(lm, settings.engine)}


def sizes_of(lm: LanguageModel) -> dict[str, Any]:
    """Of a model, under the names that the files use."""
    return {"n_heads": lm.n_heads, "head_dim": lm.d_head, "resid_dim": lm.d_model}
