"""What is chosen for pathways, from the data to the report: one tree, the same for every step."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fvcore.experiments.config import PRINTED, Config, Json, Numbers, Option, Words
from fvcore.experiments.sae.schemas import Code, Severity
from fvcore.formats import read_text, read_yaml, yaml_value
from fvcore.profile import MOST_SEED

PLAN = Path(__file__).parent / "configs" / "plan.yaml"
"""Ids of models and repositories, and the plan's folders, stand there alone."""


@cache
def _planned(group: str, name: str) -> Any:
    return read_yaml(PLAN)[group][name]


def planned(group: str, name: str) -> Any:
    """What makes a default of the plan's own value."""
    return partial(_planned, group, name)


def _yaml(value: Any) -> Any:
    """An option is text: YAML in one line."""
    import yaml

    try:
        read = yaml_value(value) if isinstance(value, str) else value
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    return tuple(read) if isinstance(read, list) else read


def _ends(value: Any) -> Any:
    """`1-31` and `1,31` -> 1, 31."""
    if isinstance(value, str):
        value = [int(part) if part.strip().isdecimal() else part for part in value.replace("-", ",").split(",")]
    return tuple(value) if isinstance(value, list) else value


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Tree = BeforeValidator(_yaml)


class Paths(Config):
    checkpoints: Words = Field(
        default_factory=lambda: (_planned("paths", "checkpoints"),), description="Globs of checkpoint files."
    )
    response_logs: Words = Field(
        default_factory=lambda: (_planned("paths", "response_logs"),),
        description="Globs of logs: .json, .jsonl, either of them .gz, .parquet.",
    )
    out: Path = Field(default_factory=lambda: Path(_planned("paths", "out")), description="Holds data/ and results/.")


class Model(Config):
    name: str = Field(
        default_factory=planned("model", "name"), description="Shipped model, directory or cached hub id."
    )
    revision: str | None = Field(default=None, description="Of a hub id (default: the cached one).")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(default="bfloat16", description="Of the weights.")
    device: Annotated[str, Option("device")] = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:K."
    )
    attn: Literal["sdpa", "eager"] = Field(default="sdpa", description="Attention implementation.")
    spec: str = Field(default="auto", description="Registered spec, alias or YAML file; auto: found.")


class ValueUnits(Config):
    kind: Literal["llama_scope_relu_normalised", "raw"] = Field(
        default="llama_scope_relu_normalised", description="Units of feature values in the data."
    )


class Autoencoders(Config):
    source: str = Field(default_factory=planned("sae", "source"), description="Directory, or cached hub id.")
    format: Literal["auto", "llama_scope", "sae_lens", "dictionary_learning", "canonical"] = Field(
        default="auto", description="Of the files; auto: found."
    )
    pattern: str = Field(
        default_factory=planned("sae", "pattern"), pattern=r"\{layer\}", description="A layer's folder in the source."
    )
    site: Literal["resid_post"] = "resid_post"
    gating: Literal["own", "saelens", "relu"] = Field(
        default="own",
        description="own: as published; saelens: Llama Scope as SAELens reads it; relu: no threshold, no TopK.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="What is computed in.")
    gpu_budget_gb: Positive = Field(default=2.0, description="Held on the device at a time.")
    cpu_budget_gb: Positive = Field(default=20.0, description="Held in memory at a time.")
    value_units: ValueUnits = ValueUnits()


class Features(Config):
    layers: Annotated[tuple[int, int], BeforeValidator(_ends)] = Field(
        default=(1, 31), description="First and last layer, such as 1-31."
    )
    top_k_per_layer: int = Field(default=50, ge=1, description="Features kept of a layer.")
    rank_by: Literal["cohen_d", "causal_effect", "combined"] = Field(
        default="cohen_d", description="|d|, the larger |effect|, or their product."
    )
    min_abs_d: float = Field(default=0.0, ge=0, description="Features of a smaller |d| are left out.")
    require_causal: bool = Field(default=True, description="Only features that were found causal.")
    require_joinable: bool = Field(default=False, description="Only features that stand in the logs.")

    @model_validator(mode="after")
    def _in_order(self) -> Features:
        if not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(f"layers: expected the first layer and the last, found {self.layers}")
        return self


class Conditions(Config):
    expected: Words = Field(
        default=(
            "safe_baseline",
            "safe_with_risky_patch",
            "risky_baseline",
            "risky_with_safe_patch",
            "safe_amplification",
            "risky_amplification",
        ),
        min_length=1,
        description="What every feature was tried under.",
    )
    aliases: Annotated[dict[str, str], Tree] = Field(
        default={"safe_with_safe_patch": "safe_amplification", "risky_with_risky_patch": "risky_amplification"},
        description="Other names in logs -> the expected one.",
    )

    @model_validator(mode="after")
    def _known(self) -> Conditions:
        if unknown := sorted(set(self.aliases.values()) - set(self.expected)):
            raise ValueError(f"aliases: expected names of {list(self.expected)}, found {unknown}")
        return self


class Audit(Config):
    min_trials: int = Field(default=20, ge=0, description="Fewer under a condition are a warning.")
    expected_trials: int = Field(default=30, ge=0, description="Said in that warning.")
    min_join_rate: Share = Field(default=0.9, description="Share of causal features in the logs; less is a warning.")
    max_listed: int = Field(default=10, ge=0, description="Issues of a kind that are listed; all are counted.")
    max_empty_rate: Share = Field(default=0.05, description="Share of empty responses; more is an error.")
    max_error_rate: Share = Field(default=0.0, description="Share of malformed records; more is an error.")
    severity: Annotated[dict[Code, Severity], Tree] = Field(
        default={}, description="Of a code, other than its own, such as {LOW_TRIALS: error}."
    )
    workers: int = Field(default=1, ge=1, description="Processes that read logs.")


class PromptFile(Config):
    file: Path


class Prompts(Config):
    safe: str | PromptFile = Field(default="", description="The exact text, or {file: ...}.")
    risky: str | PromptFile = Field(default="", description="The exact text, or {file: ...}.")

    def texts(self) -> dict[str, str]:
        """Type -> text, of those that are given, exactly as they are: a last space counts."""
        given = {"safe": self.safe, "risky": self.risky}
        texts = {kind: one if isinstance(one, str) else read_text(one.file) for kind, one in given.items()}
        return {kind: text for kind, text in texts.items() if text}


class Contexts(Config):
    per_prompt: int = Field(default=16, ge=1, description="Contexts of a prompt, the prompt itself among them.")
    prefix_tokens: Numbers = Field(
        default=(0, 4, 8, 16), min_length=1, description="Tokens of a logged response behind the prompt, in turn."
    )
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="Of the choice among responses.")
    exclude_special: bool = Field(default=True, description="BOS and the like count in no sum.")


