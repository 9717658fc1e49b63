"""What one condition gave, question by question; accuracies, means and their intervals follow from it."""

from __future__ import annotations

from math import exp
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field, model_validator

from fvcore.experiments.evaluation import scores
from fvcore.experiments.evaluation.draws import Labels

TOP_K = (1, 2, 3)


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Generated(Record):
    """Answers in the model's own words, one a question, and how they compare with the right ones (0 to 1)."""

    texts: list[str]
    f1: list[float]
    exact_match: list[float]
    first_word: list[float]


class Result(Record):
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
        lists = [
            self.ranks,
            self.logprobs,
            self.nlls,
            *(self.generated.model_dump().values() if self.generated else ()),
        ]
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
    def summary(self) -> dict[str, float | int]:
        """One row of figures; `ppl` is the mean over questions of exp(NLL), as the reference has it."""
        low, high = scores.share_interval(len(self.right), len(self.ranks))
        row: dict[str, float | int] = {"n": len(self.ranks)}
        row |= {f"top{k}": scores.top_k_accuracy(self.ranks, k) for k in TOP_K}
        row |= {"top1_low": low, "top1_high": high, "mean_rank": fmean(self.ranks)}
        row |= {"mean_logprob": fmean(self.logprobs)}
        if self.nlls is not None:
            row |= {"mean_nll": fmean(self.nlls), "ppl": fmean(map(_exp, self.nlls))}
        if self.generated is not None:
            for name in scores.SCORES:
                values = getattr(self.generated, name)
                low, high = scores.mean_interval(values)
                row |= {name: fmean(values), f"{name}_low": low, f"{name}_high": high}
        return row

    @property
    def row(self) -> dict[str, Any]:
        """The condition and its figures, for a table."""
        return {name: getattr(self, name) for name in CONDITION} | self.summary


CONDITION = ("template", "n_shots", "labels", "vector", "layer")


def _exp(nll: float) -> float:
    """Finite also for an answer that the model holds impossible: JSON has no infinity."""
    return exp(min(nll, 700.0))
