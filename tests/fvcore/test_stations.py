"""Stations 3 to 6, each against a computation by hand: activations, effects, heads, vectors, injection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from fvcore.embedded.random_models import FAMILIES, random_lm, trials_for
from fvcore.heads import top_heads
from fvcore.prompts import Prompt
from fvcore.slots import SlotMap
from fvcore.trials.fixed import FixedTrials, WordPair
from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch
    from torch import Tensor

    from fvcore import pipeline
    from fvcore.activations import head_activations, mean_head_activations
    from fvcore.artifacts import tensor_leaf
    from fvcore.effects import (
        TOKEN_CLASSES,
        average_indirect_effect,
        causal_indirect_effect,
        head_replaced,
        target_probability,
        tokens_of_class,
    )
    from fvcore.injection import N_GENERATED, answer_nlls, generated_ids, inject, inject_generate, inject_nll
    from fvcore.model.generation import set_aside
    from fvcore.model.hooks import HookNeverFired, add_to_residual, read_heads
    from fvcore.model.model import LanguageModel, ModelError
    from fvcore.pipeline import Pipeline, Settings
    from fvcore.vectors import function_vector, head_term


if RUNNING:
    Tiny = Callable[[str], LanguageModel]
per_family = pytest.mark.parametrize("family", FAMILIES)

BIASED = ("gpt2", "gpt_neox")
N_TRIALS = 3


class Bench:
    """One family's model with its trials, their prompts and their slots."""

    def __init__(self, lm: LanguageModel) -> None:
        def longer(pairs: list[WordPair]) -> None:
            """Every input and every other output gets a token more, so that there are words to average over."""
            more = ["over", ""] * len(pairs)
            pairs[:] = [
                WordPair(input=f"over{pair.input}", output=f"{front}{pair.output}")
                for pair, front in zip(pairs, more, strict=False)
            ]

        self.lm = lm
        self.trials: FixedTrials = trials_for(lm, N_TRIALS, n_shots=2, edit=longer)
        self.stations = Pipeline(lm, self.trials, Settings(edit_layer=0, n_top_heads=3, engine="exact"))

    def prompt(self, trial: int = 0, regime: str = "corrupted") -> Prompt:
        return self.stations.prompt(self.trials.trials[trial], regime)

    def slots(self, trial: int = 0, regime: str = "corrupted") -> SlotMap:
        return self.stations.slots(self.trials.trials[trial], regime)

    def clean(self) -> list[tuple[tuple[int, ...], SlotMap]]:
        return [(self.prompt(i, "clean").input_ids, self.slots(i, "clean")) for i in range(N_TRIALS)]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt().input_ids

    @property
    def target(self) -> int:
        return self.prompt().target_id

    def random_means(self) -> Tensor:
        """(layer, head, slot, d_head), unlike any activation of the model."""
        shape = (self.lm.n_layers, self.lm.n_heads, self.slots().n_slots, self.lm.d_head)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    @property
    def vector(self) -> Tensor:
        """(d_model,)"""
        return torch.randn(self.lm.d_model, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def benches(tiny: Tiny) -> Callable[[str], Bench]:
    made: dict[str, Bench] = {}
    return lambda family: made.setdefault(family, made.get(family) or Bench(tiny(family)))


@pytest.fixture(params=FAMILIES)
def bench(request: pytest.FixtureRequest, benches: Callable[[str], Bench]) -> Bench:
    return benches(request.param)


@pytest.fixture
def llama(benches: Callable[[str], Bench]) -> Bench:
    return benches("llama")


@inference_mode
def captured(lm: LanguageModel, ids: Any) -> Tensor:
    """What enters every projection on one prompt, taken without the library: (layer, token, head, d_head)."""
    seen: list[Tensor] = []
    handles = [
        lm.o_proj(layer).register_forward_pre_hook(lambda module, args: seen.append(args[0][0].clone()))
        for layer in range(lm.n_layers)
    ]
    lm.hf(input_ids=lm.ids(ids))
    for handle in handles:
        handle.remove()
    return torch.stack([x.reshape(len(x), lm.n_heads, lm.d_head) for x in seen])


@inference_mode
def plain_logits(lm: LanguageModel, ids: Any) -> Tensor:
    """(token, vocab)"""
    logits: Tensor = lm.hf(input_ids=lm.ids(ids)).logits[0]
    return logits


# ---------------------------------------------------------------- activations


def test_a_slot_holds_the_mean_over_the_tokens_of_its_word(bench: Bench) -> None:
    ids, slots = bench.clean()[0]
    by_token = captured(bench.lm, ids)
    found = head_activations(bench.lm, ids, slots)
    assert found.shape == (bench.lm.n_layers, bench.lm.n_heads, slots.n_slots, bench.lm.d_head)
    of_slot: dict[int, list[int]] = {}
    for token, slot in slots.full_idx_map.items():
        of_slot.setdefault(slot, []).append(token)
    assert set(of_slot) == set(range(slots.n_slots))
    assert {"demonstration_1_token", "demonstration_2_token", "query_demonstration_token"} < set(slots.idx_avg)
    assert any("label" in label for label in slots.idx_avg)
    for slot, tokens in of_slot.items():
        expected = by_token[:, tokens].mean(dim=1)
        torch.testing.assert_close(found[:, :, slot], expected, atol=1e-6, rtol=1e-6)


def test_a_slot_of_one_token_holds_its_activations_bit_for_bit(bench: Bench) -> None:
    ids, slots = bench.clean()[0]
    by_token, found = captured(bench.lm, ids), head_activations(bench.lm, ids, slots)
    assert torch.equal(found[:, :, slots.query_predictive_slot], by_token[:, len(ids) - 1])
    assert torch.equal(found[:, :, 0], by_token[:, 0])


def test_the_mean_of_one_prompt_is_the_prompt(bench: Bench) -> None:
    ids, slots = bench.clean()[0]
    assert torch.equal(mean_head_activations(bench.lm, [(ids, slots)]), head_activations(bench.lm, ids, slots))


def test_the_mean_is_over_prompts_of_equal_weight(bench: Bench) -> None:
    each = [head_activations(bench.lm, ids, slots) for ids, slots in bench.clean()]
    assert len({len(ids) for ids, _ in bench.clean()}) > 1
    found = mean_head_activations(bench.lm, bench.clean())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sum(each) / N_TRIALS, atol=1e-6, rtol=1e-6)


