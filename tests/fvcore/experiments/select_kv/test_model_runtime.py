"""A runtime on a model: what one query is told does not depend on what was asked before or is asked beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.late import RUNNING, inference_mode

if RUNNING:
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import Cache, StaticLayer

    from fvcore.experiments.select_kv.errors import (
        HFBackendUnavailable,
        SelectKVRuntimeError,
        UnsupportedPositioning,
    )  # fmt: skip
    from fvcore.experiments.select_kv.model_runtime import ModelRuntime, load_runtime
    from fvcore.model import model as models
    from fvcore.model.prefix import cache_given, prefix_cache
    from tests.fvcore.experiments.select_kv import worlds
    from tests.fvcore.experiments.select_kv.worlds import (
        CLOSE,
        DEMO,
        QUERY,
        SELECTED,
        SINK,
        builder,
        divergence,
        forward,
        furthest,
        read,
        runtime,
    )  # fmt: skip

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.prefix import Prefix

FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox")


def off_prompts(n: int = 5) -> list[list[int]]:
    """Of several lengths."""
    draw = torch.Generator().manual_seed(8)
    return [torch.randint(4, 60, (3 + 2 * at,), generator=draw).tolist() for at in range(n)]


def some_prefix(family: str, attn: str = "eager", **changes: Any) -> Prefix:
    return builder(family, "auto", "compact", attn=attn, **changes).build(read(family, attn=attn), DEMO, SELECTED)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_query_on_the_read_demo_is_answered_as_in_one_text(family: str, attn: str) -> None:
    for sink in (False, True):
        demo = read(family, sink, attn)
        cached, _ = runtime(family, attn).read_demo(demo, QUERY, (0, 1), "mean")

        assert furthest(cached, forward(family, [SINK] * sink + [*DEMO, *QUERY], attn=attn)) < CLOSE
        full = builder(family, "gather", "absolute", sink, attn).full(demo, DEMO)
        assert furthest(cached, runtime(family, attn).next_logits([QUERY], full)[0]) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_is_the_same_after_any_number_of_queries(family: str) -> None:
    prefix, asked = some_prefix(family), runtime(family)
    before = [(keys.clone(), values.clone()) for keys, values in prefix.layers]
    asked.next_logits([QUERY], prefix)
    first = [asked.next_logits([prompt], prefix)[0] for prompt in off_prompts()]
    again = [asked.next_logits([prompt], prefix)[0] for prompt in off_prompts()]

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for (keys, values), (keys_before, values_before) in zip(prefix.layers, before, strict=True):
        assert torch.equal(keys, keys_before)
        assert torch.equal(values, values_before)


@inference_mode
def test_one_cache_of_a_prefix_serves_any_number_of_queries() -> None:
    """Handed to the model twice, it is no longer and answers the same."""
    prefix, hf = some_prefix("llama"), runtime("llama").lm.hf
    cache = prefix_cache(prefix.layers)
    how = {
        "attention_mask": torch.tensor([[*prefix.mask, *[1] * len(QUERY)]]),
        "use_cache": True,
    } | cache_given(hf, cache)
    twice = [hf(torch.tensor([QUERY]), **how).logits for _ in range(2)]

    assert cache.get_seq_length() == prefix.n_slots
    assert torch.equal(*twice)


@inference_mode
def test_a_cache_that_keeps_its_queries_answers_otherwise() -> None:
    """The control: the library's own cache, asked twice, where the second query sees the first and not its own end."""
    prefix, hf = some_prefix("llama"), runtime("llama").lm.hf
    cache, n = DynamicCache(list(prefix.layers)), prefix.n_slots

    def asked(query: list[int]) -> Any:
        mask = torch.tensor([[*prefix.mask, *[1] * len(query)]])
        positions = torch.arange(prefix.next_position, prefix.next_position + len(query))[None]
        given = {"attention_mask": mask, "position_ids": positions} | cache_given(hf, cache)
        return hf(torch.tensor([query]), **given).logits[0, -1]

    asked(list(QUERY))
    assert cache.get_seq_length() == n + len(QUERY)
    second = off_prompts()[2]
    assert divergence(asked(second), runtime("llama").next_logits([second], prefix)[0]) > 1e-3


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_queries_side_by_side_are_answered_as_one_by_one(family: str, attn: str) -> None:
    asked, prompts = runtime(family, attn), off_prompts()
    for prefix in (
        None,
        some_prefix(family, attn),
        some_prefix(family, attn, prefix__padding_mode="shrink_to_selected"),
    ):
        together = asked.next_logits(prompts, prefix)
        alone = [asked.next_logits([prompt], prefix)[0] for prompt in prompts]

        assert max(furthest(a, b) for a, b in zip(together, alone, strict=True)) < CLOSE


