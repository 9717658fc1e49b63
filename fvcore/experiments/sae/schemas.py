"""The files that people exchange: a checkpoint's result, a record of a log, and what the first steps write of them."""

from typing import Any, Literal, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

FEATURE = r"^L(0|[1-9]\d{0,5})-(0|[1-9]\d{0,11})$"
MAX_TRIAL = 9999

Severity: TypeAlias = Literal["error", "warning", "info"]
Code: TypeAlias = Literal[
    "NO_CHECKPOINTS",
    "NO_RESPONSE_LOGS",
    "UNREADABLE_FILE",
    "BAD_TOPLEVEL",
    "MISSING_FIELD",
    "BAD_TYPE",
    "FEATURE_ID_MISMATCH",
    "MISSING_FEATURE",
    "MISSING_CONDITION",
    "EMPTY_RESPONSE",
    "NO_CAUSAL",
    "MISSING_CONDITIONS",
    "LOW_TRIALS",
    "LOW_JOIN_RATE",
    "DUP_TRIAL",
    "DUP_RESULT",
    "CONFLICTING_RESULT",
    "NONFINITE_D",
    "UNKNOWN_CONDITION",
    "EXTRA_FILE",
    "ALIAS_USED",
]


class Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


NOT_CAUSAL = ("no_causal_effect", "no_effect")


class Result(BaseModel):
    """A feature of a checkpoint. NaN is read, because files hold it; what is not named here is left aside.

    variant: which of two layouts it had; the one with `causality` says in several fields what `is_causal` says in one
    effects: effect sizes under the safe and the risky prompt, where there are none the changes of the stop rate
    """

    model_config = ConfigDict(strict=True, frozen=True)
    feature: str = Field(pattern=FEATURE)
    layer: int = Field(ge=0)
    feature_id: int = Field(ge=0)
    is_causal: bool
    cohen_d: float
    safe_effect: float | None = Field(
        default=None, validation_alias=AliasChoices("safe_effect_size", "safe_stop_delta")
    )
    risky_effect: float | None = Field(
        default=None, validation_alias=AliasChoices("risky_effect_size", "risky_stop_delta")
    )
    safe_p_value: float | None = None
    risky_p_value: float | None = None
    variant: Literal["is_causal", "causality"] = "is_causal"

    @model_validator(mode="before")
    @classmethod
    def _adapted(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "is_causal" in value or not isinstance(value.get("causality"), dict):
            return value
        told = value["causality"]
        causal = any(told.get(f"is_causal_{name}") is True for name in ("safe", "risky", "any"))
        causal = causal or ("interpretation" in told and told["interpretation"] not in NOT_CAUSAL)
        return told | value | {"is_causal": causal, "variant": "causality"}


class ResponseRecord(BaseModel):
    """A record of a log; a response may be blank, which is counted."""

    model_config = ConfigDict(strict=True, frozen=True)
    feature: str = Field(pattern=FEATURE)
    condition: str = Field(min_length=1)
    response: str
    trial: int | None = Field(default=None, ge=0, le=MAX_TRIAL)


class IssueRow(Row):
    """One place. n: how many, where the issue is a number"""

    message: str
    feature: str = ""
    condition: str = ""
    file: str = ""
    n: int | None = None


class IssueGroup(Row):
    """All issues of a code: `count` is whole, `first` the first of them by layer, id and condition."""

    code: Code
    severity: Severity
    count: int
    listed: int
    first: list[IssueRow]


class PlanResults(Row):
    """What the plan's own readers look for."""

    errors: list[str]
    warnings: list[str]
    validated: bool


class Validation(Row):
    """`results/audit/data_validation.json`, the same shape however the audit ends.

    checkpoints: results_total, unique_features, duplicates, conflicts, nonfinite_cohen_d, and schema_variants by file
    conditions: totals, aliases_seen and unknown by name; features_missing_any; low_trial_cells
    oddities: NaN and infinite constants, and lone surrogates, that were read
    trials_per_cell: distinct trials of a feature under an expected condition
    """

    schema_version: Literal[1] = 1
    validated: bool
    policy: Literal["default", "v4"]
    files: dict[str, int]
    checkpoints: dict[str, int | dict[str, int]]
    causal_by_layer: dict[str, int]
    total_causal_features: int
    total_trials: int
    total_response_features: int
    joinable_features: int
    join_rate_percent: float
    missing_causal_features: dict[str, int | list[str]]
    conditions: dict[str, int | dict[str, int]]
    oddities: dict[str, int]
    trials_per_cell: dict[str, int | None]
    issues: list[IssueGroup]
    audit_results: PlanResults
    inputs_fingerprint: str
    timing_s: float
    peak_rss_mb: float


class Feature(Row):
    """A feature that was chosen. q_causal: the smaller of its two p-values, corrected over all features and both prompts

    direction: risky where the feature is stronger before a bankruptcy, that is where d > 0
    """

    feature: str
    layer: int
    feature_id: int
    cohen_d: float
    abs_d_rank_in_layer: int
    direction: Literal["risky", "safe"]
    safe_effect: float | None
    risky_effect: float | None
    p_values: dict[str, float | None]
    q_causal: float | None
    n_source_files: int
    joinable: bool


class FeaturesMetadata(Row):
    """per_layer: causal, kept, and min_abs_d_kept (null where none was kept)     forced: on data that did not pass"""

    schema_version: Literal[1] = 1
    rank_by: str
    top_k_per_layer: int
    layers: tuple[int, int]
    total_causal: int
    total_filtered: int
    per_layer: dict[str, dict[str, int | float | None]]
    source_fingerprint: str
    forced: bool


class CausalFeatures(Row):
    """`data/causal_features.json`, by layer and rank."""

    metadata: FeaturesMetadata
    features: list[Feature]


class Source(Row):
    """The logged response that a context goes on with."""

    feature: str
    condition: str
    trial: int | None
    n_response_tokens: int


class Context(Row):
    """A prompt, or a prompt and the first tokens of a response to it. special: tokens that stand for no text, such as BOS"""

    id: str
    type: Literal["bare", "continued"]
    prompt_type: str
    text_sha: str
    source: Source | None
    n_tokens: int
    input_ids: tuple[int, ...]
    special: tuple[bool, ...]


class PromptsSample(Row):
    """`data/prompts_sample.json`."""

    schema_version: Literal[1] = 1
    tokenizer: str
    seed: int
    contexts: list[Context]