def test_the_mean_over_no_prompts_is_refused(llama: Bench) -> None:
    with pytest.raises(ValueError, match="no prompts to average over"):
        mean_head_activations(llama.lm, [])


# ---------------------------------------------------------------- effects


def test_a_target_has_its_softmax_probability(bench: Bench) -> None:
    logits = plain_logits(bench.lm, bench.ids)[-1].double()
    expected = torch.exp(logits[bench.target] - torch.logsumexp(logits, 0))
    found = target_probability(bench.lm, bench.ids, bench.target)
    torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=1e-5)


def test_replacing_a_head_by_its_own_value_has_no_effect_at_all(bench: Bench) -> None:
    by_token = captured(bench.lm, bench.ids)
    means = by_token[:, -1, :, None]  # (layer, head, 1, d_head)
    slots = replace(bench.slots(), idx_map={bench.slots().query_predictive_token: 0}, idx_avg={}, n_slots=1)
    effect = causal_indirect_effect(bench.lm, bench.ids, bench.target, slots, means)
    assert torch.equal(effect, torch.zeros(2, 4))


def test_the_effect_of_a_head_is_the_change_in_probability_when_its_slice_is_overwritten(bench: Bench) -> None:
    lm, means = bench.lm, bench.random_means()
    effect = causal_indirect_effect(lm, bench.ids, bench.target, bench.slots(), means)
    assert effect.shape == (2, 4)
    base = torch.softmax(plain_logits(lm, bench.ids)[-1], 0)[bench.target]
    for layer, head in [(0, 0), (0, 3), (1, 2)]:

        def overwrite(module: Any, args: Any, layer: int = layer, head: int = head) -> Any:
            x = args[0].clone()
            x[0, -1, head * lm.d_head : (head + 1) * lm.d_head] = means[layer, head, -1]
            return (x,)

        handle = lm.o_proj(layer).register_forward_pre_hook(overwrite)
        patched = torch.softmax(plain_logits(lm, bench.ids)[-1], 0)[bench.target]
        handle.remove()
        torch.testing.assert_close(effect[layer, head], patched - base, atol=1e-7, rtol=1e-4)
    assert effect.abs().max() > 1e-5


