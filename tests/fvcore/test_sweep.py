"""Engine `fast` gives the numbers of `exact`, on every family, and says when it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore.embedded.random_models import AWKWARD_PAIRS, FAMILIES, of_config, random_lm, toy_tokenizer, trials_for
from fvcore.slots import SlotMap
from tests.late import RUNNING

if RUNNING:
    import torch
    from torch import Tensor
    from transformers import AutoConfig, AutoModelForCausalLM

    from fvcore.activations import mean_head_activations
    from fvcore.effects import causal_indirect_effect
    from fvcore.fast import chunks, engines, sweep
    from fvcore.fast.engines import why_not_fast
    from fvcore.fast.shared_prompt import Batch, SharedPrompt
    from fvcore.injection import NothingMoved, inject, inject_logits, injections
    from fvcore.model.hooks import passing_over
    from fvcore.model.model import LanguageModel
    from fvcore.model.prefix import PromptLayer
    from fvcore.pipeline import Pipeline, Settings, profile_of, slots_of


WITH_SDPA = tuple(family for family in FAMILIES if family != "gptj")
MODELS = [(family, "eager") for family in FAMILIES] + [(family, "sdpa") for family in WITH_SDPA]


@cache
def world(family: str, attention: str = "eager") -> tuple[LanguageModel, list[sweep.Case], Tensor]:
    """A model, corrupted prompts of several lengths, and means."""
    lm = random_lm(family, pairs=AWKWARD_PAIRS)
    lm.hf.set_attn_implementation(attention)
    return lm, *cases_on(lm)


def cases_on(lm: LanguageModel) -> tuple[list[sweep.Case], Tensor]:
    fixed = trials_for(lm, n_trials=3, n_shots=4, seed=3, pairs=AWKWARD_PAIRS)
    stations = Pipeline(lm, fixed, Settings(edit_layer=1, n_top_heads=3, engine="exact"))
    prompts: Any = stations.prompt_boundary()
    slots = stations.slot_map(prompts)
    means: Any = stations.mean_activations(prompts, slots)["mean_activations"]
    cases = [
        (prompts[f"{t.key}/corrupted/input_ids"], prompts[f"{t.key}/target_id"], slots_of(slots, t.key, "corrupted"))
        for t in fixed.trials
    ]
    assert len({len(ids) for ids, _, _ in cases}) > 1
    assert not why_not_fast(lm)  # or exact would be compared with itself
    return cases, means


def exact(lm: LanguageModel, cases: Sequence[sweep.Case], means: Tensor, classes: bool = False) -> Tensor:
    return torch.stack([causal_indirect_effect(lm, *case, means, classes) for case in cases])


def assert_same_effects(found: Tensor, expected: Tensor) -> None:
    """Inside the tolerance of the checks, of which the noise is a hundredth."""
    largest = float(expected.abs().max())
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) <= max(1e-6, 1e-4 * largest)
    assert largest > 1e-3  # or nothing would be shown


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("classes", [False, True], ids=["last token", "all classes"])
@pytest.mark.parametrize(("family", "attention"), MODELS)
def test_effects_are_those_of_exact(family: str, attention: str, classes: bool) -> None:
    lm, cases, means = world(family, attention)
    found = engines.causal_indirect_effects(lm, cases, means, classes)
    assert_same_effects(found, exact(lm, cases, means, classes))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_sliding_window_is_kept(attention: str) -> None:
    tokenizer = toy_tokenizer("bos", AWKWARD_PAIRS)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mistral", vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, sliding_window=16, initializer_range=0.3,
    )  # fmt: skip
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    lm = LanguageModel.wrap(hf, tokenizer, "windowed")
    cases, means = cases_on(lm)
    wide = copy.deepcopy(hf)
    wide.config.sliding_window = None
    unlike = exact(LanguageModel.wrap(wide, tokenizer), cases, means)

    expected = exact(lm, cases, means)

    assert float((unlike - expected).abs().max()) > 1e-3  # the window matters on these prompts
    assert_same_effects(engines.causal_indirect_effects(lm, cases, means), expected)
    assert_same_effects(engines.causal_indirect_effects(lm, cases, means, True), exact(lm, cases, means, True))


def test_what_an_attention_adds_behind_its_projection_is_added_to_variants_too() -> None:
    hf = copy.deepcopy(world("llama")[0].hf)
    for block in hf.model.layers:

        def forward(inner: Any = block.self_attn.forward, **given: Any) -> Any:
            left, *more = inner(**given)
            return (left + 0.5 * given["hidden_states"], *more)

        block.self_attn.forward = forward
    lm = LanguageModel.wrap(hf, world("llama")[0].tokenizer, "adding")
    cases, means = cases_on(lm)
    assert_same_effects(engines.causal_indirect_effects(lm, cases, means), exact(lm, cases, means))


def test_what_a_block_is_handed_for_each_token_is_that_of_the_last_for_variants() -> None:
    """Some families' blocks use it outside of their attention, too."""
    hf = copy.deepcopy(world("llama")[0].hf)
    for block in hf.model.layers:

        def forward(hidden: Tensor, inner: Any = block.forward, **given: Any) -> Tensor:
            left: Tensor = inner(hidden, **given)
            return left + given["position_embeddings"][0].mean(dim=-1, keepdim=True)

        block.forward = forward
    lm = LanguageModel.wrap(hf, world("llama")[0].tokenizer, "by position")
    cases, means = cases_on(lm)
    assert_same_effects(engines.causal_indirect_effects(lm, cases, means), exact(lm, cases, means))


