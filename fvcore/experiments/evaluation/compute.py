"""One task put to one model: questions are written as prompts and asked, a result a condition; and what a vector says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fvcore.experiments.evaluation import scores
from fvcore.experiments.evaluation.config import EvaluationConfig
from fvcore.experiments.evaluation.data import USUAL, Labels, NamedTemplate, Question, Task, TaskError, pair, questions
from fvcore.experiments.evaluation.report import Generated, Result
from fvcore.injection import LEAST_LOGPROB, answer_nlls, before_end, generated_ids, read_injected
from fvcore.model.model import LanguageModel
from fvcore.model.tokenizer import BosFacts
from fvcore.prompts import (
    UPSTREAM_BOS_TEXT,
    BoundaryError,
    Prompt,
    PromptTemplate,
    prompt_at_boundary,
    require_bos_agreement,
)
from fvcore.trials.fixed import Meta, WordPair


@dataclass(frozen=True)
class Bench:
    """How a model is asked; `asked` says which questions, and whether whole answers are scored too."""

    lm: LanguageModel
    task: Task
    asked: EvaluationConfig
    template: NamedTemplate = USUAL

    def __post_init__(self) -> None:
        if not self.task.questions(self.asked.split):
            raise TaskError(
                f"{self.task.path}: {len(self.task.rows)} rows leave no question in the {self.asked.split} split"
            )

    @property
    def _how(self) -> tuple[float, str, int | None]:
        return self.asked.alpha, self.asked.engine, self.asked.max_memory

    @property
    def positions(self) -> list[int]:
        """The questions there are, before any filter."""
        n, most = len(self.task.questions(self.asked.split)), self.asked.n_questions
        return list(range(n if most is None else min(n, most)))

    @cached_property
    def _prompt_template(self) -> PromptTemplate:
        facts = BosFacts.of(self.lm.tokenizer)
        meta = Meta(
            prefixes=self.template.prefixes, separators=self.template.separators, model_prepend_bos=facts.adds_bos
        )
        require_bos_agreement(self.lm.tokenizer, meta)
        writes_bos = self.asked.reference_profile == "todd_upstream" and not facts.adds_bos
        return PromptTemplate.of(meta, self.lm.tokenizer, UPSTREAM_BOS_TEXT if writes_bos else "")

    def prompts(self, asked: Sequence[Question]) -> list[Prompt]:
        return [self._prompt(q.demos, q.query, f"{self.asked.split} question {q.position}") for q in asked]

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
        at = self.positions if positions is None else positions
        asked = questions(self.task, n_shots, labels, self.asked.seed, at, self.asked.split)
        prompts, named, rising = self.prompts(asked), vectors or {}, sorted(set(layers))
        found = self._targets(prompts, named, rising)
        # Ways to run a prompt: a vector, by its name, and the block at whose output it is added, or neither.
        with_vector = [(name, layer, vector) for name, vector in named.items() for layer in rising]
        return [
            Result(
                template=self.template.name,
                n_shots=n_shots,
                labels=labels,
                vector=name,
                layer=layer,
                positions=[question.position for question in asked],
                ranks=[int(rank) for rank in found[:, i, 0]],
                logprobs=found[:, i, 1].tolist(),
                nlls=answer_nlls(self.lm, prompts, added, layer or 0, *self._how) if self.asked.nll else None,
                generated=self._generated(asked, prompts, added, layer or 0) if self.asked.generate else None,
            )
            for i, (name, layer, added) in enumerate([(None, None, None), *with_vector])
        ]

    def kept(self, result: Result) -> list[int]:
        """The filter: the questions a result gets right; raises TaskError if there is none."""
        if not result.right:
            raise TaskError(
                f"{self.task.name}: {self.lm.name} gets none of {len(result.ranks)} questions right with {result.n_shots} "
                f"shots under template {result.template}; nothing is left to evaluate. Evaluate all with --no-filter"
            )
        return result.right

    def _targets(self, prompts: Sequence[Prompt], vectors: Mapping[str, Tensor], layers: Sequence[int]) -> Tensor:
        """(prompt, arm, rank and log-probability) of the target, float64: ranks of large vocabularies stay whole numbers."""

        def read(logits: Tensor, rows: range) -> Tensor:
            ids = torch.tensor([prompts[row].target_id for row in rows], device=logits.device)
            ids = ids[:, None].expand(-1, logits.shape[1])
            own = torch.log_softmax(logits.float(), dim=-1).gather(-1, ids[..., None])[..., 0].clamp(min=LEAST_LOGPROB)
            return torch.stack([scores.ranks(logits, ids).double(), own.double()], dim=-1).cpu()

        ids = [prompt.input_ids for prompt in prompts]
        return torch.cat(read_injected(self.lm, ids, list(vectors.values()), layers, read, *self._how))

    def _generated(
        self, asked: Sequence[Question], prompts: Sequence[Prompt], added: Tensor | None, layer: int
    ) -> Generated:
        ids = generated_ids(self.lm, [prompt.input_ids for prompt in prompts], added, layer, *self._how)
        texts = [scores.answer_in(self.lm.tokenizer.decode(before_end(self.lm, row))) for row in ids]
        scored = {
            name: [scores.best(score, text, q.answers) for text, q in zip(texts, asked, strict=True)]
            for name, score in scores.SCORES.items()
        }
        return Generated(texts=texts, **scored)
