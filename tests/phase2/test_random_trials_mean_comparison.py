"""Chosen tokens must answer no worse than as many tokens by chance, on the mean over trials of each trial's accuracy."""

from __future__ import annotations

import pytest

from fvcore.experiments.select_kv.gates import Judged
from tests.late import RUNNING
from tests.phase2.fake import FakeRuntime
from tests.phase2.measured import measured

if RUNNING:
    from fvcore.experiments.select_kv.bench import Bench
    from fvcore.experiments.select_kv.compute import on_rows
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.data import OnSample, on_samples
    from fvcore.experiments.select_kv.selection import select
    from fvcore.experiments.select_kv.summary import Summary

TRIALS = 5


def settings_of(**changes: object) -> Phase2:
    values = {"data.synthetic.num_pairs": 6, "eval.on_samples": 12, "select.span_len": 2, "select.span_budget": 3}
    return Phase2().changed({**values, "injection.positioning_mode": "absolute", **changes})


def samples_of(settings: Phase2) -> list[OnSample]:
    return on_samples(settings, FakeRuntime().tokenizer)


class TestGate:
    @pytest.mark.parametrize(
        "acc_select, passes", [(0.41, False), (0.42, True), (0.43, True)], ids=["below", "equal", "above"]
    )
    def test_the_mean_over_trials_decides(self, acc_select: float, passes: bool) -> None:
        trials = (0.40, 0.44, 0.42, 0.41, 0.43)

        judged = Judged.of(measured(acc_select=acc_select, random_accs=trials))

        assert judged.passed is passes
        assert judged.failure_reason == ("ok" if passes else "select_below_random_mean")

    def test_neither_the_best_nor_the_worst_trial_decides(self) -> None:
        assert measured(random_accs=(0.0, 0.0, 0.0, 0.0, 1.0)).acc_random_mean == pytest.approx(0.2)
        assert Judged.of(measured(acc_select=0.3, random_accs=(0.0, 0.0, 0.0, 0.0, 1.0))).passed

    def test_equality_passes_whatever_the_rounding(self) -> None:
        trials = (1 / 3, 2 / 3, 1 / 3, 2 / 3, 1 / 2)

        assert Judged.of(measured(acc_select=sum(trials) / 5, acc_base=0.0, random_accs=trials)).passed


class TestTrials:
    def spans(self, settings: Phase2, sample: OnSample, trial: int) -> tuple[tuple[int, int], ...]:
        return select(settings, sample.demo, trial=trial, index=sample.index, mode="random_span").spans

    def test_seed_trial_and_sample_fix_a_trial(self) -> None:
        settings, other = settings_of(), settings_of(seed=8)
        samples = samples_of(settings)
        drawn = {(t, s.index): self.spans(settings, s, t) for t in range(TRIALS) for s in samples}

        # In another order, and one alone.
        again = {(t, s.index): self.spans(settings, s, t) for s in reversed(samples) for t in reversed(range(TRIALS))}
        assert again == drawn
        assert {key: self.spans(other, samples[key[1]], key[0]) for key in drawn} != drawn

    def test_trials_and_samples_differ(self) -> None:
        settings = settings_of()
        samples = samples_of(settings)

        for sample in samples[:3]:
            assert len({self.spans(settings, sample, trial) for trial in range(TRIALS)}) > 1
        assert len({self.spans(settings, sample, 0) for sample in samples}) > 1

    def test_all_trials_keep_as_many_tokens_as_the_selection(self) -> None:
        for changes in ({}, {"prefix_len": 5}, {"select.span_budget": 40}):
            settings = settings_of(**changes)
            rows = on_rows(Bench.of(FakeRuntime(), settings), samples_of(settings)[:4])

            for row in rows:
                assert len(row.random) == TRIALS
                kept = {row.arms["select"].kept, *(arm.kept for arm in row.random)}
                if not row.selection.fewer_spans:
                    assert len(kept) == 1
                assert max(kept) <= settings.prefix_len

    def test_spans_that_lie_close_have_trials_of_as_many(self) -> None:
        settings = settings_of(**{"select.span_len": 3, "select.span_budget": 6, "select.mode": "delimiter_span"})
        for sample in samples_of(settings):
            n = len(select(settings, sample.demo).spans)
            drawn = [self.spans(settings, sample, trial) for trial in range(TRIALS)]
            assert {len(spans) for spans in drawn} == {n} == {6}

    def test_a_selection_of_fewer_spans_than_the_budget_is_compared_with_as_few(self) -> None:
        settings = settings_of(**{"select.mode": "delimiter_span", "select.span_len": 1, "select.span_budget": 9})
        rows = on_rows(Bench.of(FakeRuntime(), settings), samples_of(settings)[:4])

        for row in rows:
            assert row.selection.fewer_spans
            assert {len(one.spans) for one in row.selection.random} == {len(row.selection.spans)} == {6}

    def test_the_accuracy_of_a_trial_is_over_samples_and_the_gate_takes_the_mean_over_trials(self) -> None:
        settings = settings_of()
        rows = on_rows(Bench.of(FakeRuntime(), settings), samples_of(settings))
        summary = Summary(settings, rows, [], None)

        by_hand = [sum(row.random[trial].hit for row in rows) / len(rows) for trial in range(TRIALS)]
        assert list(summary.random_accs) == by_hand
        assert [one.hit for row in rows for one in row.selection.random] == [a.hit for row in rows for a in row.random]
        assert len(set(by_hand)) > 1