@pytest.mark.parametrize("family", FAMILIES)
def test_means_of_padded_batches_are_those_of_single_prompts(family: str) -> None:
    lm, cases, _ = world(family)
    prompts = [(ids, slots) for ids, _, slots in cases]
    found, expected = engines.mean_head_activations(lm, prompts), mean_head_activations(lm, prompts)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("alpha", [1.0, -0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_injections_at_all_layers_are_those_of_single_passes(family: str, alpha: float) -> None:
    lm, cases, _ = world(family)
    vector = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(1))

    logits = inject_logits(lm, [ids for ids, _, _ in cases], [vector], range(lm.n_layers), alpha)

    assert logits.shape == (len(cases), 1 + lm.n_layers, lm.vocab_size)
    base, injected = logits[:, 0], logits[:, 1:]
    for row, (ids, target, _) in enumerate(cases):
        for layer in range(lm.n_layers):
            expected = inject(lm, ids, target, vector, layer, alpha)
            torch.testing.assert_close(base[row], expected.base_logits, rtol=0, atol=2e-5)
            torch.testing.assert_close(injected[row, layer], expected.with_logits, rtol=0, atol=2e-5)
            assert float((injected[row, layer] - base[row]).abs().max()) > 1e-2


@pytest.mark.parametrize("max_memory", [None, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_padded_batches_are_those_of_single_prompts(family: str, max_memory: int | None) -> None:
    lm, cases, _ = world(family)
    found = inject_logits(lm, [ids for ids, _, _ in cases], [], [], max_memory=max_memory)[:, 0]
    for row, (ids, _, _) in zip(found, cases, strict=True):
        torch.testing.assert_close(row, lm.logits(lm.ids(ids))[0, -1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("n_together", [1, 4, 1024])
def test_each_vector_at_each_layer_is_as_it_is_alone(n_together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, cases, _ = world("llama")
    vectors = [torch.ones(lm.d_model), torch.linspace(-1, 1, lm.d_model), -torch.ones(lm.d_model)]
    passes, along = [], SharedPrompt.along
    monkeypatch.setattr(SharedPrompt, "along", lambda *asked: passes.append(asked[2]) or along(*asked))
    monkeypatch.setattr("fvcore.fast.sweep.ALIKE", n_together)
    together = inject_logits(lm, [cases[0][0]], vectors, [0, 1])[0]
    assert passes == {1: [2, 2, 2], 4: [4, 2], 1024: [6]}[n_together]
    alone = [inject_logits(lm, [cases[0][0]], [v], [layer])[0, 1] for v in vectors for layer in (0, 1)]
    torch.testing.assert_close(together[1:], torch.stack(alone), rtol=0, atol=2e-5)
    assert len({float(row[0]) for row in together}) == 7


def test_layers_rise() -> None:
    lm, cases, _ = world("llama")
    one = torch.ones(lm.d_model)
    with pytest.raises(ValueError, match=r"layers \[1, 0, 1\] do not rise"):
        inject_logits(lm, [cases[0][0]], [one], [1, 0, 1])


@pytest.mark.parametrize("engine", ["exact", "fast"])
def test_an_injection_that_moves_nothing_is_no_result(engine: str) -> None:
    lm, cases, _ = world("llama")
    prompts, vector = [ids for ids, _, _ in cases], torch.ones(lm.d_model)
    with pytest.raises(NothingMoved, match=r"no effect at layer 0, 1: .*alpha 1e-20"):
        inject_logits(lm, prompts, [vector], [0, 1], 1e-20, engine)
    for nothing, alpha in ((vector, 0.0), (0 * vector, 1.0)):
        base, injected = inject_logits(lm, prompts, [nothing], [1], alpha, engine).unbind(1)
        torch.testing.assert_close(injected, base, rtol=0, atol=2e-5)


def test_an_injection_that_leaves_one_prompt_as_it_was_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, _, _ = world("llama")
    logits = torch.arange(12.0).view(2, 2, 3)
    logits[1, 1] = logits[1, 0]
    monkeypatch.setattr("fvcore.injection.inject_logits", lambda *asked: logits)
    with pytest.raises(NothingMoved, match="equal for prompt 1;"):
        injections(lm, [[5], [6]], [0, 0], torch.ones(lm.d_model), 1)
    assert len(injections(lm, [[5], [6]], [0, 0], torch.zeros(lm.d_model), 1)) == 2


def test_alpha_1_keeps_every_bit_of_a_vector() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for half in (torch.float16, torch.bfloat16):
        numbers = every.view(half)
        numbers = numbers[~numbers.isnan()]
        assert torch.equal((1.0 * numbers).view(torch.int16), numbers.view(torch.int16))
    draws = (
        torch.randint(-(2**31), 2**31, (10**6,), generator=torch.Generator().manual_seed(0)).int().view(torch.float32)
    )
    draws = draws[~draws.isnan()]
    assert torch.equal((1.0 * draws).view(torch.int32), draws.view(torch.int32))


def test_a_class_without_tokens_has_no_effect_at_all() -> None:
    lm, cases, means = world("llama")
    ids, target, slots = cases[0]
    unlabelled = SlotMap(
        tuple(label.replace("structural", "other") for label in slots.labels),
        slots.idx_map,
        slots.idx_avg,
        slots.n_slots,
    )

    found = engines.causal_indirect_effects(lm, [(ids, target, unlabelled), cases[1]], means, True)

    assert bool((found[0, :, :, 4] == 0).all())
    assert bool((found[1, :, :, 4] != 0).any())


# ---------------------------------------------------------------- what is computed


def rows_through(lm: LanguageModel, names: Sequence[str], run: Callable[[], object]) -> dict[str, int]:
    """How many rows go through modules of these names."""
    seen = dict.fromkeys(names, 0)

    def count(name: str, given: Tensor) -> None:
        seen[name] += given.shape[0] * given.shape[1]

    with ExitStack() as hooks:
        for name in names:
            hook = lm.hf.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: count(name, args[0]))
            hooks.callback(hook.remove)
        why_not_fast(lm)  # asked anew of a model with other hooks
        seen = dict.fromkeys(names, 0)
        run()
    return seen


def test_no_row_is_computed_that_no_effect_depends_on() -> None:
    """Two layers of four heads. A head starts behind the attention of its own layer; of the prompt's last block all that is
    asked of the tokens before the last is their keys and values."""
    lm, cases, means = world("llama")
    n_tokens = len(cases[0][0])

    found = rows_through(
        lm,
        [*(f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.k_proj", "mlp.gate_proj")), "lm_head"],
        lambda: engines.causal_indirect_effects(lm, cases[:1], means),
    )

    assert found == {
        "model.layers.0.self_attn.k_proj": n_tokens,
        "model.layers.0.mlp.gate_proj": n_tokens + 4,
        "model.layers.1.self_attn.k_proj": n_tokens + 4,
        "model.layers.1.mlp.gate_proj": 1 + 8,
        "lm_head": 1 + 8,
    }


def test_the_last_block_runs_at_the_last_token_of_variants_of_several() -> None:
    lm, cases, means = world("llama")
    assert sweep.Replacement.of("demonstration", cases[:1], means, lm.device).n_tokens > 10

    found = rows_through(
        lm,
        ["model.layers.1.mlp.gate_proj"],
        lambda: sweep.target_readings(lm, cases[:1], means, lm.heads, ["demonstration"]),
    )

    assert found == {"model.layers.1.mlp.gate_proj": 1 + 8}


def test_every_weight_is_read_once_where_variants_run_along() -> None:
    lm, cases, means = world("llama")
    calls: list[str] = []
    names = [f"model.layers.{layer}.self_attn.k_proj" for layer in range(lm.n_layers)]

    with ExitStack() as hooks:
        for name in names:
            hook = lm.hf.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
            hooks.callback(hook.remove)
        why_not_fast(lm)  # asked anew of a model with other hooks
        calls.clear()
        engines.causal_indirect_effects(lm, cases, means)

    assert calls == names


def test_variants_run_along_where_they_and_their_prompt_are_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, cases, means = world("llama")
    most, alike = sweep.ROWS, sweep.alike(lm)
    of_heads: list[Any] = [SimpleNamespace(n_heads=n) for n in (1, sweep.MANY_HEADS, 2 * sweep.MANY_HEADS)]
    assert [sweep.alike(one) for one in of_heads] == [alike, alike, alike // 2]
    assert sweep.trials_along(lm, 100, 28, 10**9) == most // 128
    assert sweep.trials_along(lm, most - 28, 28, 10**10) == 1
    assert sweep.trials_along(lm, most - 27, 28, 10**10) == 0
    assert sweep.trials_along(lm, 100, alike, 10**9) > 0
    assert sweep.trials_along(lm, 100, alike + 1, 10**9) == 0
    assert sweep.trials_along(lm, 100, 28, 1) == 0
    assert [sweep.variants_together(lm, 1, n, 2 * alike, 10**9) for n in (1, 100)] == [alike, alike // 100]
    assert sweep.variants_together(lm, 8, 1, 2 * alike, 10**9) == most // 8
    monkeypatch.setattr(sweep, "ROWS", 20)  # prompts first, then a few variants of each at a time
    assert_same_effects(engines.causal_indirect_effects(lm, cases, means), exact(lm, cases, means))


def test_a_trial_without_room_for_its_variants_at_once_runs_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, cases, means = world("llama")
    asked: list[int] = []

    def full(lm: LanguageModel, prompts: Sequence[Any], *_: Any) -> Any:
        asked.append(len(prompts))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SharedPrompt, "along", full)
    assert_same_effects(engines.causal_indirect_effects(lm, cases, means), exact(lm, cases, means))
    assert asked == [3, 1]


def test_prompts_of_a_length_run_together_and_come_back_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, cases, means = world("llama")
    shorter, *_, longer = sorted(cases, key=lambda case: len(case[0]))
    assert len(shorter[0]) < len(longer[0])
    mixed = [longer, shorter, longer, shorter]
    monkeypatch.setattr(sweep, "ROWS", 2 * (len(longer[0]) + len(lm.heads)))
    found: list[Tensor] = []

    rows = rows_through(
        lm,
        ["model.layers.0.self_attn.k_proj"],
        lambda: found.append(engines.causal_indirect_effects(lm, mixed, means)),
    )

    assert rows["model.layers.0.self_attn.k_proj"] == sum(len(ids) for ids, _, _ in mixed)  # nothing is padded
    assert_same_effects(found[0], exact(lm, mixed, means))


def test_keys_of_variants_take_the_place_of_the_prompts_last_and_leave_it_as_it_was() -> None:
    draw = torch.Generator().manual_seed(0)
    prompt, some, others = (torch.randn(1, 2, n, 4, generator=draw) for n in (5, 6, 4))
    layer = PromptLayer()
    layer.update(prompt, prompt)

    layer.begin(4)
    seen, _ = layer.update(some, some)
    assert torch.equal(seen, torch.cat([prompt[:, :, :4], some], dim=2))
    memory = seen.data_ptr()
    seen, _ = layer.update(others, others)
    assert torch.equal(seen, torch.cat([prompt[:, :, :4], others], dim=2))
    assert seen.data_ptr() == memory  # the prompt's keys were not copied again

    layer.begin(2)
    layer.update(some, some)
    layer.begin(5)
    assert torch.equal(layer.update(others, others)[1][:, :, :5], prompt)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("max_memory", [1, 1_000_000])
def test_less_memory_changes_no_number_beyond_rounding(max_memory: int, classes: bool) -> None:
    lm, cases, means = world("llama")
    found = engines.causal_indirect_effects(lm, cases, means, classes, max_memory=max_memory)
    assert_same_effects(found, exact(lm, cases, means, classes))


def refusing(limit: int) -> Callable[[Sequence[int]], list[int]]:
    def run(some: Sequence[int]) -> list[int]:
        if len(some) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(some)

    return run


def test_out_of_memory_halves_the_chunk_and_loses_nothing() -> None:
    assert list(chunks.in_chunks(range(10), 8, refusing(3))) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_the_systems_own_words_for_a_full_memory_are_known() -> None:
    def run(some: Sequence[int]) -> list[int]:
        if len(some) > 1:
            torch.empty(2**58, dtype=torch.uint8)  # no machine has it
        return list(some)

    assert list(chunks.in_chunks([1, 2, 3], 3, run)) == [[1], [2], [3]]


def test_out_of_memory_for_a_single_item_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(chunks.in_chunks(range(3), 2, refusing(0)))


def test_any_other_error_is_not_mistaken_for_a_want_of_memory() -> None:
    def run(some: Sequence[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(chunks.in_chunks(range(4), 4, run))


def test_a_chunk_holds_at_least_one_and_at_most_what_was_asked() -> None:
    cpu = torch.device("cpu")
    assert chunks.chunk_size(10, cpu, 128, max_memory=95) == 9
    assert chunks.chunk_size(10, cpu, 128, max_memory=5) == 1
    assert chunks.chunk_size(10, cpu, 128, max_memory=10**6) == 128
    assert chunks.chunk_size(1, cpu, 7) == 7


# ---------------------------------------------------------------- the model is left as it was


@pytest.fixture
def untouched() -> Iterator[LanguageModel]:
    lm, _, _ = world("gpt2")
    yield lm
    assert all("forward" not in block.__dict__ for block in lm.blocks)


def test_blocks_run_again_after_an_error(untouched: LanguageModel) -> None:
    def fails(*_: Any) -> Tensor:
        raise ValueError("planted")

    before = untouched.logits(untouched.ids([5, 6, 7]))
    with pytest.raises(ValueError, match="planted"), passing_over(untouched, fails):
        untouched.logits(untouched.ids([5, 6, 7]))
    assert torch.equal(untouched.logits(untouched.ids([5, 6, 7])), before)


def test_a_forward_that_a_loader_put_on_a_block_is_put_back(untouched: LanguageModel) -> None:
    block = untouched.blocks[0]
    block.forward = own = lambda *args, **kwargs: type(block).forward(block, *args, **kwargs)
    try:
        with passing_over(untouched, lambda layer, hidden, given: hidden):
            pass
        assert block.__dict__["forward"] is own
    finally:
        del block.forward


def test_a_prompt_is_not_changed_by_its_variants() -> None:
    lm, cases, means = world("llama", "sdpa")
    first = engines.causal_indirect_effects(lm, cases, means)
    assert torch.equal(engines.causal_indirect_effects(lm, cases, means), first)


def test_padding_stands_on_the_left_and_positions_count_tokens() -> None:
    lm, *_ = world("llama")
    batch = Batch.of([[7, 8, 9], [5]], lm)
    assert batch.ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert "attention_mask" in batch.inputs()
    assert "attention_mask" not in Batch.of([[7, 8]], lm).inputs()


def test_what_was_kept_of_a_prompt_is_what_entered_and_left_its_blocks() -> None:
    lm, cases, _ = world("llama")
    prompt = SharedPrompt.run(lm, [cases[0][0]], 2)
    hidden = lm.hf(input_ids=lm.ids(cases[0][0]), output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(lm.n_layers):
        torch.testing.assert_close(prompt.entered[layer], hidden[layer][:, -2:], rtol=0, atol=2e-6)


# ---------------------------------------------------------------- where it does not hold


@pytest.mark.parametrize(("family", "attention"), MODELS)
def test_the_engine_holds_on_every_family(family: str, attention: str) -> None:
    assert why_not_fast(world(family, attention)[0]) == ""


def blind(lm: LanguageModel) -> LanguageModel:
    """A copy whose attention looks at no mask in its last block: rows see one another."""
    hf = copy.deepcopy(lm.hf)
    attention = hf.model.layers[-1].self_attn
    inner = attention.forward
    attention.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "attention_mask": None})
    return LanguageModel.wrap(hf, lm.tokenizer, "blind")


def seen_before(given: dict[str, Any]) -> int:
    """How many tokens the cache that a module is handed holds, by whatever name this version of the library calls it."""
    cache = given.get("cache", given.get("past_key_values"))
    return 0 if cache is None else int(cache.get_seq_length())


def raising(lm: LanguageModel) -> LanguageModel:
    """A copy whose blocks take one token after a cached prompt, and no more."""
    hf = copy.deepcopy(lm.hf)
    block = hf.model.layers[0]
    inner = block.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cached = seen_before(kwargs)
        if cached and hidden_states.shape[1] > 1:
            raise ValueError("one token at a time")
        return inner(hidden_states, *args, **kwargs)

    block.forward = forward
    return LanguageModel.wrap(hf, lm.tokenizer, "raising")


def unmasked(lm: LanguageModel) -> LanguageModel:
    """A copy that cannot go on from a cached prompt without a mask: a batch shows nothing of it, a prompt alone does."""
    hf = copy.deepcopy(lm.hf)
    inner = hf.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        cached = seen_before(kwargs)
        if cached and kwargs.get("attention_mask") is None:
            raise ValueError("no mask")
        return inner(*args, **kwargs)

    hf.model.forward = forward
    return LanguageModel.wrap(hf, lm.tokenizer, "unmasked")


def of(family: str, **sizes: Any) -> LanguageModel:
    given = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.3, "bos_token_id": 1}
    config = AutoConfig.for_model(family, **given | {"eos_token_id": 2, "max_position_embeddings": 256} | sizes)
    return LanguageModel.wrap(of_config(config), name=family)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_code_that_counts_rows_from_a_window_on_is_found_whatever_the_window_is_called(dtype: str) -> None:
    """Its local layers look at a row's number: no row of the probe but for the window would be far enough from the prompt."""
    kinds = [[["global", "local"], 1]]
    lm = of("gpt_neo", num_heads=4, num_layers=2, window_size=64, attention_types=kinds)
    lm.hf.to(getattr(torch, dtype))
    assert "replaced: logits differ by" in why_not_fast(lm)


def test_layers_that_see_keys_of_others_are_found_wherever_they_stand() -> None:
    kinds = ["sliding_attention", "full_attention"]
    lm = of(
        "gemma4_text", num_hidden_layers=8, num_kv_shared_layers=2, layer_types=4 * kinds, head_dim=8, global_head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=16, pad_token_id=0,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=61,
    )  # fmt: skip
    assert "must match the size" in why_not_fast(lm)


def test_a_model_that_others_have_changed_since_is_asked_anew() -> None:
    lm = random_lm("llama")
    assert why_not_fast(lm) == ""
    hook = lm.blocks[0].register_forward_hook(lambda _, given, left: torch.cat([left[:, :-1], left[:, -1:] + 1], dim=1))
    assert "logits differ by" in why_not_fast(lm)  # the last row is the last variant's alone
    hook.remove()
    assert why_not_fast(lm) == ""
    lm.blocks[0].mlp = torch.nn.Sequential(lm.blocks[0].get_submodule("mlp"), torch.nn.Softmax(dim=1))
    assert "logits differ by" in why_not_fast(lm)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (blind, "logits differ by"),
        (raising, "ValueError: one token at a time"),
        (unmasked, "ValueError: no mask"),
    ],
)
def test_a_model_it_does_not_hold_for_gets_exact_numbers_and_a_word(plant: Any, reason: str) -> None:
    lm = plant(random_lm("llama", pairs=AWKWARD_PAIRS))
    lm.hf.set_attn_implementation("eager")
    fixed = trials_for(lm, n_trials=2, n_shots=4, seed=3, pairs=AWKWARD_PAIRS)
    fast, plain = (Pipeline(lm, fixed, Settings(edit_layer=1, n_top_heads=3, engine=e)) for e in ("fast", "exact"))

    prompts = fast.prompt_boundary()
    slots = fast.slot_map(prompts)
    means = fast.mean_activations(prompts, slots)
    effects: Any = fast.top_heads(prompts, slots, means)["cie"]
    expected: Any = plain.top_heads(prompts, slots, means)["cie"]

    assert reason in why_not_fast(lm)
    assert torch.equal(effects, expected)
    (note,) = fast.notes("mean_activations")
    assert reason in note
    assert plain.notes("mean_activations") == []
    assert profile_of(lm, fixed, fast.settings).conditions.engine == "exact"


def test_the_profile_says_that_the_fast_engine_ran() -> None:
    lm, _, _ = world("llama")
    fixed = trials_for(lm, n_trials=2, n_shots=4, seed=3, pairs=AWKWARD_PAIRS)
    assert profile_of(lm, fixed, Settings(edit_layer=1, engine="fast")).conditions.engine == "fast"
    assert Pipeline(lm, fixed, Settings(edit_layer=1, engine="fast")).engine == "fast"


def test_the_engine_is_asked_of_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_lm("llama")
    assert why_not_fast(lm) == ""
    monkeypatch.setattr("fvcore.fast.engines.apart", lambda lm: pytest.fail("asked again"))
    assert why_not_fast(lm) == ""
