"""What the evaluations measure: the pattern of a function vector, and the same numbers however they are computed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from pydantic import ValidationError

from fvcore.embedded.random_models import FAMILIES, PAIRS, random_lm
from fvcore.experiments.evaluation.data import Example, Task, TaskError, questions, read_templates
from fvcore.formats import json_text
from fvcore.model.spec import ModelError
from fvcore.trials.draws import split
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.evaluation.compute import Bench
    from fvcore.experiments.evaluation.report import Result
    from fvcore.experiments.evaluation.run import n_shot, sweep_layers
    from fvcore.experiments.evaluation.scores import ranks
    from fvcore.experiments.evaluation.vectors import of_random_heads
    from fvcore.fast.engines import chosen
    from fvcore.injection import answer_nlls, before_end, generated_ids, inject, inject_generate, inject_nll
    from tests.fvcore.evaluation import worlds


SEEDS = (0, 1, 2)
EARLY = 1


def accuracy(results: Sequence[Result]) -> float:
    """Over the questions of all of them."""
    return fmean(rank == 0 for result in results for rank in result.ranks)


Curves = dict[tuple[str | None, str, int | None], float]
OTHER_HEADS = [f"other heads {seed}" for seed in range(4)]


@pytest.fixture(scope="module")
def curves() -> Curves:
    """tiny-llama, whose function vectors emerged: accuracy by vector, labels and layer, over three draws of questions.

    The vectors: that of the four best heads, and four of as many other heads.
    """
    made, lm = worlds.vector_of_best_heads("tiny-llama"), worlds.model("tiny-llama")
    others = {name: of_random_heads(lm, made.means, made.heads, seed) for seed, name in enumerate(OTHER_HEADS)}
    found = [r for seed in SEEDS for r in sweep_layers(worlds.bench(seed=seed), {"fv": made.vector} | others, 10)]
    keys = dict.fromkeys((result.vector, result.labels, result.layer) for result in found)
    return {key: accuracy([r for r in found if (r.vector, r.labels, r.layer) == key]) for key in keys}


class TestPattern:
    def test_demonstrations_teach_and_shuffled_ones_do_not(self, curves: Curves) -> None:
        assert accuracy([worlds.bench(seed=seed).ask(10, "clean")[0] for seed in SEEDS]) == 1
        assert curves[None, "clean", None] <= 0.1
        assert curves[None, "shuffled", None] <= 0.2

    @pytest.mark.parametrize("labels", ["clean", "shuffled"])
    def test_the_vector_stands_in_for_them_in_early_blocks_alone(self, curves: Curves, labels: str) -> None:
        curve = [curves["fv", labels, layer] for layer in range(6)]
        assert min(curve[:2]) > 0.75
        assert 0.3 < curve[2] < 0.75
        assert max(curve[3:]) < 0.3
        assert curve[1:] == sorted(curve[1:], reverse=True)

    @pytest.mark.parametrize("name", OTHER_HEADS)
    def test_other_heads_do_nothing_of_the_kind(self, curves: Curves, name: str) -> None:
        assert max(value for (vector, _, _), value in curves.items() if vector == name) <= 0.2


class TestFilter:
    def test_it_keeps_exactly_what_the_model_gets_right(self) -> None:
        # Under this template some answers are second: they are not right.
        bench = replace(worlds.bench(), template=next(t for t in read_templates() if t.name == "X:/Y:"))
        vector = {"fv": worlds.random_vector(bench.lm, 0.1)}
        found = n_shot(bench, [0], vector, EARLY)
        asked = questions(bench.task, 0, "clean", bench.asked.seed)
        right = [
            q.position
            for q, prompt in zip(asked, bench.prompts(asked), strict=True)
            if int(bench.lm.logits(bench.lm.ids(prompt.input_ids))[0, -1].argmax()) == prompt.target_id
        ]
        assert found.kept == right
        assert 0 < len(right) < len(asked)
        assert 1 in found.baseline[0].ranks
        assert all(result.positions == right for result in found.with_vectors)
        assert found.baseline[0].positions == bench.positions

    def test_without_it_every_question_is_asked(self) -> None:
        found = n_shot(worlds.bench(filter=False), [0], {"fv": torch.ones(128)}, EARLY)
        assert found.kept == list(range(14))
        assert [len(result.ranks) for result in found.with_vectors] == [14, 14]

    def test_the_filter_is_that_of_the_most_shots(self) -> None:
        found = n_shot(worlds.bench(), [10, 0], {}, EARLY)
        assert [result.n_shots for result in found.baseline] == [0, 10]
        assert found.kept == found.baseline[1].right != found.baseline[0].right

    def test_nothing_right_leaves_nothing_to_evaluate(self) -> None:
        bench = replace(worlds.bench(), task=nonsense())
        with pytest.raises(TaskError, match=r"none of \d+ questions right with 2 shots.*--no-filter"):
            n_shot(bench, [2], {}, EARLY)


def nonsense() -> Task:
    """Answers no one could know."""
    rows = tuple(Example(f"{i} q", (f"z{i * 37 % 101}x",)) for i in range(30))
    return replace(worlds.antonyms(), name="nonsense", rows=rows, splits=split(len(rows), 0.3, 0))


class TestSameNumbers:
    @pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
    @pytest.mark.parametrize("engine", ["fast", "exact"])
    def test_accuracies_are_those_of_one_prompt_at_a_time(self, name: str, engine: str) -> None:
        bench, vector = worlds.bench(name, engine=engine), worlds.vector_of_best_heads(name).vector
        base, *injected = bench.ask(3, "shuffled", None, {"fv": vector}, [0, 2, 5])
        prompts = bench.prompts(questions(bench.task, 3, "shuffled", bench.asked.seed))
        assert len({len(prompt.input_ids) for prompt in prompts}) > 1  # or nothing would be padded
        for result in injected:
            assert result.layer is not None
            runs = [inject(bench.lm, p.input_ids, p.target_id, vector, result.layer) for p in prompts]
            assert result.ranks == [rank_of(run.with_logits, run.target_id) for run in runs]
            assert result.logprobs == pytest.approx([run.with_logprob for run in runs], abs=2e-5)
            assert base.ranks == [rank_of(run.base_logits, run.target_id) for run in runs]
            assert base.logprobs == pytest.approx([run.base_logprob for run in runs], abs=2e-5)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_batches_change_nothing_in_any_family(self, family: str) -> None:
        fast = Bench(random_lm(family), words_of_the_random_models(), worlds.config(nll=True, generate=True))
        vector = {"v": worlds.random_vector(fast.lm)}
        for got, want in zip(
            fast.ask(2, "clean", None, vector, [0, 1]),
            worlds.asking(fast, engine="exact").ask(2, "clean", None, vector, [0, 1]),
            strict=True,
        ):
            assert chosen(fast.lm, fast.asked.engine) == "fast"
            assert got.ranks == want.ranks
            assert got.logprobs == pytest.approx(want.logprobs, abs=5e-5)
            assert got.nlls == pytest.approx(want.nlls, abs=5e-5)
            assert got.generated == want.generated

    def test_less_memory_changes_nothing(self) -> None:
        vector = {"v": worlds.random_vector(worlds.model("tiny-llama"))}
        plain = worlds.bench(nll=True)
        for got, want in zip(
            worlds.asking(plain, max_memory=1).ask(2, "clean", None, vector, [1]),
            plain.ask(2, "clean", None, vector, [1]),
            strict=True,
        ):
            assert got.ranks == want.ranks
            assert got.nlls == pytest.approx(want.nlls, abs=2e-5)

    def test_vectors_do_not_see_one_another(self) -> None:
        bench = worlds.bench()
        a, b = worlds.random_vector(bench.lm), worlds.vector_of_best_heads("tiny-llama").vector
        together = bench.ask(1, "clean", None, {"a": a, "b": b}, [0, 3])
        alone = bench.ask(1, "clean", None, {"b": b}, [0, 3])
        assert [result.ranks for result in together if result.vector == "b"] == [r.ranks for r in alone[1:]]

    def test_alpha_scales_the_vector(self) -> None:
        bench, vector = worlds.bench(nll=True, generate=True), worlds.random_vector(worlds.model("tiny-llama"))
        (_, scaled), (_, expected) = (
            made.ask(1, "clean", None, {"v": v}, [1])
            for made, v in ((worlds.asking(bench, alpha=-3.0), vector), (bench, -3.0 * vector))
        )
        assert scaled == expected
        assert expected.ranks != bench.ask(1, "clean", None, {"v": vector}, [1])[1].ranks


def words_of_the_random_models() -> Task:
    """Words of one and of several tokens."""
    rows = tuple(Example(question, (answer,)) for question, answer in PAIRS)
    return replace(worlds.antonyms(), name="toy", rows=rows, splits=split(len(rows), 0.5, 0))


def rank_of(logits: torch.Tensor, target: int) -> int:
    return int(ranks(logits[None], torch.tensor([target]))[0])


class TestWholeAnswers:
    def test_likelihoods_are_those_of_the_station(self) -> None:
        bench, vector = worlds.bench(), worlds.vector_of_best_heads("tiny-llama").vector
        prompts = bench.prompts(questions(bench.task, 1, "clean", bench.asked.seed))
        assert len({len(prompt.answer_ids) for prompt in prompts}) > 1
        for found, given, kind in (
            (answer_nlls(bench.lm, prompts), None, "base_nll"),
            (answer_nlls(bench.lm, prompts, vector, EARLY), vector, "with_nll"),
        ):
            runs = [inject_nll(bench.lm, p.input_ids, p.answer_ids, vector, EARLY) for p in prompts]
            assert found == pytest.approx([getattr(run, kind) for run in runs], abs=2e-5), given
            assert answer_nlls(bench.lm, prompts, given, EARLY, engine="exact") == [getattr(run, kind) for run in runs]

    def test_generated_ids_are_those_of_the_station(self) -> None:
        bench, vector = worlds.bench(), worlds.vector_of_best_heads("tiny-llama").vector
        prompts = bench.prompts(questions(bench.task, 1, "clean", bench.asked.seed))[:6]
        base, injected = (generated_ids(bench.lm, [p.input_ids for p in prompts], v, 4) for v in (None, -3 * vector))
        for i, prompt in enumerate(prompts):
            run = inject_generate(bench.lm, prompt.input_ids, -3 * vector, 4)
            assert base[i] == run.base_ids
            assert injected[i] == run.with_ids
        assert base != injected

    def test_an_end_of_text_ends_an_answer(self) -> None:
        lm = worlds.model("tiny-llama")
        prompts = worlds.bench().prompts(questions(worlds.antonyms(), 2, "clean", 42))[:3]
        ids_of = [prompt.input_ids for prompt in prompts]
        whole = generated_ids(lm, ids_of)
        ended = [ids[2] for ids in whole]
        before = lm.hf.generation_config.eos_token_id
        lm.hf.generation_config.eos_token_id = ended[0]
        try:
            cut = generated_ids(lm, ids_of)
            alone = inject_generate(lm, ids_of[0], torch.zeros(lm.d_model), 0).base_ids
            assert before_end(lm, cut[0]) == cut[0][:-1]
        finally:
            lm.hf.generation_config.eos_token_id = before
        assert cut == [ids[: ids.index(ended[0]) + 1] if ended[0] in ids else ids for ids in whole]
        assert cut[0] == alone
        assert len(cut[0]) < len(whole[0])

    def test_a_whole_answer_can_be_wrong_behind_a_right_token(self) -> None:
        """What the first token alone cannot say: scores of the generated words differ from accuracy."""
        (_, found) = worlds.bench(generate=True).ask(
            10, "clean", None, {"fv": 3 * worlds.vector_of_best_heads("tiny-llama").vector}, [EARLY]
        )
        assert found.generated is not None
        assert found.generated.texts
        assert found.summary["exact_match"] <= found.summary["first_word"]


def test_one_label_alone_cannot_be_shuffled() -> None:
    found = n_shot(worlds.bench(n_questions=3, filter=False), [0, 1, 2], {"v": torch.ones(128)}, EARLY)
    assert {(r.n_shots, r.labels) for r in found.with_vectors} == {
        (0, "clean"),
        (1, "clean"),
        (2, "clean"),
        (2, "shuffled"),
    }
    curve = sweep_layers(worlds.bench(n_questions=3), {"v": torch.ones(128)}, 1)
    assert {(r.n_shots, r.labels) for r in curve} == {(0, "clean")}


def test_a_token_that_the_model_holds_impossible_is_written_all_the_same() -> None:
    lm = copy.deepcopy(worlds.model("tiny-llama"))
    bench = replace(worlds.bench(nll=True), lm=lm)
    (usual,) = bench.ask(0, "clean")
    never = bench.prompts(questions(bench.task, 0, "clean", bench.asked.seed))[0].target_id
    handle = lm.hf.lm_head.register_forward_hook(
        lambda module, args, output: output.index_fill(-1, torch.tensor([never]), -torch.inf)
    )
    try:
        (found,) = bench.ask(0, "clean")
    finally:
        handle.remove()
    assert found.ranks[0] == lm.vocab_size - 1
    assert usual.ranks[0] < found.ranks[0]
    assert json_text(found.model_dump(mode="json"))


class TestErrors:
    def test_a_layer_that_is_not_there(self) -> None:
        with pytest.raises(ModelError, match="edit_layer out of range: 6"):
            worlds.bench().ask(0, "clean", None, {"v": torch.ones(128)}, [6])

    @pytest.mark.parametrize("options", [{"engine": "slow"}, {"reference_profile": "mine"}])
    def test_a_setting_that_is_unknown(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=r"Input should be .(src|fast)"):
            worlds.config(**options)

    def test_a_result_has_as_many_answers_as_questions(self) -> None:
        with pytest.raises(ValueError, match="2 questions"):
            Result(template="t", n_shots=0, labels="clean", positions=[0, 1], ranks=[0], logprobs=[0.0, 0.0])
