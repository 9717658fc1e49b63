"""What is chosen for a run of Select-KV: the file as people write it, and the resolved tree that everything reads.

The file has `seed`, `model`, `data`, `metrics` and `runtime` at its top, for all phases, and `phase2`. What stands again
inside `phase2` wins over the top; either is an error where it is unknown, of another type or out of range.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from fvcore.experiments.config import Config, Memory, Numbers, Option, Words
from fvcore.experiments.select_kv.errors import HFBackendUnavailable
from fvcore.formats import read_yaml
from fvcore.profile import MOST_SEED

CONFIGS = Path(__file__).parent / "configs"
TINY, WIRED, PLAN = (CONFIGS / f"{name}.yaml" for name in ("tiny", "wired", "plan"))

SelectMode = Literal["attention_diversity_span", "delimiter_span", "random_span", "causal_drop_span"]
Dtype = Literal["auto", "float16", "bfloat16", "float32"]
DTYPES = {"auto": None, "float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""The plan's names of dtypes -> the project's; None is what the checkpoint has."""

RANDOM_TRIALS = 5


@cache
def _planned_model() -> str:
    """The plan's model; its id stands in the plan's config alone."""
    return str(read_yaml(PLAN)["model"]["id"])


def _truth(value: Any) -> Any:
    """`true` and `false` of an option, which is text."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _unless(*names: str) -> Any:
    """Some words as they are; everything else as numbers or words are read."""
    from fvcore.experiments.config import numbers

    return BeforeValidator(lambda value: value if value in names else numbers(value))


class ModelSettings(Config):
    id: Annotated[str, Option(flag="phase2_model_id")] = Field(
        default_factory=_planned_model, min_length=1, description="Shipped model, directory or cached hub id."
    )
    revision: str | None = Field(default=None, description="Of a hub id (default: the cached one).")


class SyntheticSettings(Config):
    relation: Literal["key_value_mapping_qa"] = "key_value_mapping_qa"
    num_pairs: int = Field(default=5, ge=1, description="Pairs in a demonstration.")
    key_prefix: str = Field(default="key", min_length=1, description="Keys are <prefix>_0, <prefix>_1, ...")
    value_prefix: str = Field(default="V", min_length=1, description="Of values where letters are no tokens.")
    mapping: Literal["random", "fixed"] = Field(
        default="random", description="random; fixed pairs the same key and value everywhere, for comparison."
    )
    value_pool: Literal["auto"] | Words = Field(
        default="auto", description="Values to draw from; auto: letters or words that are one token."
    )
    header: str = Field(default="Demo:\n", description="What a demonstration begins with.")
    arrow: str = Field(default=" -> ", min_length=1, description="Between key and value.")
    query: str = Field(
        default="Question: What is the value for {key}?\nAnswer:", pattern=r"\{key\}", description="A query's text."
    )


class OnSettings(Config):
    source: Literal["key_value", "relation"] = Field(
        default="key_value", description="key_value lookups, or trials of a relation."
    )
    path: Path | None = Field(
        default=None,
        description="Of relation: fixed trials, a sampled_trials.json or a folder of them (default: the shipped relations).",
    )
    n_shots: int = Field(default=10, ge=1, description="Demonstrations, where relations are drawn from.")


class OffSettings(Config):
    source: str = Field(
        default="builtin",
        pattern=r"^(builtin|legacy5|relation|.+\.jsonl)$",
        description="builtin, legacy5, relation (other groups' prompts), or a .jsonl file of {text} objects.",
    )
    path: Path | None = Field(
        default=None, description="Of relation: trials of other relations (default: the shipped relations)."
    )
    allow_repeat: bool = Field(default=False, description="Take prompts again where there are too few.")
    n_shots: int = Field(default=10, ge=1, description="Demonstrations in a prompt of a shipped relation.")


class DataSettings(Config):
    synthetic: SyntheticSettings = SyntheticSettings()
    on: OnSettings = OnSettings()
    off: OffSettings = OffSettings()


class MetricsSettings(Config):
    schema_version: Literal[1] = 1


class RuntimeSettings(Config):
    backend: Literal["hf", "mock"] = Field(default="hf", description="hf alone; mock is refused.")
    allow_mock_fallback: bool = Field(default=False, description="true is refused.")
    device: Annotated[str, Option(flag="phase2_device")] = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto (cuda if there), cpu, cuda or cuda:K."
    )
    torch_dtype: Annotated[Dtype, Option(flag="phase2_dtype")] = Field(
        default="auto", description="auto: the checkpoint's."
    )
    attn_implementation: Literal["eager", "sdpa"] = Field(default="eager", description="Scores are always eager's.")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads (default: one for a small model, else all cores)."
    )
    output_root: Path = Field(default=Path("outputs"), description="Folder of runs, each in its own.")

    @property
    def dtype(self) -> str | None:
        """As the project names it; None is the checkpoint's."""
        return DTYPES[self.torch_dtype]


