"""An evaluation as it was asked for: the vectors are got, the tables made, and everything put into one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fvcore import trials as fixed_trials
from fvcore.experiments.evaluation import nshot, portability
from fvcore.experiments.evaluation.bench import Bench
from fvcore.experiments.evaluation.decoding import WAYS, top_tokens
from fvcore.experiments.evaluation.layers import sweep_layers
from fvcore.experiments.evaluation.report import Asked, ModelFacts, Portable, Report, TaskFacts, TokenRow, VectorFacts
from fvcore.experiments.evaluation.vector_files import (
    CONTROLS,
    VECTOR,
    computed,
    gaussian,
    of_random_heads,
    read_vector,
)
from fvcore.model.spec import ModelError
from fvcore.pipeline import Settings
from fvcore.provenance import model_identity, versions


@dataclass(frozen=True)
class Plan:
    """Which tables, and what they share. Portability and layers use the largest number of shots."""

    tables: frozenset[str]
    shots: Sequence[int]
    edit_layer: int
    test_split: float = 0.3
    filtered: bool = True
    n_tokens: int = 10
    templates: Path | None = None


def run(
    bench: Bench,
    plan: Plan,
    vector: Path | None = None,
    trials: Path | None = None,
    n_top_heads: int = 10,
    controls: Sequence[str] = (),
) -> Report:
    """Everything of the plan. Without a vector only the baseline of `nshot` can be measured."""
    bench.lm.require_layer(plan.edit_layer)
    vectors, facts = _vectors(bench, plan, vector, trials, n_top_heads, controls)
    if not vectors and plan.tables != {"nshot"}:
        raise ModelError(
            f"{', '.join(sorted(plan.tables))}: no vector; give one with --vector, or --trials to compute it"
        )
    n_shots = max(plan.shots)
    templates = portability.read_templates(plan.templates or portability.SHIPPED)
    measured = None
    if plan.tables & {"nshot", "layers"}:
        shots = plan.shots if "nshot" in plan.tables else [n_shots]
        measured = nshot.evaluate(
            bench, shots, vectors if "nshot" in plan.tables else {}, plan.edit_layer, plan.filtered
        )
    return Report(
        task=_task_facts(bench),
        model=_model_facts(bench),
        asked=Asked(
            n_shots=list(plan.shots),
            edit_layer=plan.edit_layer,
            seed=bench.seed,
            test_split=plan.test_split,
            filtered=plan.filtered,
            alpha=bench.alpha,
            reference_profile=bench.reference_profile,
        ),
        vectors=facts,
        kept=measured.kept if measured else None,
        baseline=measured.baseline if measured else [],
        nshot=measured.with_vectors if measured else [],
        layers=sweep_layers(bench, vectors, n_shots, measured.kept if measured else None)
        if "layers" in plan.tables
        else [],
        tokens=token_rows(bench, vectors, plan.n_tokens) if "tokens" in plan.tables else [],
        portability=[
            Portable(template=port.template, baseline=port.baseline, kept=port.kept, with_vectors=port.with_vectors)
            for port in portability.evaluate(bench, templates, vectors, plan.edit_layer, n_shots, plan.filtered)
        ]
        if "portability" in plan.tables
        else [],
    )


def token_rows(bench: Bench, vectors: Mapping[str, Tensor], k: int) -> list[TokenRow]:
    """The k tokens that each vector raises, each way; `is_answer`: some answer of the task begins with it."""
    return [
        TokenRow(
            vector=name,
            way=way,
            rank=rank,
            token_id=token.token_id,
            text=token.text,
            logit=token.logit,
            probability=token.probability,
            is_answer=token.token_id in answers,
        )
        for answers in [bench.answer_tokens()]
        for name, vector in vectors.items()
        for way in WAYS
        for rank, token in enumerate(top_tokens(bench.lm, vector, k, way))
    ]


def _vectors(
    bench: Bench, plan: Plan, path: Path | None, trials: Path | None, n_top_heads: int, controls: Sequence[str]
) -> tuple[dict[str, Tensor], list[VectorFacts]]:
    if path is not None and trials is not None:
        raise ModelError("--vector and --trials both give a vector; choose one")
    if unknown := [name for name in controls if name not in CONTROLS]:
        raise ModelError(f"unknown control {unknown[0]!r}; expected one of {', '.join(CONTROLS)}")
    if path is None and trials is None:
        if controls:
            raise ModelError("a control needs a vector to be compared with: --vector or --trials")
        return {}, []
    sources = {VECTOR: str(path or trials)} | dict.fromkeys(controls, f"control, seed {bench.seed}")
    found = dict[str, Tensor]()
    if path is not None:
        if "random_heads" in controls:
            raise ModelError("control random_heads needs the heads' means: compute the vector from --trials")
        found[VECTOR] = read_vector(path, bench.lm.d_model)
    elif trials is not None:
        settings = Settings(
            plan.edit_layer, n_top_heads, reference_profile=bench.reference_profile, engine=bench.engine
        )
        made = computed(bench.lm, fixed_trials.read(trials), settings)
        found[VECTOR] = made.vector
        if "random_heads" in controls:
            found["random_heads"] = of_random_heads(bench.lm, made.means, made.heads, bench.seed).cpu()
    if "gaussian" in controls:
        found["gaussian"] = gaussian(found[VECTOR], bench.seed)
    facts = [
        VectorFacts(name=name, source=sources[name], norm=float(vector.float().norm()))
        for name, vector in found.items()
    ]
    return found, facts


def _task_facts(bench: Bench) -> TaskFacts:
    task = bench.task
    return TaskFacts(
        name=task.name,
        file=str(task.path),
        sha256=task.sha256,
        split=bench.split,
        n_train=len(task.splits.train_indices),
        n_questions=len(bench.positions),
    )


def _model_facts(bench: Bench) -> ModelFacts:
    lm = bench.lm
    known = model_identity(lm, ModelFacts.model_fields)
    return ModelFacts(name=lm.name, engine=bench.engine_used, versions=versions(), **known)