class Prototype(Config):
    feature: str = Field(default="auto", pattern=r"^(auto|L\d+-\d+)$", description="auto, or a name such as L26-1069.")
    max_memory_gb: Positive = Field(default=28.0, description="At the peak.")
    instrumentation: Annotated[Literal["hooks", "hidden_states"], Option(flag="instrumentation")] = Field(
        default="hooks", description="hidden_states: as the plan reads layers, which the last one has not."
    )


class Scale(Config):
    scale: float


class Replay(Config):
    modes: Annotated[tuple[Literal["zero"] | Scale, ...], Tree] = Field(
        default=("zero", Scale(scale=2.0)), description="What becomes of a source feature."
    )
    control_directions: int = Field(default=32, ge=0, description="Random directions of the null.")
    control_contexts: int = Field(default=8, ge=1, description="Contexts that the null is measured on.")
    min_rel_effect: float = Field(default=0.1, ge=0, description="Of the target's scale.")
    min_sign_agreement: Share = Field(default=0.75, description="Share of contexts.")
    noop_tol: float = Field(default=1e-3, ge=0, description="What replaying the same value may change.")
    batch_rows: int = Field(default=64, ge=1, description="Rows of a forward pass.")


class Fdr(Config):
    q: Share = Field(default=0.05, description="Share of false discoveries.")
    family: Literal["global", "per_target"] = Field(default="global", description="Tests that are corrected together.")


class Discover(Config):
    batch_size: int = Field(default=5, ge=1, description="Targets of one backward pass.")
    source_scope: Literal["causal", "all"] = Field(default="causal", description="Features that may be sources.")
    positions: Literal["all", "last"] = Field(default="all", description="Tokens of a source that count.")
    attribution: Literal["grad_x_act", "ig"] = Field(default="grad_x_act", description="ig: integrated gradients.")
    ig_steps: int = Field(default=8, ge=1, description="Of integrated gradients.")
    top_k: int = Field(default=25, ge=1, description="Sources of a target that are replayed.")
    min_rel_attr: float = Field(default=0.02, ge=0, description="|mean attribution| over the target's scale.")
    legacy_min_abs_gradient: float | None = Field(default=None, description="The plan's threshold, 0.1.")
    min_active_contexts: int = Field(default=3, ge=1, description="Contexts in which a source is active.")
    replay: Replay = Replay()
    fdr: Fdr = Fdr()


class Comparison(Config):
    name: str
    baseline: str
    patched: str


def _comparison(name: str, baseline: str, patched: str) -> Comparison:
    return Comparison(name=name, baseline=baseline, patched=patched)


