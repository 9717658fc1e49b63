"""What an evaluation found: results question by question, and as files `evaluation.json` and a CSV a table."""

from __future__ import annotations

from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from fvcore.experiments.evaluation import scores
from fvcore.experiments.evaluation.data import Labels
from fvcore.experiments.folder import Folder
from fvcore.experiments.statistics import bootstrap_interval, share_interval
from fvcore.formats import FormatError, read_json, validated

SCHEMA_VERSION = 1
FILE = "evaluation.json"
TOP_K = (1, 2, 3)
CONDITION = {"template", "n_shots", "labels", "vector", "layer"}


class EvaluationPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Generated(EvaluationPart):
    """Answers in the model's own words, one a question, and how they compare with the right ones (0 to 1)."""

    texts: list[str]
    f1: list[float]
    exact_match: list[float]
    first_word: list[float]


class Result(EvaluationPart):
    """Some questions under one condition. Lists run over questions, by `positions` in their split.

    `layer` and `vector` are None without injection; `nlls` are nats per answer token.
    """

    template: str
    n_shots: int
    labels: Labels
    vector: str | None = None
    layer: int | None = None
    positions: list[int]
    ranks: list[int]
    logprobs: list[float]
    nlls: list[float] | None = None
    generated: Generated | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> Result:
        n = len(self.positions)
        lists = [self.ranks, self.logprobs, self.nlls, *(vars(self.generated).values() if self.generated else ())]
        if n == 0 or any(values is not None and len(values) != n for values in lists):
            raise ValueError(f"{n} questions; each needs one rank, one log-probability, and one of what else is given")
        return self

    @property
    def accuracy(self) -> float:
        return scores.top_k_accuracy(self.ranks, 1)

    @property
    def right(self) -> list[int]:
        """Positions of the questions whose target is the first token."""
        return [position for position, rank in zip(self.positions, self.ranks, strict=True) if rank == 0]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> dict[str, float | int | None]:
        """One row of figures; `ppl` is the mean over questions of exp(NLL), as the reference has it."""
        share = share_interval(len(self.right), len(self.ranks))
        row: dict[str, float | int | None] = {"n": len(self.ranks)}
        row |= {f"top{k}": scores.top_k_accuracy(self.ranks, k) for k in TOP_K}
        row |= {"top1_low": share.low, "top1_high": share.high, "mean_rank": fmean(self.ranks)}
        row |= {"mean_logprob": fmean(self.logprobs)}
        if self.nlls is not None:
            # Finite also for an answer that the model holds impossible: JSON has no infinity.
            row |= {"mean_nll": fmean(self.nlls), "ppl": fmean(exp(min(nll, 700.0)) for nll in self.nlls)}
        if self.generated is not None:
            for name in scores.SCORES:
                values = getattr(self.generated, name)
                mean = bootstrap_interval(values)
                row |= {name: mean.mean, f"{name}_low": mean.low, f"{name}_high": mean.high}
        return row


class TaskFacts(EvaluationPart):
    name: str
    file: str
    sha256: str
    split: str
    n_train: int
    n_questions: int


class EvaluatedModel(EvaluationPart):
    name: str
    weights_sha: str
    tokenizer_sha: str
    dtype: str
    device: str
    attn_implementation: str
    engine: str
    versions: dict[str, str]


class EvaluationAsked(EvaluationPart):
    """What was asked for. `edit_layer` is a block; `filtered` whether wrong answers of the clean run were left out."""

    n_shots: list[int]
    edit_layer: int
    seed: int
    test_split: float
    filtered: bool
    alpha: float
    reference_profile: str


class VectorFacts(EvaluationPart):
    """A vector that was injected: where it came from, and its Euclidean length."""

    name: str
    source: str
    norm: float


class TokenRow(EvaluationPart):
    """A token that a vector raises; `way` is one of `decoding.WAYS`, `rank` from 0."""

    vector: str
    way: str
    rank: int
    token_id: int
    text: str
    logit: float
    probability: float
    is_answer: bool


class Portable(EvaluationPart):
    template: str
    baseline: Result
    kept: list[int]
    with_vectors: list[Result]


class Evaluation(EvaluationPart):
    """Everything, with the answers question by question; tables are empty for what was not asked."""

    schema_version: int = SCHEMA_VERSION
    task: TaskFacts
    model: EvaluatedModel
    asked: EvaluationAsked
    vectors: list[VectorFacts]
    kept: list[int] | None = None
    baseline: list[Result] = Field(default_factory=list)
    nshot: list[Result] = Field(default_factory=list)
    layers: list[Result] = Field(default_factory=list)
    tokens: list[TokenRow] = Field(default_factory=list)
    portability: list[Portable] = Field(default_factory=list)

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """By name, those that have rows."""
        ported = [result for port in self.portability for result in (port.baseline, *port.with_vectors)]
        conditions = {"baseline": self.baseline, "nshot": self.nshot, "layers": self.layers, "portability": ported}
        tables = {
            name: [result.model_dump(include=CONDITION) | result.summary for result in results]
            for name, results in conditions.items()
        }
        tables["tokens"] = [row.model_dump() for row in self.tokens]
        return {name: rows for name, rows in tables.items() if rows}


def write(report: Evaluation, folder: Path) -> list[Path]:
    """Write the JSON and a CSV a table; returns the files written."""
    tables = {f"{name}.csv": rows for name, rows in report.tables.items()}
    return Folder(folder).write({FILE: report.model_dump(mode="json")} | tables)


def read(path: Path) -> Evaluation:
    """Read `evaluation.json`, or the one in a folder."""
    path = path / FILE if path.is_dir() else path
    value = read_json(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise FormatError(f"{path}: expected an evaluation of schema version {SCHEMA_VERSION}, found {version!r}")
    return validated(Evaluation, value, path)


def title(result: Result) -> str:
    """A condition in words."""
    shots = "zero-shot" if result.n_shots == 0 else f"{result.n_shots}-shot, {result.labels} labels"
    return shots if result.vector is None else f"{shots}, + {result.vector}"