def test_class_nine_is_the_effect_at_the_last_token(bench: Bench) -> None:
    args = (bench.lm, bench.ids, bench.target, bench.slots(), bench.random_means())
    rank_3, rank_4 = causal_indirect_effect(*args), causal_indirect_effect(*args, all_token_classes=True)
    assert rank_4.shape == (2, 4, 10)
    assert torch.equal(rank_4[:, :, 9], rank_3)
    assert (rank_4.abs().amax(dim=(0, 1)) > 0).all()


def test_a_class_without_tokens_has_no_effect(llama: Bench) -> None:
    slots = llama.slots()
    renamed = tuple("other" if label == "separator_token" else label for label in slots.labels)
    effects = [
        causal_indirect_effect(llama.lm, llama.ids, llama.target, s, llama.random_means(), all_token_classes=True)
        for s in (slots, replace(slots, labels=renamed))
    ]
    separator = list(TOKEN_CLASSES).index("separator")
    assert effects[0][:, :, separator].abs().max() > 0
    assert torch.equal(effects[1][:, :, separator], torch.zeros(2, 4))
    others = [i for i in range(10) if i != separator]
    assert torch.equal(effects[0][:, :, others], effects[1][:, :, others])


def test_every_token_of_a_class_gets_the_mean_of_its_own_slot(llama: Bench) -> None:
    slots, means = llama.slots(), llama.random_means()
    effect = causal_indirect_effect(llama.lm, llama.ids, llama.target, slots, means, all_token_classes=True)
    tokens = tokens_of_class(slots, "label")
    assert len(tokens) > 2  # two labels of several tokens each
    by_token = {token: means[0, 2, slots.full_idx_map[token]] for token in tokens}
    with head_replaced(llama.lm, 0, 2, by_token):
        patched = target_probability(llama.lm, llama.ids, llama.target)
    assert effect[0, 2, 1] == patched - target_probability(llama.lm, llama.ids, llama.target) != 0


def test_token_classes_stand_in_the_order_of_the_reference_and_take_whole_labels() -> None:
    labels = [
        "demonstration_1_token",
        "demonstration_12_label_token",
        "separator_token",
        "predictive_token",
        "structural_token",
        "end_of_example_token",
        "query_demonstration_token",
        "query_structural_token",
        "query_separator_token",
        "query_predictive_token",
    ]
    slots = SlotMap(tuple(labels), {}, {}, 10)
    assert [tokens_of_class(slots, token_class) for token_class in TOKEN_CLASSES] == [[i] for i in range(10)]


def test_the_base_run_is_the_untouched_model(bench: Bench) -> None:
    before = plain_logits(bench.lm, bench.ids)
    causal_indirect_effect(bench.lm, bench.ids, bench.target, bench.slots(), bench.random_means())
    assert torch.equal(plain_logits(bench.lm, bench.ids), before)


def test_the_average_effect_is_the_mean_over_trials() -> None:
    cie = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(average_indirect_effect(cie), (cie[0] + cie[1]) / 2)


def test_the_average_effect_of_a_class_is_that_classs_and_minus_one_is_the_last() -> None:
    cie = torch.randn(5, 2, 3, 10)
    assert torch.equal(average_indirect_effect(cie, 3), cie[:, :, :, 3].mean(dim=0))
    assert torch.equal(average_indirect_effect(cie), average_indirect_effect(cie, 9))