def test_small_batches_give_the_queries_in_their_own_order() -> None:
    asked, prompts, prefix = runtime("llama"), off_prompts()[::-1], some_prefix("llama")
    small = ModelRuntime(asked.lm, batch_size=2)

    assert furthest(small.next_logits(prompts, prefix), asked.next_logits(prompts, prefix)) < CLOSE
    assert small.calls == {"next_logits": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_side_by_side_answer_as_one_by_one(family: str) -> None:
    """Of several lengths, and seen in several layers."""
    from dataclasses import replace

    asked, demo = runtime(family), read(family, True)
    made = builder(family, "auto", "compact", sink=True, prefix__padding_mode="shrink_to_selected")
    one = made.build(demo, DEMO, SELECTED)
    prefixes = [
        one,
        made.build(demo, DEMO, (5,)),
        made.full(demo, DEMO),
        made.null(),
        replace(one, visible_layers=(1,)),
    ]
    assert len({prefix.n_slots for prefix in prefixes}) == 4
    together = asked.next_logits_of_prefixes(QUERY, prefixes)
    alone = [asked.next_logits([QUERY], prefix)[0] for prefix in prefixes]

    assert max(furthest(a, b) for a, b in zip(together, alone, strict=True)) < CLOSE
    assert furthest(together[0], together[4]) > 0.01


def test_one_pass_is_enough_for_all_students_of_a_sample() -> None:
    own, made, demo = ModelRuntime(runtime("llama").lm), builder("llama", "gather", "compact"), read("llama")
    prefixes = [made.build(demo, DEMO, (at, at + 1)) for at in range(8)] + [made.full(demo, DEMO), made.null()]
    own.next_logits_of_prefixes(QUERY, prefixes)

    assert own.calls == {"next_logits_of_prefixes": 1}


def test_rows_are_as_many_as_memory_holds() -> None:
    own = ModelRuntime(runtime("llama").lm, max_memory=3 * runtime("llama").row_bytes(40, 11))
    own.next_logits(off_prompts(), some_prefix("llama", prefix_len=40))

    assert own.calls == {"next_logits": 2}
    assert ModelRuntime(own.lm, max_memory=1).rows_at_once(40, 11) == 1


@contextmanager
def _given_to_the_model(asked: ModelRuntime) -> Iterator[list[dict[str, Any]]]:
    seen = list[dict[str, Any]]()
    handle = asked.lm.hf.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def test_every_pass_is_told_its_mask_and_its_positions() -> None:
    """Without a mask, positions with gaps are read as several texts side by side."""
    asked = runtime("llama")
    with _given_to_the_model(asked) as seen:
        demo = read("llama")
        asked.prefill(DEMO[:3], (0, 4, 9))
        asked.next_logits([QUERY])
        prefix = some_prefix("llama")
        asked.next_logits([QUERY], prefix)
        asked.next_logits_of_prefixes(QUERY, [prefix])
        asked.read_demo(demo, QUERY, (0,), "mean")
        asked.drop(demo, QUERY, [(0, 2)])

    assert len(seen) >= 7
    for given in seen:
        cache = given.get("cache", given.get("past_key_values"))
        slots = 0 if cache is None else cache.get_seq_length()
        # A cache that was filled by the call itself holds the tokens already.
        assert given["attention_mask"].shape[1] in {slots, slots + given["input_ids"].shape[1]}
        assert given["position_ids"].shape[1] == given["input_ids"].shape[1]


@inference_mode
def test_without_a_mask_gaps_do_cut_the_text() -> None:
    """The control: what the guard is for."""
    hf, row, at = runtime("llama").lm.hf, torch.tensor([QUERY]), torch.tensor([[0, 1, 2, 9, 10, 11, 12]])
    cut = hf(row, position_ids=at, use_cache=False).logits[0, -1]

    assert furthest(cut, forward("llama", QUERY, at[0].tolist())) > 0.05


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@inference_mode
def test_scores_are_the_attention_of_the_query_in_one_text(family: str, attn: str) -> None:
    """Also where the model is asked in another way: that one says nothing of attention."""
    for sink in (0, 1):
        demo = read(family, bool(sink), attn)
        row = torch.tensor([[SINK] * sink + [*DEMO, *QUERY]])
        seen = runtime(family).lm.hf(row, attention_mask=torch.ones_like(row), output_attentions=True).attentions
        of_demo = seen[1][0, :, -len(QUERY) :, sink : sink + len(DEMO)]
        for reduce, expected in (("mean", of_demo.mean((0, 1))), ("last", of_demo[:, -1].mean(0))):
            _, scores = runtime(family, attn).read_demo(demo, QUERY, (1,), reduce)

            assert scores.shape == (len(DEMO),)
            assert furthest(scores, expected) < 1e-5
    assert runtime(family, attn).lm.attn_implementation == attn


def test_attention_that_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = runtime("llama", "sdpa")
    monkeypatch.setattr(type(asked.lm.hf), "set_attn_implementation", lambda self, name: None)

    with pytest.raises(SelectKVRuntimeError, match=r"expected attentions of 2 layers, found 0.*use eager"):
        asked.read_demo(read("llama", attn="sdpa"), QUERY, (0,), "mean")


@pytest.mark.parametrize("family", FAMILIES)
@inference_mode
def test_a_dropped_span_is_hidden_from_the_query_and_from_nothing_else(family: str) -> None:
    demo, spans = read(family, sink=True), [(0, 4), (7, 9), (22, 24)]
    dropped = runtime(family).drop(demo, QUERY, spans)

    for (start, end), logits in zip(spans, dropped, strict=True):
        seen = [int(not start <= at - 1 < end) for at in range(1 + len(DEMO))] + [1] * len(QUERY)
        n = 1 + len(DEMO)
        hf, cache = runtime(family).lm.hf, DynamicCache(list(demo.layers))
        expected = hf(
            torch.tensor([QUERY]), attention_mask=torch.tensor([seen]), **cache_given(hf, cache),
            position_ids=torch.arange(n, n + len(QUERY))[None], use_cache=True,
        ).logits[0, -1]  # fmt: skip
        assert furthest(logits, expected) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
@inference_mode
def test_greedy_continues_as_the_library_does(family: str) -> None:
    asked, full = runtime(family), builder(family, "gather", "absolute", sink=True).full(read(family, True), DEMO)
    row = torch.tensor([[SINK, *DEMO, *QUERY]])
    text = asked.lm.hf.generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=4, eos_token_id=None, pad_token_id=0
    )

    assert asked.greedy(QUERY, full, 4) == tuple(text[0, -4:].tolist())


