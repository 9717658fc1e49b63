"""Portability: a vector made under one template, used under others.

Under every template: accuracy behind clean demonstrations; then, on the questions that the model gets right there, the
zero-shot prompt and the one with shuffled demonstrations, without and with the vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fvcore.experiments.evaluation.bench import Bench, NamedTemplate
from fvcore.experiments.evaluation.draws import without_help
from fvcore.experiments.evaluation.results import Result
from fvcore.formats import FormatError, read_yaml, validated
from fvcore.trials import TemplatePart

SHIPPED = Path(__file__).with_name("templates.yaml")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    input: str
    output: str
    instructions: str = ""

    def part(self) -> TemplatePart:
        return TemplatePart(**self.model_dump())


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    prefixes: _Part
    separators: _Part


def read_templates(path: Path = SHIPPED) -> list[NamedTemplate]:
    """A YAML (or JSON) list of templates, each with a name of its own, prefixes and separators."""
    entries = validated(list[_Entry], read_yaml(path), path)
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise FormatError(f"{path}: expected at least one template, each under a name of its own; found {names}")
    return [NamedTemplate(entry.name, entry.prefixes.part(), entry.separators.part()) for entry in entries]


@dataclass(frozen=True)
class Port:
    """One template: the clean run over all questions, those it got right, and what was asked of these.

    `with_vectors` is empty where the model gets nothing right: there is nothing a vector could be held against.
    """

    template: str
    baseline: Result
    kept: list[int]
    with_vectors: list[Result]


def evaluate(
    bench: Bench,
    templates: Sequence[NamedTemplate],
    vectors: Mapping[str, Tensor],
    layer: int,
    n_shots: int,
    filtered: bool = True,
) -> list[Port]:
    return [_under(bench.under(template), vectors, layer, n_shots, filtered) for template in templates]


def _under(bench: Bench, vectors: Mapping[str, Tensor], layer: int, n_shots: int, filtered: bool) -> Port:
    (baseline,) = bench.ask(n_shots, "clean")
    kept = baseline.right if filtered else bench.positions
    prompts = without_help(n_shots) if kept else []
    found = [result for n, labels in prompts for result in bench.ask(n, labels, kept, vectors, [layer])]
    return Port(bench.template.name, baseline, kept, found)