@pytest.mark.parametrize(
    ("shape", "token_class", "message"),
    [
        ((5, 2, 3), 0, r"shape \(5, 2, 3\) has no token class 0"),
        ((2, 3), -1, r"shape \(2, 3\) has no token class -1"),
        ((5, 2, 3, 10, 1), -1, "expected .trial, layer, head. with token class -1"),
        ((5, 2, 3, 10), 10, r"token class 10 is not in \[-1, 9\]"),
        ((5, 2, 3, 10), -11, "token class -11 is not in"),
    ],
)
def test_an_effect_without_the_class_asked_for_is_refused(
    shape: tuple[int, ...], token_class: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        average_indirect_effect(torch.zeros(shape), token_class)


# ---------------------------------------------------------------- heads


def test_heads_are_ranked_on_unrounded_effects() -> None:
    aie = torch.tensor([[0.10001, 0.10003, -0.5], [0.10002, 0.4, 0.1]])
    assert [(h.layer, h.head) for h in top_heads(aie, 4)] == [(1, 1), (0, 1), (1, 0), (0, 0)]
    assert top_heads(aie, 2)[1].aie == float(aie[0, 1])


def test_the_largest_effect_counts_and_not_the_strongest() -> None:
    assert [(h.layer, h.head) for h in top_heads(torch.tensor([[-3.0, 0.0], [1.0, -4.0]]), 4)] == [
        (1, 0),
        (0, 1),
        (0, 0),
        (1, 1),
    ]


def test_equal_effects_are_ranked_by_layer_and_head() -> None:
    aie = torch.zeros(4, 5)
    aie[2, 3] = 1
    assert [(h.layer, h.head) for h in top_heads(aie, 5)] == [(2, 3), (0, 0), (0, 1), (0, 2), (0, 3)]
    assert len(top_heads(aie, 20)) == 20


@pytest.mark.parametrize("k", [0, -1, 21])
def test_more_heads_than_there_are_or_none_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"top {k} heads asked for, 20 are scored; ask for 1 to 20"):
        top_heads(torch.zeros(4, 5), k)


# ---------------------------------------------------------------- vectors

HEADS = [(1, 2), (0, 3), (1, 0), (0, 0)]


def test_a_heads_term_is_the_projection_of_its_slice_alone(bench: Bench) -> None:
    lm = bench.lm
    activation = bench.random_means()[1, 2, -1]
    weight: Any = lm.o_proj(1).weight
    matrix = weight if lm.spec.name == "gpt2" else weight.T  # (n_heads * d_head, d_model)
    expected = activation @ matrix[2 * lm.d_head : 3 * lm.d_head]
    torch.testing.assert_close(head_term(lm, 1, 2, activation) - bias_of(lm, 1), expected, atol=1e-5, rtol=1e-5)


def bias_of(lm: Any, layer: int) -> Tensor:
    bias = getattr(lm.o_proj(layer), "bias", None)
    assert (bias is not None) == (lm.spec.name in BIASED)
    return torch.zeros(lm.d_model) if bias is None else bias


def test_the_vector_is_the_projection_of_the_summed_slices_and_a_bias_for_each_head(bench: Bench) -> None:
    lm, means = bench.lm, bench.random_means()
    expected = sum((bias_of(lm, layer) for layer, _ in HEADS), torch.zeros(lm.d_model))
    assert expected.norm() > 0.5 or lm.spec.name not in BIASED
    for layer in range(lm.n_layers):
        x = torch.zeros(lm.n_heads, lm.d_head)
        for at, head in HEADS:
            if at == layer:
                x[head] = means[layer, head, -1]
        o_proj: Any = lm.o_proj(layer)
        with torch.inference_mode():
            expected += (o_proj(x.reshape(1, 1, -1)) - o_proj(torch.zeros(1, 1, x.numel()))).reshape(-1)
    torch.testing.assert_close(function_vector(lm, means, HEADS), expected, atol=1e-5, rtol=1e-5)


def test_the_vector_reads_the_last_slot(llama: Bench) -> None:
    means = llama.random_means()
    others = means.clone()
    others[:, :, :-1] += 5
    last = means.clone()
    last[:, :, -1] += 5
    vector = function_vector(llama.lm, means, HEADS)
    assert torch.equal(function_vector(llama.lm, others, HEADS), vector)
    assert not torch.allclose(function_vector(llama.lm, last, HEADS), vector)


