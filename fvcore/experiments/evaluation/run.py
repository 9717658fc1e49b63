"""An evaluation as it was asked for: the vectors are got, the tables made, and everything put into one report.

n-shot: how well a model answers behind n demonstrations, and what a vector adds or puts in their place. Layers: the
injection at every one. Portability: a vector made under one template, used under others. Tokens: what it says by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from fvcore.decoding import WAYS, top_tokens
from fvcore.experiments.evaluation.compute import Bench
from fvcore.experiments.evaluation.config import EvaluationConfig
from fvcore.experiments.evaluation.data import LABELS, SHIPPED, NamedTemplate, load_task, read_templates, without_help
from fvcore.experiments.evaluation.report import (
    EvaluatedModel,
    Evaluation,
    EvaluationAsked,
    Portable,
    Result,
    TaskFacts,
    TokenRow,
    VectorFacts,
)
from fvcore.experiments.evaluation.vectors import VECTOR, vectors_of
from fvcore.fast.engines import chosen
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError
from fvcore.provenance import model_identity, versions


def run(config: EvaluationConfig, lm: LanguageModel) -> Evaluation:
    """Everything that was asked for. Without a vector only the baseline of `nshot` can be measured."""
    layer = lm.n_layers // 3 if config.edit_layer is None else config.edit_layer
    lm.require_layer(layer)
    task = load_task(config.dataset, config.src, config.test_split, config.seed)
    bench = Bench(lm, task, config)
    vectors = vectors_of(bench, layer)
    if not vectors and config.tables != {"nshot"}:
        raise ModelError(
            f"{', '.join(sorted(config.tables))}: no vector; give one with --vector, or --trials to compute it"
        )
    templates = read_templates(config.templates or SHIPPED)
    asked, n_shots = config.tables, max(config.shots)
    measured = NShot([], [], None)
    if asked & {"nshot", "layers"}:
        shots = config.shots if "nshot" in asked else [n_shots]
        measured = n_shot(bench, shots, vectors if "nshot" in asked else {}, layer)
    known = model_identity(lm, EvaluatedModel.model_fields)
    as_given = {name: getattr(config, name) for name in ("seed", "test_split", "alpha", "reference_profile")}
    sources, control = {VECTOR: str(config.vector or config.trials)}, f"control, seed {config.seed}"
    return Evaluation(
        task=TaskFacts(
            name=task.name,
            file=str(task.path),
            sha256=task.sha256,
            split=config.split,
            n_train=len(task.splits.train_indices),
            n_questions=len(bench.positions),
        ),
        model=EvaluatedModel(name=lm.name, engine=chosen(lm, config.engine), versions=versions(), **known),
        asked=EvaluationAsked(n_shots=config.shots, edit_layer=layer, filtered=config.filter, **as_given),
        vectors=[
            VectorFacts(name=name, source=sources.get(name, control), norm=float(vector.float().norm()))
            for name, vector in vectors.items()
        ],
        kept=measured.kept,
        baseline=measured.baseline,
        nshot=measured.with_vectors,
        layers=sweep_layers(bench, vectors, n_shots, measured.kept) if "layers" in asked else [],
        tokens=token_rows(bench, vectors, config.n_tokens) if "tokens" in asked else [],
        portability=portability(bench, templates, vectors, layer, n_shots) if "portability" in asked else [],
    )


class NShot(NamedTuple):
    """`baseline`: clean labels, no vector, every question. `with_vectors`: only those that the filter kept."""

    baseline: list[Result]
    with_vectors: list[Result]
    kept: list[int] | None


def n_shot(bench: Bench, shots: Sequence[int], vectors: Mapping[str, Tensor], layer: int) -> NShot:
    """All numbers of shots, with clean labels and, from two shots on, with shuffled ones.

    Filtered, questions are those that the model gets right behind the largest number of clean demonstrations.
    """
    rising = sorted(set(shots))
    baseline = [bench.ask(n, "clean")[0] for n in rising]
    kept = bench.kept(baseline[-1]) if bench.asked.filter else bench.positions
    regimes = [(n, labels) for n in rising for labels in LABELS if n > 1 or labels == "clean"]
    results = [bench.ask(n, labels, kept, vectors, [layer]) for n, labels in regimes] if vectors else []
    return NShot(baseline, [result for of_regime in results for result in of_regime], kept)


def sweep_layers(
    bench: Bench, vectors: Mapping[str, Tensor], n_shots: int, kept: Sequence[int] | None = None
) -> list[Result]:
    """Each vector at each layer, and without: zero-shot, then behind n shuffled demonstrations."""
    every = range(bench.lm.n_layers)
    return [result for n, labels in without_help(n_shots) for result in bench.ask(n, labels, kept, vectors, every)]


def portability(
    bench: Bench, templates: Sequence[NamedTemplate], vectors: Mapping[str, Tensor], layer: int, n_shots: int
) -> list[Portable]:
    """Under every template: accuracy behind clean demonstrations; then, on the questions that the model gets right there,
    the zero-shot prompt and the one with shuffled demonstrations, without and with the vectors."""
    found = []
    for template in templates:
        under = replace(bench, template=template)
        (baseline,) = under.ask(n_shots, "clean")
        kept = baseline.right if bench.asked.filter else bench.positions
        prompts = without_help(n_shots) if kept else []
        results = [result for n, labels in prompts for result in under.ask(n, labels, kept, vectors, [layer])]
        found.append(Portable(template=template.name, baseline=baseline, kept=kept, with_vectors=results))
    return found


def token_rows(bench: Bench, vectors: Mapping[str, Tensor], k: int) -> list[TokenRow]:
    """The k tokens that each vector raises, each way; `is_answer`: some answer of the task begins with it."""
    answers = bench.answer_tokens()
    return [
        TokenRow(vector=name, way=way, rank=rank, is_answer=token["token_id"] in answers, **token)
        for name, vector in vectors.items()
        for way in WAYS
        for rank, token in enumerate(top_tokens(bench.lm, vector, k, way))
    ]