class TokenizationSettings(Config):
    add_bos: Annotated[Literal["auto"] | bool, BeforeValidator(_truth)] = Field(
        default="auto", description="A BOS before every condition; auto: where the tokenizer puts one."
    )


class EvalSettings(Config):
    on_samples: Annotated[int, Option(flag="phase2_max_on")] = Field(
        default=64, ge=1, description="Queries that need their demonstration."
    )
    off_samples: Annotated[int, Option(flag="phase2_max_off")] = Field(
        default=256, ge=1, description="Prompts that do not."
    )
    repro_runs: int = Field(default=2, ge=1, description="Times that the ON side is computed.")
    n_random_trials: int = Field(default=RANDOM_TRIALS, ge=1, description="Selections by chance beside each.")
    decoding: Literal["greedy"] = "greedy"
    answer_scoring: Literal["first_token", "full_answer"] = Field(
        default="first_token", description="An answer counts by its first token, or as a whole."
    )
    off_state_limit: int | None = Field(default=None, ge=1, description="States asked of an OFF prompt (default: all).")
    off_batch_size: int = Field(default=64, ge=1, description="Rows of an OFF forward pass.")
    max_memory: Memory | None = Field(
        default=None,
        description="Memory, such as 8GiB, that a batch may take beside the weights, and all that is held of OFF prompts.",
    )

    def off_held(self, vocab: int, n_prompts: int) -> int:
        """How many OFF prompts are asked before the next ones: of each, logits twice, and what a KL takes in float64."""
        return n_prompts if self.max_memory is None else max(1, min(n_prompts, self.max_memory // (48 * vocab)))


class PrefixSettings(Config):
    padding_mode: Literal["null_pad", "shrink_to_selected"] = Field(
        default="null_pad", description="Masked slots up to prefix_len, or none."
    )


class InjectionSettings(Config):
    positioning_mode: Literal["compact", "absolute"] = Field(
        default="compact", description="Selected tokens side by side, or where they stood."
    )
    kv_source: Literal["auto", "gather", "recompute"] = Field(
        default="auto", description="gather: the demonstration's own cache; recompute: the selected tokens alone."
    )


class CausalDropSettings(Config):
    enabled: bool = Field(default=False, description="Score by hiding each span, beside any mode.")
    metric: Literal["kl", "answer_logprob"] = "kl"
    gate_eligible: bool = Field(default=False, description="Such a selection may pass; never with answer_logprob.")


class SelectSettings(Config):
    mode: SelectMode = Field(default="attention_diversity_span", description="What chooses spans.")
    span_len: int = Field(default=4, ge=1, description="Tokens of a span.")
    span_budget: int = Field(default=4, ge=1, description="Spans chosen.")
    min_span_distance: int = Field(default=1, ge=0, description="Tokens between two spans.")
    candidate_policy: Literal["input_and_delimiter_only", "all"] = Field(
        default="input_and_delimiter_only", description="Where an anchor may stand; all is for analysis."
    )
    center_policy: Literal["start", "center"] = Field(default="start", description="A span's anchor.")
    query_reduce: Literal["mean", "last"] = Field(default="mean", description="Query rows whose attention counts.")
    causal_drop: CausalDropSettings = CausalDropSettings()


class LayerScopeSettings(Config):
    selection: Literal["top25", "all"] = Field(default="top25", description="Layers whose attention scores tokens.")
    injection: Annotated[Literal["all", "top25"] | Numbers, _unless("all", "top25")] = Field(
        default="all", description="Layers that see the prefix: all, top25, or numbers such as 2,3."
    )


class ThresholdSettings(Config):
    on_gain_min: float = Field(default=0.02, ge=-1, le=1, description="Accuracy over base.")
    off_delta_p99_max: float = Field(default=0.05, ge=0, description="Nats.")
    delta_on_min: float = Field(default=0.01, ge=0, description="Nats.")
    rel_kl_to_teacher_max: float = Field(default=1.0, ge=0, description="Distance to the teacher, of base's.")
    repro_acc_tol: float = Field(default=0.02, ge=0, le=1, description="Accuracy between repeated runs.")
    teacher_min_divergence: float = Field(default=0.02, ge=0, description="Nats between teacher and base.")
    teacher_min_on_acc: float = Field(default=0.2, ge=0, le=1, description="Below it ON says nothing.")
    alpha_roundtrip: float = Field(default=0.5, ge=0, description="The whole demonstration through the builder.")
    eps_null_floor: float = Field(default=1e-3, ge=0, description="Nats of an empty prefix.")
    eps_null_multiplier: float = Field(default=10.0, ge=0, description="Of the noise between two base runs.")
    eps_nonzero_multiplier: float = Field(default=10.0, ge=0, description="Of what an empty prefix may do.")
    eps_teacher_cache_floor: float = Field(default=1e-3, ge=0, description="Nats between one pass and two.")
    eps_teacher_cache_multiplier: float = Field(default=10.0, ge=0, description="Of the noise between two base runs.")
    off_delta_reduction: Literal["stress", "typical"] = Field(
        default="stress", description="An OFF prompt counts by its worst state, or by one."
    )


class ReportingSettings(Config):
    topk_tokens: int = Field(default=16, ge=0, description="Tokens shown of a distribution.")
    compare_kv_sources: bool = Field(default=False, description="The other kv_source beside the chosen one.")
    save_states: bool = Field(default=False, description="Every ON sample's state as safetensors.")
    layer_curve: bool = Field(default=False, description="ON accuracy by the layers that see the state.")
    budget_curve: bool = Field(default=False, description="ON accuracy by the tokens kept, for every method.")


class Phase2Block(Config):
    """What stands in `phase2` alone."""

    tokenization: TokenizationSettings = TokenizationSettings()
    eval: EvalSettings = EvalSettings()
    prefix_len: int = Field(default=32, ge=0, description="Slots behind the sink.")
    prefix: PrefixSettings = PrefixSettings()
    injection: InjectionSettings = InjectionSettings()
    select: SelectSettings = SelectSettings()
    layer_scope: LayerScopeSettings = LayerScopeSettings()
    thresholds: ThresholdSettings = ThresholdSettings()
    reporting: ReportingSettings = ReportingSettings()


class Shared(Config):
    """What stands at the top, and may stand in `phase2`."""

    seed: int = Field(default=7, ge=0, le=MOST_SEED, description="Of every draw.")
    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings = DataSettings()
    metrics: MetricsSettings = MetricsSettings()
    runtime: RuntimeSettings = RuntimeSettings()


class Phase2(Phase2Block, Shared):
    """Everything resolved."""

    plan_version: ClassVar[str] = "phase2_v2"

    def changed(self, values: Mapping[str, Any]) -> Phase2:
        """With other values by dotted key: `{"select.span_len": 2}`; raises pydantic's error for a value that may not be."""
        tree = self.model_dump(mode="json")
        for key, value in values.items():
            *groups, last = key.split(".")
            branch = tree
            for group in groups:
                branch = branch[group]
            branch[last] = value
        return Phase2.model_validate_json(json.dumps(tree))

    def text(self) -> str:
        """As a file says it; read again it resolves to the same."""
        tree = self.model_dump(mode="json")
        top = {name: tree.pop(name) for name in Shared.model_fields}
        return SelectKVConfig.model_validate_json(json.dumps(top | {"phase2": tree})).text()

    def require_hf(self) -> None:
        """Raise HFBackendUnavailable where something else than the model itself is asked to answer."""
        if self.runtime.backend != "hf":
            raise HFBackendUnavailable(
                f"runtime.backend: expected hf, found {self.runtime.backend}; nothing else is run"
            )
        if self.runtime.allow_mock_fallback:
            raise HFBackendUnavailable(
                "runtime.allow_mock_fallback: expected false, found true; a number that no model gave is no result"
            )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and seldom meant."""
        asked = self.select.span_len * self.select.span_budget
        said = {
            f"select: {asked} tokens are asked for and prefix_len is {self.prefix_len}; the last ranks are cut": asked
            > self.prefix_len,
            f"eval.n_random_trials is {self.eval.n_random_trials}; the plan's gate is over {RANDOM_TRIALS}": (
                self.eval.n_random_trials != RANDOM_TRIALS
            ),
            "select.candidate_policy is all: answers may be copied; for analysis": self.select.candidate_policy
            == "all",
            "select.mode is causal_drop_span, which is advisory: no final pass": self.is_advisory,
        }
        return tuple(text for text, holds in said.items() if holds)

    @property
    def is_advisory(self) -> bool:
        """A selection that cannot pass, because it hides spans from the query that it is judged on."""
        drop = self.select.causal_drop
        return self.select.mode == "causal_drop_span" and not (drop.gate_eligible and drop.metric == "kl")


class SelectKVConfig(Shared):
    """A file. `phase2.seed`, `phase2.model`, ... are spellings of the keys at its top, and win over them."""

    moved: ClassVar[Mapping[str, str]] = {f"phase2.{name}": name for name in Shared.model_fields}
    phase2: Phase2Block = Phase2Block()
    run: dict[str, Any] = Field(
        default={}, exclude=True, description="What a run's own config says about that run; nothing reads it."
    )

    def resolve(self) -> Phase2:
        tree = self.model_dump(mode="json", exclude={"run"})
        return Phase2.model_validate_json(json.dumps(tree.pop("phase2") | tree))