def test_the_vector_of_no_heads_is_zero(bench: Bench) -> None:
    assert torch.equal(function_vector(bench.lm, bench.random_means(), []), torch.zeros(bench.lm.d_model))


def test_the_order_of_the_heads_matters_to_rounding_alone(bench: Bench) -> None:
    means = bench.random_means()
    vectors = [function_vector(bench.lm, means, heads) for heads in (HEADS, HEADS[::-1], sorted(HEADS))]
    for one, other in pairwise(vectors):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_half_precision_vector_is_summed_in_fp32_and_rounded_once() -> None:
    lm = random_lm("gpt2", seed=3)
    lm.hf.to(torch.bfloat16)
    means = torch.randn(2, 4, 1, 8, generator=torch.Generator().manual_seed(0))
    heads = [(layer, head) for layer in range(2) for head in range(4)]
    terms = [head_term(lm, layer, head, means[layer, head, -1]) for layer, head in heads]
    rounded_each_time = torch.zeros(32, dtype=torch.bfloat16)
    for term in terms:
        rounded_each_time += term
    found = function_vector(lm, means, heads)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.stack(terms).float().sum(dim=0).to(torch.bfloat16))
    assert not torch.equal(found, rounded_each_time)


# ---------------------------------------------------------------- injection


def injected_logits(lm: LanguageModel, ids: Any, vector: Tensor, layer: int, tokens: Any) -> Tensor:
    """Logits (token, vocab) with the vector added at some tokens of a block's output, without the library."""

    def add(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, list(tokens)] += vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = lm.blocks[layer].register_forward_hook(add)
    try:
        return plain_logits(lm, ids)
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", [0, 1])
def test_the_next_token_is_predicted_with_the_vector_at_the_last_token(bench: Bench, layer: int) -> None:
    found = inject(bench.lm, bench.ids, bench.target, bench.vector, layer)
    base = plain_logits(bench.lm, bench.ids)[-1]
    injected = injected_logits(bench.lm, bench.ids, bench.vector, layer, [-1])[-1]
    torch.testing.assert_close(found.base_logits, base, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.with_logits, injected, atol=1e-5, rtol=0)
    logprobs = [float(logits.double().log_softmax(0)[bench.target]) for logits in (base, injected)]
    assert [found.base_logprob, found.with_logprob] == pytest.approx(logprobs, abs=1e-5)
    assert found.delta_logprob == found.with_logprob - found.base_logprob
    assert abs(found.delta_logprob) > 1e-3


def test_alpha_zero_is_the_base_and_alpha_scales_the_vector(bench: Bench) -> None:
    args = (bench.lm, bench.ids, bench.target)
    zero = inject(*args, bench.vector, 0, alpha=0.0)
    assert torch.equal(zero.with_logits, zero.base_logits)
    double, twice = inject(*args, bench.vector, 0, alpha=2.0), inject(*args, 2 * bench.vector, 0)
    assert torch.equal(double.with_logits, twice.with_logits)
    assert not torch.equal(double.with_logits, inject(*args, bench.vector, 0).with_logits)


def test_log_probabilities_are_taken_in_fp32() -> None:
    lm = random_lm("llama", seed=5)
    lm.hf.to(torch.bfloat16)
    found = inject(lm, [1, 5, 6, 7], 9, torch.ones(32), 0)
    assert found.base_logits.dtype == torch.bfloat16
    exact = float(found.base_logits.double().log_softmax(0)[9])
    assert found.base_logprob == pytest.approx(exact, abs=1e-5)
    assert abs(float(found.base_logits.log_softmax(0)[9]) - exact) > 1e-4


