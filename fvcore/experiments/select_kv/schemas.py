"""What stands in a run's files, line by line: the rows that the stages write, the plan's records, and the report.

A number that is not finite is null: JSON has no other, and `number` reads it as NaN again, so that a gate still fails it.
"""

import math
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

Number: TypeAlias = float | None
Token: TypeAlias = tuple[int, str, float]
"""An id, its text and its probability."""


def finite(value: float) -> Number:
    return value if math.isfinite(value) else None


def number(value: Number) -> float:
    return math.nan if value is None else value


class Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SelectionTrial(Row):
    trial: int
    spans: list[tuple[int, int]]
    indices: list[int]
    hit: bool


class SelectionRow(Row):
    """A line of `phase2_selection.json`. indices: kept tokens of the demo, in the order of positions

    attention_score, causal_drop_score: the mean over the chosen spans, null where it was not measured
    """

    sample_id: str
    episode_id: str
    mode: Literal["on"] = "on"
    selection_mode: str
    aggregation: str
    query_reduce: str
    layer_ids: list[int]
    demo_len: int
    query_len: int
    spans: list[tuple[int, int]]
    span_ranks: list[int]
    span_scores: list[Number]
    anchors: list[int]
    indices: list[int]
    selected_token_ids: list[int]
    selected_token_text: list[str]
    selected_token_count: int
    truncated: bool
    fewer_spans: bool
    contains_value_token: bool
    contains_answer_token: bool
    attention_score: Number
    causal_drop_score: Number = None
    random: list[SelectionTrial]


class PrefixMetaRow(Row):
    """A line of `phase2_prefix_meta.json`: the prefix of the selected tokens, and where the query stands behind it."""

    sample_id: str
    episode_id: str
    positioning_mode: str
    padding_mode: str
    kv_source: str
    prefix_len: int
    sink_len: int
    effective_prefix_len: int
    null_pad_tokens: int
    cache_len: int
    selected_positions: list[int]
    query_position_first: int
    query_position_last: int
    attention_mask_len: int
    attention_mask_sum: int


class Arm(Row):
    """What an ON query is answered under one condition, beside the base and the teacher; KLs in nats.

    kept: tokens of the demo that the query can see     gain: of the answer's log probability over the base's
    """

    hit: bool
    kept: int
    kl_base: Number
    kl_teacher: Number
    rel_kl: Number
    gain: Number


class Repeat(Row):
    """The ON part done once more with fresh caches; differences are from the first time."""

    run: int
    full_hit: bool
    select_hit: bool
    max_abs_logit_diff: Number
    same_selection: bool


class Topk(Row):
    """The most probable tokens under base, teacher (of ON queries) and select."""

    base: list[Token]
    teacher: list[Token] = []
    select: list[Token]


class OnRow(Row):
    """An ON sample. arms: base, teacher, teacher_cached, select, recent, full, null, and `select_<kv_source>` of the other
    source where it is asked for     random: the trials

    base_teacher_kl: KL(base || teacher)     teacher_base_kl: KL(teacher || base)
    teacher_cache_kl: KL(cached || full)     noise: KL of a repeated base run, of the first samples alone
    tokens, roles, scores: of the demo; a score is attention
    """

    index: int
    sample_id: str
    episode_id: str
    group: str
    query_text: str
    answer: str
    answer_ids: list[int]
    boundary_mismatch: bool
    base_teacher_kl: Number
    teacher_base_kl: Number
    teacher_cache_kl: Number
    noise: list[Number]
    arms: dict[str, Arm]
    random: list[Arm]
    repeats: list[Repeat]
    selection: SelectionRow
    prefix: PrefixMetaRow
    tokens: list[str]
    roles: list[str]
    scores: list[Number]
    topk: Topk | None = None


class OffArm(Row):
    """An OFF prompt on the states of one kind: KL(student || base) at its worst state, and at the one it falls to.

    accuracy: the share of states on which the prompt is answered rightly, null where it has no answer
    """

    stress: Number
    stress_state: str
    typical: Number
    typical_state: str
    mean: Number
    accuracy: Number


class OffRow(Row):
    """An OFF prompt. n_states: those that it was asked on     base_hit: null where it has no answer

    arms: select, recent, random (its first trial), full, and `select_<kv_source>` of the other source
    """

    index: int
    sample_id: str
    group: str
    text: str
    query_len: int
    n_states: int
    base_hit: bool | None
    noise: list[Number]
    null_kl: Number
    arms: dict[str, OffArm]
    topk: Topk | None = None


class MetricRecord(Row):
    """A line of `metrics.jsonl`. prompt_len: tokens of the query, 0 where there is no single one"""

    record_type: Literal["run", "sample"]
    run_id: str
    step: int
    split: str
    mode: str
    metric: str
    value: Number
    seed: int
    timestamp: str
    model_id: str
    prompt_len: int
    prefix_len: int
    episode_id: str
    sample_id: str | None = None


DELTA = "KL(student || base), nats, full vocabulary, float64"
OFF_EVAL = {
    "stress": "an OFF prompt counts by the state that moves it most, of all that it is asked on",
    "typical": "an OFF prompt counts by the state that its index falls to",
    "p99": "nearest rank over OFF prompts",
    "accuracy": "share of states on which a prompt with an answer is answered rightly, mean over prompts",
}


class Report(Row):
    """`report_phase2.json` of a run that was judged."""

    run_id: str
    phase: Literal[2] = 2
    plan_version: str
    status: Literal["pass", "fail"]
    final_pass: bool
    failure_reason: str
    gateA_pass: bool  # noqa: N815  the plan's name
    gateB_pass: bool  # noqa: N815
    backend: Literal["hf"] = "hf"
    device: str
    dtype: str
    model_id: str
    model_revision: str | None
    decoding: str
    answer_scoring: str
    positioning_mode: str
    padding_mode: str
    kv_source: str
    select: dict[str, Any]
    layer_scope: dict[str, Any]
    prefix_len: int
    sink_len: int
    delta_definition: str = DELTA
    off_eval_definitions: dict[str, str] = OFF_EVAL
    thresholds: dict[str, Number | str]
    gates: dict[str, dict[str, Any]]
    metrics: dict[str, Number]
    intervals: dict[str, dict[str, Any]]
    on: dict[str, dict[str, Number]]
    off: dict[str, dict[str, Number]]
    reproducibility: dict[str, Any]
    sample_counts: dict[str, int]
    topk: dict[str, list[Any]]
    memory: dict[str, Any]
    timings_s: dict[str, float]
    warnings: list[str]
    artifacts: dict[str, str]


class ErrorReport(Row):
    """`report_phase2.json` of a run that could not be judged: no gate has a number."""

    run_id: str
    phase: Literal[2] = 2
    plan_version: str
    status: Literal["error"] = "error"
    error_type: str
    error: str
    gateA_pass: Literal[False] = False  # noqa: N815
    gateB_pass: Literal[False] = False  # noqa: N815
