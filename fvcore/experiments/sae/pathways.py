"""What discovery writes: of a target its candidates, of a pathway its replays, of a run all pathways with their verdicts."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import Field

from fvcore.experiments.sae.schemas import Row

CANDIDATES = "results/pathways/candidates.jsonl"
REPLAYS = "results/pathways/replay.jsonl"
NULLS = "results/pathways/nulls.jsonl"
PATHWAYS = "results/pathways/validated_pathways.json"
RESCORED = "results/pathways/rescored_pathways.json"

Status: TypeAlias = Literal[
    "validated",
    "not_specific",
    "small_effect",
    "unstable_sign",
    "mode_disagreement",
    "source_inactive",
    "target_inactive",
    "numeric_error",
]
"""Why a pathway is not validated: the first of these that holds, of those about numbers before all others."""


class Node(NamedTuple):
    """A feature of a layer."""

    layer: int
    id: int

    @property
    def name(self) -> str:
        return f"L{self.layer}-{self.id}"

    @classmethod
    def of(cls, name: str) -> Node:
        """`L26-1069` -> 26, 1069."""
        layer, _, number = name.removeprefix("L").partition("-")
        return cls(int(layer), int(number))


class Place(Row):
    """Where a source counts most. token: its text; its number where there is no tokenizer"""

    context: str
    token: str
    offset_from_end: int


class Candidate(Row):
    """A source that may cause a target.

    gradient: of the target in the source's activation, mean over tokens and contexts where it is active
    attribution: activation times gradient, summed over tokens, mean over all contexts: what ablation would take, if all were
    linear; attributions: of each context     attribution_rel: over the target's scale
    norm: of what it adds to the residual stream, over all tokens that count, mean over contexts where it is active
    passthrough: its direction is nearly the target's, which then may be the same thing carried on
    """

    source: str
    gradient: float
    attribution: float
    attribution_rel: float
    attributions: list[float]
    n_active: int
    norm: float
    decoder_cosine: float
    passthrough: bool
    top_position: Place


class TargetRow(Row):
    """A line of `candidates.jsonl`.

    scale: mean over contexts of its activation, or of its threshold where that is more
    activations: before the gate, of each context     explained: layer -> the sum of all attributions
    there, and <h, g> of residual stream and gradient, which it is beside errors and biases
    """

    target: str
    status: Literal["ok", "target_inactive", "numeric_error"]
    scale: float
    n_active: int
    activations: list[float]
    explained: dict[str, tuple[float, float]]
    candidates: list[Candidate]


class ReplayRow(Row):
    """A line of `replay.jsonl`: a source edited along its decoder, in each context where it is active.

    contexts: their ids     norms: of what ablation takes from the residual stream, over all its tokens
    deltas: mode -> what became of the target before its gate, of each context; post: the same behind the gate
    n_on: contexts of these in which the target is active; n_off: those of them in which ablation switches it off
    directions: root mean square of the change per length, for random directions in the source's place
    n_directions: how many     noop: the largest change of the target when the source is given the value that it has
    rounding: what rounding alone may make of that, which is much in half precision
    """

    source: str
    target: str
    contexts: list[str]
    norms: list[float]
    deltas: dict[str, list[float]]
    post: dict[str, list[float]]
    n_on: int
    n_off: int
    directions: float
    n_directions: int
    noop: float
    rounding: float


class NullRow(Row):
    """A line of `nulls.jsonl`: a random active feature, ablated. effects: target -> mean square of its change per length"""

    source: str
    effects: dict[str, float]


class Pathway(Row):
    """One tested pathway. z: against random directions, z_features: against random active features; p_value: the larger of
    both, q_value: that one, corrected; None where it could not be tested

    delta_mean, delta_ci: of ablation     rel_effect: |delta_mean| over the target's scale
    predicted_mean, correlation, slope: what gradients say of it, over contexts
    switches_off: share of contexts, of those with an active target
    """

    source: str
    target: str
    source_layer: int
    source_id: int
    target_layer: int
    target_id: int
    gradient: float
    attribution: float
    attribution_rel: float
    n_active: int
    passthrough: bool
    decoder_cosine: float
    delta_mean: float | None = None
    delta_ci: tuple[float, float] | None = None
    rel_effect: float | None = None
    sign_agreement: float | None = None
    z: float | None = None
    z_features: float | None = None
    p_directions: float | None = None
    p_features: float | None = None
    p_value: float | None = None
    q_value: float | None = None
    predicted_mean: float | None = None
    correlation: float | None = None
    slope: float | None = None
    post_delta_mean: float | None = None
    switches_off: float | None = None
    amplify: dict[str, float] | None = None
    by_prompt: dict[str, dict[str, float | int]] = Field(default_factory=dict)
    top_position: Place
    status: Status
    validated: bool


class PathwaysSummary(Row):
    """targets: status of `TargetRow` -> how many"""

    validated: int
    by_status: dict[str, int]
    by_layer_pair: dict[str, int]
    targets: dict[str, int]


class ValidatedPathways(Row):
    """`results/pathways/validated_pathways.json`: all that were tested, by target and attribution."""

    metadata: dict[str, Any]
    summary: PathwaysSummary
    pathways: list[Pathway]