def test_what_a_sliding_window_would_hide_is_refused() -> None:
    asked = runtime("gemma2")
    assert asked.info.sliding_layers == (0,)
    assert asked.info.window == 16
    short = asked.prefill(DEMO[:9])
    assert len(short.positions) == 9
    with pytest.raises(SelectKVRuntimeError, match=r"24 slots and tokens, and layers 0 see the last 16"):
        asked.prefill(DEMO)
    with pytest.raises(SelectKVRuntimeError, match="see the last 16 alone"):
        asked.read_demo(asked.prefill(DEMO[:12]), QUERY, (0,), "mean")


def test_a_local_window_is_one_too() -> None:
    with pytest.raises(SelectKVRuntimeError, match=r"layers 1 see the last 8"):
        read("gpt_neo")


def test_a_model_that_counts_slots_itself_is_refused() -> None:
    with pytest.raises(UnsupportedPositioning, match="counts slots"):
        runtime("bloom")


def test_a_cache_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRuntime, "_fresh_cache", lambda self: Cache(layers=[StaticLayer(max_cache_len=64)]))

    with pytest.raises(SelectKVRuntimeError, match="found StaticLayer"):
        ModelRuntime(runtime("llama").lm)


def test_more_positions_than_the_model_has_are_refused() -> None:
    with pytest.raises(SelectKVRuntimeError, match=r"position 259 asked for, and the model has 256"):
        runtime("gpt2").prefill([5] * 260)
    far = builder("gpt2", "gather", "absolute").full(runtime("gpt2").prefill([5] * 254), [5] * 254)
    with pytest.raises(SelectKVRuntimeError, match="position 260"):
        runtime("gpt2").next_logits([QUERY], far)
    # What fits is answered, also beside a longer one.
    two = runtime("gpt2").next_logits([QUERY[:2], QUERY[:1]], far)
    assert furthest(two[1], runtime("gpt2").next_logits([QUERY[:1]], far)[0]) < CLOSE


@inference_mode
def test_logits_that_are_no_numbers_are_an_error() -> None:
    own = worlds.fresh("llama")
    own.lm.hf.get_output_embeddings().weight[3] = float("nan")

    with pytest.raises(SelectKVRuntimeError, match="not numbers"):
        own.next_logits([QUERY])


def test_a_model_that_cannot_be_had_is_not_replaced() -> None:
    nowhere = worlds.settings(model__id="nobody/has-this", runtime__device="cpu")

    with pytest.raises(HFBackendUnavailable, match="nobody/has-this"):
        load_runtime(nowhere)
    with pytest.raises(HFBackendUnavailable, match="revision 'old' of 'nobody/has-this' is not in the local cache"):
        load_runtime(nowhere.changed({"model.revision": "old"}))
    with pytest.raises(HFBackendUnavailable, match="tokenizer NoneType: expected a fast one"):
        ModelRuntime(models.LanguageModel.wrap(runtime("llama").lm.hf))


def test_a_shipped_model_says_what_it_is() -> None:
    info = load_runtime(worlds.settings(model__id="tiny-llama", runtime__device="cpu")).info

    assert (info.model_id, info.position_scheme, info.rope_type) == ("tiny-llama", "rope", "default")
    assert (info.attn_implementation, info.device, info.window) == ("eager", "cpu", None)
    assert len(info.weights_sha) == len(info.tokenizer_sha) == 64
    learned = load_runtime(worlds.settings(model__id="tiny-gpt2", runtime__device="cpu")).info
    assert (learned.position_scheme, learned.rope_type) == ("learned", None)
