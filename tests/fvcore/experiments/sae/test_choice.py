"""The features of each layer that are gone on with, and the contexts that they are looked at in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.sae import load as step
from fvcore.experiments.sae.contexts import Draws, contexts
from fvcore.experiments.sae.features import cohen_d
from fvcore.experiments.sae.schemas import CausalFeatures, PromptsSample
from fvcore.formats import read_json
from tests.fvcore.experiments.sae.worlds import Data, records, result, right
from tests.late import RUNNING

if RUNNING:
    from fvcore.model.model import load_tokenizer


def chosen(data: Data, **more: Any) -> CausalFeatures:
    data.write()
    path, *_ = step.load(data.settings(**{"features.layers": "1-3"} | more), forced=True)
    return CausalFeatures.model_validate(read_json(path))


def named(found: CausalFeatures) -> list[str]:
    return [one.feature for one in found.features]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Layer 1: two equal in size and of opposite sign, one that is no number, one that is not causal; layer 2: one."""
    rows = [
        result(1, 9, cohen_d=-1.0, risky_effect_size=0.4, safe_p_value=0.01, risky_p_value=0.04),
        result(1, 4, cohen_d=1.0, safe_effect_size=-0.2, safe_p_value=0.03),
        result(1, 5, cohen_d=0.5, safe_effect_size=-0.9),
        result(1, 6, cohen_d=float("nan")),
        result(1, 7, cohen_d=3.0, is_causal=False, risky_p_value=0.9),
        result(2, 4, cohen_d=0.1),
    ]
    old = [one | {"cohen_d": 9.0} for one in rows[:3]]
    files = {"c1.json": {"timestamp": "2", "results": rows}, "c2.json": {"timestamp": "1", "results": old}}
    return Data(tmp_path, files | {"l1.json": records(["L1-4", "L2-4"])})


def test_the_strongest_of_each_layer_are_kept_and_of_equal_ones_the_smaller_id(data: Data) -> None:
    found = chosen(data)

    assert named(found) == ["L1-4", "L1-9", "L1-5", "L2-4"]
    assert [one.direction for one in found.features] == ["risky", "safe", "risky", "risky"]
    assert [one.abs_d_rank_in_layer for one in found.features] == [1, 2, 3, 1]
    assert [one.n_source_files for one in found.features] == [2, 2, 2, 1]
    assert [one.joinable for one in found.features] == [True, False, False, True]
    meta = found.metadata
    assert (meta.total_causal, meta.total_filtered, meta.forced) == (5, 4, True)
    assert meta.per_layer == {
        "1": {"causal": 4, "kept": 3, "min_abs_d_kept": 0.5},
        "2": {"causal": 1, "kept": 1, "min_abs_d_kept": 0.1},
        "3": {"causal": 0, "kept": 0, "min_abs_d_kept": None},
    }


@pytest.mark.parametrize(
    ("option", "value", "names"),
    [
        ("top_k_per_layer", 1, ["L1-4", "L2-4"]),
        ("rank_by", "causal_effect", ["L1-5", "L1-9", "L1-4", "L2-4"]),
        ("rank_by", "combined", ["L1-5", "L1-9", "L1-4", "L2-4"]),
        ("min_abs_d", 0.6, ["L1-4", "L1-9"]),
        ("require_causal", False, ["L1-7", "L1-4", "L1-9", "L1-5", "L2-4"]),
        ("require_joinable", True, ["L1-4", "L2-4"]),
        ("layers", "2-2", ["L2-4"]),
    ],
)
def test_what_a_setting_chooses(data: Data, option: str, value: Any, names: list[str]) -> None:
    assert named(chosen(data, **{f"features.{option}": value})) == names


def test_p_values_are_corrected_over_all_features_and_both_prompts(data: Data) -> None:
    first, second, third, _ = chosen(data).features

    # 0.01, 0.03, 0.04 and 0.9 of four tests
    assert second.q_causal == pytest.approx(0.04)
    assert first.q_causal == pytest.approx(0.04 * 4 / 3)
    assert (third.q_causal, first.p_values) == (None, {"safe": 0.03, "risky": None})


def test_cohens_d_is_over_the_pooled_deviation() -> None:
    first, second = [1.0, 2.0, 6.0], [2.0, 4.0]

    # Variances 7 and 2 on 2 and 1 degrees: a pooled variance of 16 / 3.
    assert cohen_d(first, second) == pytest.approx((3 - 3) / math.sqrt(16 / 3))
    assert cohen_d([5.0, 6.0, 10.0], second) == pytest.approx(4 / math.sqrt(16 / 3))
    assert (cohen_d([1.0, 1.0], [1.0, 1.0]), cohen_d([1.0, 1.0], [2.0, 2.0]), cohen_d([1.0], second)) == (0, None, None)


PROMPTS = {"prompts.safe": "Stay or go? Choice: ", "prompts.risky": "All in? Choice: "}