def test_an_answers_likelihood_is_minus_the_mean_log_softmax_of_its_tokens(bench: Bench) -> None:
    prompt = bench.prompt(2)
    assert len(prompt.answer_ids) == 3
    both = [*prompt.input_ids, *prompt.answer_ids]
    at = range(prompt.boundary - 1, len(both) - 1)

    def nll(logits: Tensor) -> float:
        return -float(logits.log_softmax(-1)[list(at), list(prompt.answer_ids)].mean())

    found = inject_nll(bench.lm, prompt.input_ids, prompt.answer_ids, bench.vector, 0)
    assert found.base_nll == pytest.approx(nll(plain_logits(bench.lm, both)), abs=1e-5)
    # At the last token of the prompt and at no token of the answer.
    with_vector = injected_logits(bench.lm, both, bench.vector, 0, [prompt.boundary - 1])
    assert found.with_nll == pytest.approx(nll(with_vector), abs=1e-5)
    assert abs(found.with_nll - found.base_nll) > 1e-3


def test_the_likelihood_of_one_token_is_its_log_probability(bench: Bench) -> None:
    nll = inject_nll(bench.lm, bench.ids, [bench.target], bench.vector, 1)
    next_token = inject(bench.lm, bench.ids, bench.target, bench.vector, 1)
    assert [-nll.base_nll, -nll.with_nll] == pytest.approx([next_token.base_logprob, next_token.with_logprob], abs=1e-5)


def test_what_a_models_own_loss_has_beside_a_likelihood_is_left_out() -> None:
    """How evenly a mixture's experts are used, where its config asks for it."""
    lm = random_lm("mixtral")
    (plain,) = answer_nlls(lm, [Prompt("", (5, 6, 7), (8,))], engine="exact")
    lm.hf.config.output_router_logits = True
    ids = torch.tensor([[5, 6, 7, 8]])
    assert abs(float(lm.hf(input_ids=ids, labels=ids.where(ids == 8, -100)).loss) - plain) > 1e-3
    assert answer_nlls(lm, [Prompt("", (5, 6, 7), (8,))], engine="exact") == pytest.approx([plain], abs=1e-5)


def test_the_likelihood_of_no_tokens_is_refused(llama: Bench) -> None:
    with pytest.raises(ValueError, match="the answer has no tokens"):
        inject_nll(llama.lm, llama.ids, [], llama.vector, 0)


def greedy(lm: LanguageModel, ids: Any, n_tokens: int, vector: Tensor, layer: int) -> list[int]:
    """Without a cache: at every step the vector is added wherever a step before has added it, and at the end."""
    ids = list(ids)
    n_prompt = len(ids)
    while len(ids) < n_prompt + n_tokens:
        ids.append(int(injected_logits(lm, ids, vector, layer, range(n_prompt - 1, len(ids)))[-1].argmax()))
        if ids[-1] == lm.hf.generation_config.eos_token_id:
            break
    return ids[n_prompt:]


def test_generation_adds_the_vector_at_every_step(bench: Bench) -> None:
    found = inject_generate(bench.lm, bench.ids, bench.vector, 0, alpha=2.0, n_tokens=8)
    assert found.base_ids == greedy(bench.lm, bench.ids, 8, torch.zeros(bench.lm.d_model), 0)
    assert found.with_ids == greedy(bench.lm, bench.ids, 8, 2 * bench.vector, 0)
    assert found.with_ids != found.base_ids


def test_adding_the_vector_at_the_prompt_alone_generates_something_else(llama: Bench) -> None:
    # So that the test above cannot pass by luck: the later steps do matter.
    ids = list(llama.ids)
    at = [len(ids) - 1]
    for _ in range(8):
        ids.append(int(injected_logits(llama.lm, ids, 2 * llama.vector, 0, at)[-1].argmax()))
    found = inject_generate(llama.lm, llama.ids, llama.vector, 0, 2.0, 8).with_ids
    assert ids[len(llama.ids) :][: len(found)] != found


def test_generation_is_sixteen_greedy_tokens_whatever_the_model_would_sample(llama: Bench) -> None:
    lm = random_lm("llama")
    lm.hf.generation_config.eos_token_id = None
    expected = inject_generate(lm, llama.ids, llama.vector, 0)
    assert len(expected.base_ids) == N_GENERATED == 16
    lm.hf.generation_config.update(do_sample=True, temperature=5.0, top_p=0.5, top_k=3)
    torch.manual_seed(1)
    assert inject_generate(lm, llama.ids, llama.vector, 0) == expected


