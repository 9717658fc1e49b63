"""What the curves claim: where a state works, what a budget buys, and that a state is of a relation, not of a query."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.select_kv import files
from fvcore.formats import read_json
from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.select_kv import budgets, layers
    from fvcore.experiments.select_kv.bench import Bench
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.data import on_samples
    from fvcore.experiments.select_kv.points import mean, share
    from tests.phase2.fake import FakeRuntime


@pytest.fixture
def scopes(small_run: Path) -> dict[tuple[int, ...], dict[str, Any]]:
    return {tuple(one["layers"]): one for one in read_json(small_run / files.LAYER_CURVE)["scopes"]}


def test_scopes_are_none_each_neighbours_and_all() -> None:
    assert list(layers.scopes(3)) == [(), (0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)]
    assert list(layers.scopes(2)) == [(), (0,), (1,), (0, 1)]
    assert list(layers.scopes(1)) == [(), (0,)]


@pytest.mark.slow
def test_hidden_everywhere_is_the_bare_query_and_seen_everywhere_the_run(
    small_run: Path, scopes: dict[tuple[int, ...], dict[str, Any]]
) -> None:
    on = read_json(small_run / files.REPORT)["on"]

    # The query stands behind the hidden slots: where positions are rotary, that changes nothing.
    assert scopes[()]["rel_kl"]["mean"] == pytest.approx(1, abs=0.02)
    assert scopes[(0, 1, 2, 3, 4, 5)]["accuracy"]["mean"] == on["select"]["accuracy"]


@pytest.mark.slow
def test_layers_2_and_3_of_the_shipped_model_carry_the_state_and_most_of_the_vectors_heads(
    small_run: Path, scopes: dict[tuple[int, ...], dict[str, Any]]
) -> None:
    vector = read_json(small_run / files.LAYER_CURVE)["vector"]

    pairs = {scope: one["accuracy"]["mean"] for scope, one in scopes.items() if len(scope) == 2}
    assert max(pairs, key=pairs.__getitem__) == (2, 3)
    assert pairs[2, 3] > 0.8 > 0.5 > scopes[(5,)]["accuracy"]["mean"]
    assert sorted(range(6), key=vector["heads"].__getitem__)[-2:] == [3, 2]
    assert sum(vector["heads"]) == 18 * vector["top_heads"]
    assert max(point["mean"] for point in vector["layers"]) > vector["base"]["mean"] + 0.3


def test_a_state_answers_other_queries_of_its_relation(small_run: Path) -> None:
    found = read_json(small_run / files.REUSE)

    assert found["others"]["mean"] > 0.8 > 0.5 > found["base"]["mean"]


def test_budgets_double_below_the_shortest_demo_and_end_with_the_whole() -> None:
    assert budgets.budgets(9) == [1, 2, 4, 8, budgets.WHOLE]
    assert budgets.budgets(8) == [1, 2, 4, budgets.WHOLE]
    assert budgets.budgets(1) == [budgets.WHOLE]


def test_every_method_keeps_the_budget_and_ends_at_the_whole_demo(small_run: Path) -> None:
    curve, on = read_json(small_run / files.BUDGET_CURVE), read_json(small_run / files.REPORT)["on"]

    assert list(curve["methods"]) == list(budgets.METHODS)
    for points in curve["methods"].values():
        assert all(point["kept"] <= point["budget"] for point in points[:-1])
        assert points[-1] == curve["methods"]["recent"][-1]
        assert points[-1]["accuracy"]["mean"] == on["full"]["accuracy"]
    assert [p["kept"] for p in curve["methods"]["attention_diversity_span"][:-1]] == [1, 2, 4, 8, 16]
    at_two = {method: points[1]["accuracy"]["mean"] for method, points in curve["methods"].items()}
    assert at_two["attention_diversity_span"] > at_two["random_span"] + 0.3
    assert curve["n_off"] == budgets.OFF_STATES


def test_a_share_lies_between_0_and_1_and_all_alike_have_some_width() -> None:
    every = share([True] * 8, list("aabbccdd"))
    assert (every["mean"], every["high"]) == (1.0, 1.0)
    assert every["low"] is not None
    assert 0.5 < every["low"] < 1
    mixed = share([True, True, False, False], list("aabb"))
    assert (mixed["low"], mixed["high"]) == (0.0, 1.0)
    # Where each is a group of its own, four answers are four witnesses.
    alone = share([True, True, False, False], list("abcd"))
    assert alone["low"] is not None
    assert alone["low"] > 0
    assert mean([1.0, 3.0], ["", ""])["n"] == 2


def test_answers_count_as_a_whole_where_the_run_counts_them_so() -> None:
    few = {"data.synthetic.num_pairs": 4, "eval.on_samples": 3, "injection.positioning_mode": "absolute"}
    found = {}
    for scoring in ("first_token", "full_answer"):
        bench = Bench.of(FakeRuntime(), Phase2().changed({**few, "eval.answer_scoring": scoring}))
        # They begin rightly, and do not go on so.
        samples = [
            replace(one, answer=f"{one.answer} indeed", full_answer_ids=one.full_answer_ids * 2)
            for one in on_samples(bench.settings, bench.runtime.tokenizer)
        ]
        budget, scope = (
            budgets.curve(bench, samples)["methods"]["recent"][-1],
            layers.curve(bench, samples)["scopes"][-1],
        )
        found[scoring] = budget["accuracy"]["mean"], scope["accuracy"]["mean"]

    assert found == {"first_token": (1.0, 1.0), "full_answer": (0.0, 0.0)}
