"""The OFF side: which states a prompt is asked on, what counts of them, and that nothing of one prompt reaches the next."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.late import RUNNING
from tests.phase2.fake import FakeRuntime

if RUNNING:
    from fvcore.experiments.select_kv.bench import Bench
    from fvcore.experiments.select_kv.compute import on_rows
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.data import off_samples, on_samples
    from fvcore.experiments.select_kv.errors import OnTaskInvalid
    from fvcore.experiments.select_kv.metrics import kl
    from fvcore.experiments.select_kv.off import off_rows, state_prefixes
    from fvcore.experiments.select_kv.schemas import OffRow
    from fvcore.experiments.select_kv.summary import Summary, nearest_rank
    from fvcore.experiments.select_kv.verdict import Verdict

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.bench import Bench
    from fvcore.experiments.select_kv.schemas import OffRow

LEAK = 4.0


class World:
    """Four samples, two groups of two, on a runtime that leaks what a prefix holds into every answer."""

    def __init__(self, **changes: Any) -> None:
        values = {
            "data.synthetic.num_pairs": 4, "eval.on_samples": 4, "eval.off_samples": 6, "select.span_len": 2,
            "select.span_budget": 1, "injection.positioning_mode": "absolute",
        }  # fmt: skip
        self.settings = Phase2().changed({**values, **changes})
        self.bench: Bench = Bench.of(FakeRuntime(leak=LEAK), self.settings)
        tokenizer = self.bench.runtime.tokenizer
        groups = ("a", "b", "a", "b")
        self.on = [replace(one, group=g) for one, g in zip(on_samples(self.settings, tokenizer), groups, strict=True)]
        self.off = off_samples(self.settings, tokenizer)
        self.rows = on_rows(self.bench, self.on)

    def ask(self) -> list[OffRow]:
        return off_rows(self.bench, self.on, self.rows, self.off)

    def delta(self, prompt: int, state: int) -> float:
        """By hand: one prompt, one state, one pass each."""
        prefix = state_prefixes(self.bench, self.on[state], self.rows[state])["select"]
        ids = self.off[prompt].ids
        return float(kl(self.bench.runtime.next_logits([ids], prefix)[0], self.bench.base(ids)))

    def of_group(self, group: str) -> None:
        self.off = [replace(one, group=group) for one in self.off]


class TestStates:
    def test_an_unrelated_prompt_is_asked_on_every_state(self) -> None:
        world = World()

        for prompt, row in enumerate(world.ask()):
            deltas = [world.delta(prompt, state) for state in range(4)]
            arm = row.arms["select"]
            assert len(set(deltas)) > 2
            assert row.n_states == 4
            assert arm.stress == pytest.approx(max(deltas))
            assert arm.typical == pytest.approx(deltas[prompt % 4])
            assert arm.typical_state == world.on[prompt % 4].sample_id
            assert arm.mean == pytest.approx(sum(deltas) / 4)

    def test_a_prompt_with_a_group_is_asked_on_states_of_others(self) -> None:
        world = World()
        world.of_group("a")

        for row in world.ask():
            assert row.n_states == 2
            assert {row.arms["select"].stress_state, row.arms["select"].typical_state} <= {"on-0001", "on-0003"}

    def test_prompts_that_no_state_may_be_asked_on_are_an_error(self) -> None:
        world = World(**{"eval.off_state_limit": 1})
        world.of_group("a")

        with pytest.raises(OnTaskInvalid, match="of another group"):
            world.ask()

    def test_the_number_of_states_is_capped(self) -> None:
        assert {row.n_states for row in World(**{"eval.off_state_limit": 3}).ask()} == {3}

    def test_every_arm_that_is_compared_is_asked(self) -> None:
        compared = World(**{"reporting.compare_kv_sources": True}).ask()

        assert set(compared[0].arms) == {"select", "recent", "random", "full", "select_recompute"}
        assert set(World().ask()[0].arms) == {"select", "recent", "random", "full"}


class TestMemory:
    def test_prompts_are_held_as_many_as_there_is_memory_for_and_answered_the_same(self) -> None:
        vocab = World().bench.runtime.info.vocab
        for bounded, held in ((2 * 48 * vocab, 2), (1, 1)):
            world, asked = World(**{"eval.max_memory": f"{bounded}B"}), list[int]()
            ask = world.bench.runtime.next_logits
            spied: Any = world.bench.runtime
            spied.next_logits = lambda queries, prefix=None, ask=ask, asked=asked: (
                asked.append(len(queries)) or ask(queries, prefix)
            )

            assert world.ask() == World().ask()
            assert max(asked) == held
            assert world.settings.eval.off_held(vocab, 6) == held
        assert World().settings.eval.off_held(vocab, 6) == 6


class TestNumbers:
    def test_a_delta_that_is_no_number_is_the_worst(self) -> None:
        world = World()
        runtime: Any = world.bench.runtime
        runtime.poison = math.nan

        rows = world.ask()
        assert {row.arms["select"].stress for row in rows} == {None}
        assert math.isnan(Summary(world.settings, world.rows, rows, None).off_p99("select"))

    def test_one_that_is_no_number_leaves_the_others_no_percentile(self) -> None:
        assert math.isnan(nearest_rank([1.0, math.nan, 2.0]))
        assert nearest_rank([1.0, 2.0]) == 2.0

    def test_accuracy_is_told_where_prompts_have_answers(self) -> None:
        world = World()
        # The runtime goes on with the last token, unless what a prefix holds drowns it.
        world.off = [replace(one, answer_ids=(one.ids[-1],)) for one in world.off]

        rows = world.ask()
        summary = Summary(world.settings, world.rows, rows, None)
        assert {row.base_hit for row in rows} == {True}
        assert (summary.off_base_accuracy, summary.off_accuracy("select")) == (1.0, 1.0)
        assert {row.base_hit for row in World().ask()} == {None}

    def test_a_state_that_is_asked_twice_answers_the_same(self) -> None:
        world = World()

        assert world.ask() == world.ask()

    def test_the_gate_takes_the_reduction_that_was_asked_for(self) -> None:
        for reduction in ("stress", "typical"):
            world = World(**{"thresholds.off_delta_reduction": reduction})
            rows = world.ask()
            measured = Summary(world.settings, world.rows, rows, None).measured()

            assert measured.off_delta_p99 == max(getattr(row.arms["select"], reduction) for row in rows)

    def test_what_counts_is_recorded_and_shown_on_the_state_that_it_counts_by(self) -> None:
        for reduction in ("stress", "typical"):
            world = World(**{"thresholds.off_delta_reduction": reduction})
            rows = world.ask()
            summary = Summary(world.settings, world.rows, rows, None)
            found = Verdict("run", summary, {"model_id": "m"}, "").records()
            said = [one for one in found if one["metric"] == "phase2_delta_off_select"]

            arms = [row.arms["select"] for row in rows]
            episodes = {row.sample_id: row.episode_id for row in world.rows}
            assert [one["value"] for one in said] == [getattr(arm, reduction) for arm in arms]
            assert [one["episode_id"] for one in said] == [episodes[getattr(arm, f"{reduction}_state")] for arm in arms]
            [shown] = [row for row in rows if row.topk]
            assert getattr(shown.arms["select"], reduction) == max(one["value"] for one in said)

    def test_noise_that_is_no_number_leaves_no_threshold_to_pass(self) -> None:
        world = World()
        rows = world.ask()
        noisy = [world.rows[0].model_copy(update={"noise": [None]}), *world.rows[1:]]

        limits = Summary(world.settings, noisy, rows, None).thresholds()
        assert math.isnan(limits.eps_null + limits.eps_nonzero + limits.eps_teacher_cache)