SHIPPED_SETTINGS: dict[str, Callable[[list[int]], dict[str, Any]]] = {
    "a penalty of repetition": lambda ids: {"repetition_penalty": 5.0},
    "no token twice": lambda ids: {"no_repeat_ngram_size": 1},
    "several beams": lambda ids: {"num_beams": 4, "do_sample": True, "temperature": 3.0},
    "a first token": lambda ids: {"begin_suppress_tokens": ids[:1]},
    "forbidden tokens": lambda ids: {"suppress_tokens": ids[2:3]},
    "forbidden words": lambda ids: {"bad_words_ids": [ids[3:4]]},
    "a last token": lambda ids: {"forced_eos_token_id": ids[0], "max_length": 300},
    "a least length": lambda ids: {"min_new_tokens": 16},
    "a bias": lambda ids: {"sequence_bias": {(ids[1],): -30.0}},
}


@pytest.mark.parametrize("name", SHIPPED_SETTINGS)
def test_greedy_is_greedy_whatever_a_model_ships_with(llama: Bench, name: str) -> None:
    """The largest logit, although the model's own settings would have it otherwise, and are there again afterwards."""
    lm = random_lm("llama")
    lm.hf.generation_config.eos_token_id = None
    ids = inject_generate(lm, llama.ids, llama.vector, 0).base_ids
    if name == "a least length":
        at = next(i for i in range(2, len(ids) - 1) if ids[i] not in ids[:i])
        lm.hf.generation_config.eos_token_id = ids[at]
    expected, texts = inject_generate(lm, llama.ids, llama.vector, 0), generated_ids(lm, [llama.ids])
    settings = SHIPPED_SETTINGS[name](ids)
    lm.hf.generation_config.update(**settings)
    own, before = lm.hf.generation_config, lm.hf.generation_config.to_dict()

    assert inject_generate(lm, llama.ids, llama.vector, 0) == expected
    assert generated_ids(lm, [llama.ids]) == texts

    assert lm.hf.generation_config is own
    assert own.to_dict() == before
    assert set(set_aside(lm.hf)) == set(settings)
    torch.manual_seed(0)
    theirs = lm.hf.generate(lm.ids(llama.ids), max_new_tokens=16, pad_token_id=0)[0, len(llama.ids) :].tolist()
    assert theirs != expected.base_ids


def test_what_was_set_aside_is_nothing_where_a_model_only_says_how_a_text_ends(llama: Bench) -> None:
    assert set_aside(llama.lm.hf) == {}


def test_generation_stops_at_any_of_several_end_tokens(llama: Bench) -> None:
    lm = random_lm("llama")
    ids = inject_generate(lm, llama.ids, llama.vector, 0).base_ids
    at = next(i for i in range(2, len(ids) - 1) if ids[i] not in ids[:i])
    lm.hf.generation_config.eos_token_id = [2, ids[at]]
    assert inject_generate(lm, llama.ids, llama.vector, 0).base_ids == ids[: at + 1]


def test_injection_leaves_the_model_as_it_was(bench: Bench) -> None:
    before = plain_logits(bench.lm, bench.ids)
    inject(bench.lm, bench.ids, bench.target, bench.vector, 0)
    inject_nll(bench.lm, bench.ids, [bench.target], bench.vector, 0)
    inject_generate(bench.lm, bench.ids, bench.vector, 0, n_tokens=2)
    assert torch.equal(plain_logits(bench.lm, bench.ids), before)


@pytest.mark.parametrize("layer", [-1, 2])
def test_injection_behind_the_last_block_is_refused(llama: Bench, layer: int) -> None:
    with pytest.raises(ModelError, match="edit_layer out of range"):
        inject(llama.lm, llama.ids, llama.target, llama.vector, layer)


def test_injection_into_a_block_that_is_not_run_is_an_error(llama: Bench) -> None:
    with pytest.raises(HookNeverFired), add_to_residual(llama.lm, 0, llama.vector):
        llama.lm.hf.get_input_embeddings()(torch.tensor([[1]]))


# ---------------------------------------------------------------- all of them in order