def sample(data: Data, **more: Any) -> PromptsSample:
    data.write()
    model = {"model.name": "tiny-llama", "contexts.per_prompt": 5}
    *_, path = step.load(data.settings(**PROMPTS | model | more), forced=True)
    return PromptsSample.model_validate(read_json(path))


def varied(data: Data) -> Data:
    for name in ("l1.json", "l2.json"):
        for at, one in enumerate(data.files[name]):
            one["response"] = f"{name[1]}{at}) I bet ${at} and {'stop' if at % 2 else 'go on'} for now."
    return data


def test_a_context_is_the_prompt_gone_on_with_by_a_logged_response(tmp_path: Path) -> None:
    data = varied(right(tmp_path))
    texts = {one["response"] for name in ("l1.json", "l2.json") for one in data.files[name]}
    found = sample(data).contexts
    tokenizer = load_tokenizer("tiny-llama")

    assert [one.id for one in found] == [f"{kind}-{n:02d}" for kind in ("safe", "risky") for n in range(5)]
    assert [one.source and one.source.n_response_tokens for one in found[:5]] == [None, 4, 8, 16, 4]
    assert len({one.input_ids for one in found}) == 10
    for one in found:
        assert one.special == (
            True,
            *[False] * (one.n_tokens - 1),
        )  # this tokenizer begins with a BOS, and ends with nothing
        prompt, text = PROMPTS[f"prompts.{one.prompt_type}"], tokenizer.decode(one.input_ids, skip_special_tokens=True)
        assert text.startswith(prompt)
        if one.source:
            assert one.source.condition == f"{one.prompt_type}_baseline"
            (whole,) = [whole for whole in texts if (prompt + whole).startswith(text)]
            assert tokenizer(prompt + whole).input_ids[: one.n_tokens] == list(one.input_ids)


def test_a_response_that_no_tokenizer_takes_is_passed_over(tmp_path: Path) -> None:
    data = varied(right(tmp_path))
    before = sample(data)
    data.files["l3.json"] = [one | {"response": f"half {at} \ud83d"} for at, one in enumerate(data.files["l1.json"])]

    assert sample(data) == before


def test_contexts_depend_on_the_seed_and_on_no_order(tmp_path: Path) -> None:
    data = varied(right(tmp_path))
    first = sample(data)
    for name in ("l1.json", "l2.json"):
        data.files[name].reverse()
    assert sample(data) == first

    other = sample(data, **{"contexts.seed": 1})
    assert [a.input_ids == b.input_ids for a, b in zip(first.contexts, other.contexts, strict=True)].count(True) < 5


def test_without_responses_there_are_the_bare_prompts_and_texts_that_stand_twice_count_once(tmp_path: Path) -> None:
    data = right(tmp_path)
    found = sample(data, **{"contexts.prefix_tokens": "0"}).contexts
    assert [(one.id, one.type) for one in found] == [("safe-00", "bare"), ("risky-00", "bare")]

    # Three texts in all the logs, which begin alike: no more contexts than differ.
    texts = [one.input_ids for one in sample(data).contexts]
    assert len(texts) == len(set(texts)) < 10


def test_responses_that_are_held_stay_few_and_are_those_of_the_smallest_draws(tmp_path: Path) -> None:
    settings = Data(tmp_path).settings(**{"contexts.per_prompt": 2}).contexts
    few, backwards, all_of_them = (Draws(["safe"], settings, {}) for _ in range(3))
    all_of_them.most = 10_000
    offers = [(at, f"text {at // 2}") for at in range(2000)]
    for draws, order in ((few, offers), (backwards, offers[::-1]), (all_of_them, offers)):
        for trial, text in order:
            draws.offer("l.json", "L1-0", "safe_baseline", trial, text)

    assert len(few.held["safe_baseline"]) <= 4 * few.most
    assert few.of("safe") == backwards.of("safe") == all_of_them.of("safe")[: few.most]


def test_a_token_that_closes_every_text_does_not_stand_within_a_context(tmp_path: Path) -> None:
    class Closing:
        """A token a character, one that opens and one that closes."""

        is_fast = True

        def __call__(self, text: str, **_: bool) -> dict[str, list[Any]]:
            at = [(n, n + 1) for n in range(len(text))]
            ids = [1, *map(ord, text), 2]
            return {
                "input_ids": ids,
                "offset_mapping": [(0, 0), *at, (0, 0)],
                "special_tokens_mask": [1, *[0] * len(text), 1],
            }

    settings = Data(tmp_path).settings(**{"contexts.prefix_tokens": "2"}).contexts
    bare, longer = contexts(Closing(), "safe", "ab", [("0", "L1-0", "safe_baseline", 0, "cdef")], settings)

    assert (bare.input_ids, longer.input_ids) == ((1, 97, 98), (1, 97, 98, 99, 100))