class LogitLens(Config):
    enabled: bool = Field(default=True, description="Rank tokens by the direction of a feature.")
    top_k: int = Field(default=20, ge=1, description="Tokens listed.")


class Tokens(Config):
    tokenizer: str | None = Field(default=None, description="Default: that of model.name.")
    mode: Literal["response_fisher", "permutation", "token_chi2_legacy"] = Field(
        default="response_fisher", description="The test; the last one is the plan's."
    )
    comparisons: Annotated[tuple[Comparison, ...], Tree] = Field(
        default=(
            _comparison("risky_patch_on_safe", "safe_baseline", "safe_with_risky_patch"),
            _comparison("safe_patch_on_risky", "risky_baseline", "risky_with_safe_patch"),
            _comparison("safe_amplification", "safe_baseline", "safe_amplification"),
            _comparison("risky_amplification", "risky_baseline", "risky_amplification"),
        ),
        description="Pairs of conditions.",
    )
    baseline_pool: Literal["per_feature", "pooled"] = Field(default="per_feature", description="Baseline responses.")
    pooled_max: int = Field(default=2000, ge=1, description="Responses of a pool.")
    min_df: int = Field(default=3, ge=1, description="Responses that hold a token.")
    min_abs_log_odds: float = Field(default=0.5, ge=0, description="Smaller ones are left out.")
    q: Share = Field(default=0.05, description="Share of false discoveries.")
    top_k: int = Field(default=20, ge=1, description="Tokens listed.")
    logit_lens: LogitLens = LogitLens()


class Integrate(Config):
    max_hops: int = Field(default=4, ge=1, description="Edges of a chain.")
    chains_per_target: int = Field(default=5, ge=1, description="The strongest ones.")
    verify_chains: bool = Field(default=False, description="Replay whole chains.")
    min_mediated: Share = Field(default=0.3, description="Share of an effect that goes through.")
    report: Words = Field(default=("md", "html"), description="md, html.")


class Runtime(Config):
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="Of every draw.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: as torch has them).")
    flush_every: int = Field(default=1, ge=1, description="Batches of a discovery between two files on disk.")
    ray: Annotated[str | None, Option(alone="local", metavar="[ADDRESS]")] = Field(
        default=None, description="Discovery on Ray actors: of this machine, or of the Ray at an address."
    )
    ray_cpus: int = Field(default=1, ge=1, description="CPUs, and threads, of each actor.")
    progress: Literal["auto", "bar", "log", "none"] = Field(
        default="auto", description="auto: a bar on a terminal, else a line a step."
    )


class PathwaysConfig(Config):
    """A file. What a step does not read does not concern it."""

    schema_version: Literal[1] = 1
    paths: Paths = Field(default_factory=Paths)
    model: Model = Field(default_factory=Model)
    sae: Autoencoders = Field(default_factory=Autoencoders)
    features: Features = Features()
    conditions: Conditions = Conditions()
    audit: Audit = Audit()
    prompts: Prompts = Prompts()
    contexts: Contexts = Contexts()
    prototype: Prototype = Prototype()
    discover: Discover = Discover()
    tokens: Tokens = Tokens()
    integrate: Integrate = Integrate()
    runtime: Runtime = Runtime()


class Training(Config):
    """What autoencoders are trained on, and how."""

    model: str = Field(default="tiny-llama", description="A shipped model, or one that knows the same relations.")
    out: Path = Field(default=Path("reports/sae"), description="Holds a folder for each layer, as SAELens writes it.")
    d_sae: int = Field(default=256, ge=1, description="Features of a layer.")
    k: int = Field(default=8, ge=1, description="Features that are active at a token.")
    prompts: int = Field(default=720, ge=18, description="Ten-shot prompts whose tokens are trained on.")
    steps: int = Field(default=600, ge=1, description="Of the optimiser, at each layer.")
    batch: int = Field(default=1024, ge=1, description="Tokens of a step.")
    held_out: int = Field(default=180, ge=18, description="Prompts that are judged by, drawn after those.")
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="Of every draw.")
    as_json: Json = PRINTED


class Info(Config):
    """Whose autoencoder is looked at, and on what."""

    folder: Annotated[Path, Option(positional=True, metavar="DIR")] = Field(description="Folder of one autoencoder.")
    format: Literal["auto", "llama_scope", "sae_lens", "dictionary_learning", "canonical"] = Field(
        default="auto", description="Of the files; auto: found."
    )
    gating: Literal["own", "saelens", "relu"] = Field(default="own", description="As sae.gating.")
    model: str | None = Field(default=None, description="The model whose residual stream it is run on (default: none).")
    read: Path | None = Field(
        default=None, description="What the model reads line by line (default: its own relations)."
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(default="float32", description="Of the model's weights.")
    device: str = Field(default="auto", description="Of the model.")
    as_json: Json = PRINTED
