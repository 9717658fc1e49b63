"""One task put to one model: questions are drawn, written as prompts and asked, a result a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from fvcore.experiments.evaluation import scores
from fvcore.experiments.evaluation.asking import WITHOUT, Arm, targets
from fvcore.experiments.evaluation.draws import Labels, Question, pair, questions
from fvcore.experiments.evaluation.results import Generated, Result
from fvcore.experiments.evaluation.tasks import Task, TaskError
from fvcore.fast.engines import ENGINES, chosen
from fvcore.injection import answer_nlls, generated_ids
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError
from fvcore.profile import REFERENCE_PROFILES
from fvcore.prompts import (
    UPSTREAM_BOS_TEXT,
    BosFacts,
    BoundaryError,
    Prompt,
    PromptTemplate,
    prompt_at_boundary,
    require_bos_agreement,
)
from fvcore.trials import PREFIXES, SEPARATORS, Meta, TemplatePart, WordPair


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """What stands around inputs and outputs, under a name that tables use."""

    name: str = "Q:/A:"
    prefixes: TemplatePart = PREFIXES
    separators: TemplatePart = SEPARATORS


@dataclass(frozen=True)
class Bench:
    """How a model is asked.

    n_questions: the first so many of the split (all by default). answers: whether whole answers are scored too, by
    likelihood and by generation. engine: `fast`, where it holds for the model, or `exact`.
    """

    lm: LanguageModel
    task: Task
    template: NamedTemplate = field(default_factory=NamedTemplate)
    seed: int = 42
    split: str = "test"
    n_questions: int | None = None
    nll: bool = False
    generate: bool = False
    alpha: float = 1.0
    reference_profile: str = "src"
    engine: str = "fast"
    max_memory: int | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("engine", self.engine, ENGINES),
            ("reference profile", self.reference_profile, REFERENCE_PROFILES),
        ):
            if value not in known:
                raise ModelError(f"unknown {what} {value!r}; expected one of {', '.join(known)}")
        if not self.task.questions(self.split):
            raise TaskError(f"{self.task.path}: {len(self.task.rows)} rows leave no question in the {self.split} split")

    def under(self, template: NamedTemplate) -> Bench:
        return replace(self, template=template)

    @cached_property
    def engine_used(self) -> str:
        return chosen(self.lm, self.engine)

    @property
    def positions(self) -> list[int]:
        """The questions there are, before any filter."""
        n = len(self.task.questions(self.split))
        return list(range(n if self.n_questions is None else min(n, self.n_questions)))

    @cached_property
    def _prompt_template(self) -> PromptTemplate:
        facts = BosFacts.of(self.lm.tokenizer)
        meta = Meta(
            prefixes=self.template.prefixes, separators=self.template.separators, model_prepend_bos=facts.adds_bos
        )
        require_bos_agreement(self.lm.tokenizer, meta)
        writes_bos = self.reference_profile == "todd_upstream" and not facts.adds_bos
        return PromptTemplate.of(meta, self.lm.tokenizer, UPSTREAM_BOS_TEXT if writes_bos else "")

    def prompts(self, asked: Sequence[Question]) -> list[Prompt]:
        return [self._prompt(q.demos, q.query, f"{self.split} question {q.position}") for q in asked]

    def answer_tokens(self) -> set[int]:
        """Ids that answers of the task begin with, each at the boundary of its zero-shot prompt; of all rows."""
        return {self._prompt((), pair(row), f"row {at}").target_id for at, row in enumerate(self.task.rows)}

    def _prompt(self, demos: Sequence[WordPair], query: WordPair, where: str) -> Prompt:
        text = self._prompt_template.text(demos, query.input)
        try:
            return prompt_at_boundary(self.lm.tokenizer, text, query.output)
        except BoundaryError as error:
            raise BoundaryError(f"{self.task.name}, {where}, template {self.template.name}: {error}") from None

    def ask(
        self,
        n_shots: int,
        labels: Labels,
        positions: Sequence[int] | None = None,
        vectors: Mapping[str, Tensor] | None = None,
        layers: Sequence[int] = (),
    ) -> list[Result]:
        """Without a vector, then with each vector (d_model,) at each layer; all on the same prompts."""
        chosen = self.positions if positions is None else positions
        asked = questions(self.task, n_shots, labels, self.seed, chosen, self.split)
        prompts, named, rising = self.prompts(asked), vectors or {}, sorted(set(layers))
        found = targets(self.lm, prompts, named, rising, self.alpha, self.engine, self.max_memory)
        return [
            Result(
                template=self.template.name,
                n_shots=n_shots,
                labels=labels,
                vector=arm.vector,
                layer=arm.layer,
                positions=[question.position for question in asked],
                ranks=target.ranks,
                logprobs=target.logprobs,
                nlls=self._nlls(prompts, arm, named) if self.nll else None,
                generated=self._generated(asked, prompts, arm, named) if self.generate else None,
            )
            for arm, target in found.items()
        ]

    def kept(self, result: Result) -> list[int]:
        """The filter: the questions a result gets right; raises TaskError if there is none."""
        if not result.right:
            raise TaskError(
                f"{self.task.name}: {self.lm.name} gets none of {len(result.ranks)} questions right with {result.n_shots} "
                f"shots under template {result.template}; nothing is left to evaluate. Evaluate all with --no-filter"
            )
        return result.right

    def _vector(self, arm: Arm, vectors: Mapping[str, Tensor]) -> tuple[Tensor | None, int]:
        if arm == WITHOUT or arm.vector is None or arm.layer is None:
            return None, 0
        return vectors[arm.vector], arm.layer

    def _nlls(self, prompts: Sequence[Prompt], arm: Arm, vectors: Mapping[str, Tensor]) -> list[float]:
        return answer_nlls(self.lm, prompts, *self._vector(arm, vectors), self.alpha, self.engine, self.max_memory)

    def _generated(
        self, asked: Sequence[Question], prompts: Sequence[Prompt], arm: Arm, vectors: Mapping[str, Tensor]
    ) -> Generated:
        vector, layer = self._vector(arm, vectors)
        given = [prompt.input_ids for prompt in prompts]
        ids = generated_ids(self.lm, given, vector, layer, self.alpha, self.engine, self.max_memory)
        texts = [scores.answer_in(self.lm.tokenizer.decode(row)) for row in ids]
        scored = {
            name: [scores.best(score, text, q.answers) for text, q in zip(texts, asked, strict=True)]
            for name, score in scores.SCORES.items()
        }
        return Generated(texts=texts, **scored)