def test_the_stations_hand_on_what_they_found(bench: Bench) -> None:
    found = pipeline.run(bench.lm, bench.trials, bench.stations.settings)
    means = mean_head_activations(bench.lm, bench.clean())
    assert torch.equal(tensor_leaf(found["mean_activations"], "mean_activations"), means)
    cie = torch.stack(
        [
            causal_indirect_effect(
                bench.lm, bench.prompt(i).input_ids, bench.prompt(i).target_id, bench.slots(i), means
            )
            for i in range(N_TRIALS)
        ]
    )
    heads = top_heads(average_indirect_effect(cie), 3)
    assert torch.equal(tensor_leaf(found["top_heads"], "cie"), cie)
    assert found["top_heads"]["heads"] == [[h.layer, h.head] for h in heads]
    assert tensor_leaf(found["top_heads"], "scores").tolist() == [round(h.aie, 4) for h in heads]
    vector = function_vector(bench.lm, means, heads)
    assert torch.equal(tensor_leaf(found["fv_vector"], "function_vector"), vector)
    terms = tensor_leaf(found["fv_vector"], "head_terms")
    torch.testing.assert_close(terms.sum(dim=0), vector, atol=1e-5, rtol=1e-5)
    injection = inject(bench.lm, bench.prompt(2).input_ids, bench.prompt(2).target_id, vector, 0)
    assert found["injection_output"]["2:2/delta_logprob"] == injection.delta_logprob
    assert torch.equal(tensor_leaf(found["injection_output"], "2:2/with_logits"), injection.with_logits)


def test_a_slot_map_is_read_back_from_its_leaves(llama: Bench) -> None:
    leaves = llama.stations.slot_map(llama.stations.prompt_boundary())
    assert pipeline.trial_keys(leaves) == ["0:0", "1:1", "2:2"]
    for trial, key in enumerate(pipeline.trial_keys(leaves)):
        for regime in ("clean", "corrupted"):
            assert pipeline.slots_of(leaves, key, regime) == llama.slots(trial, regime)


def test_means_come_from_clean_prompts_and_effects_from_corrupted_ones(llama: Bench) -> None:
    stations = llama.stations
    prompts = stations.prompt_boundary()
    slots = stations.slot_map(prompts)
    only_clean = {leaf: value for leaf, value in prompts.items() if "/corrupted/" not in leaf}
    means = stations.mean_activations(only_clean, slots)
    only_corrupted = {leaf: value for leaf, value in prompts.items() if "/clean/" not in leaf}
    assert stations.top_heads(only_corrupted, slots, means)["heads"]
    with pytest.raises(KeyError):
        stations.mean_activations(only_corrupted, slots)
    with pytest.raises(KeyError):
        stations.top_heads(only_clean, slots, means)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit_layer": 2}, "edit_layer out of range"),
        ({"n_top_heads": 9}, "9 top heads asked for, random-llama has 8"),
        ({"n_top_heads": 0}, "0 top heads asked for"),
        ({"token_class_idx": 10}, r"token class 10 is not in \[-1, 9\]"),
        ({"token_class_idx": -2}, r"token class -2 is not in \[-1, 9\]"),
        ({"reference_profile": "mine"}, "unknown reference profile 'mine'; expected one of src, todd_upstream"),
        ({"engine": "warp"}, "unknown engine 'warp'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_anything_runs(
    llama: Bench, change: dict[str, Any], message: str
) -> None:
    settings = replace(llama.stations.settings, **change)
    with pytest.raises((ValueError, ModelError), match=message):
        pipeline.run(llama.lm, llama.trials, settings)


def test_reading_heads_while_another_head_is_replaced_shows_later_layers_change(llama: Bench) -> None:
    with read_heads(llama.lm) as clean:
        target_probability(llama.lm, llama.ids, llama.target)
    with read_heads(llama.lm) as patched, head_replaced(llama.lm, 0, 1, {3: torch.ones(8)}):
        target_probability(llama.lm, llama.ids, llama.target)
    assert torch.equal(patched[1][:, :3], clean[1][:, :3])
    assert not torch.equal(patched[1][:, 3:], clean[1][:, 3:])
