"""How much more probable a state makes the beginning of an answer; and the other numbers that logits give."""

from __future__ import annotations

import math

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.select_kv.metrics import answer_logprob_gain, is_hit, kl, p99, top_tokens

BASE, SELECT = (0.7, 0.1, 0.1, 0.1), (0.2, 0.5, 0.2, 0.1)


def logits_of(shares: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64).log() + 3.0


class TestAnswerLogprobGain:
    def test_it_is_the_log_ratio_of_the_candidates_summed_probabilities(self) -> None:
        gain = answer_logprob_gain(logits_of(SELECT), logits_of(BASE), (1, 2))

        assert gain == pytest.approx(math.log((0.5 + 0.2) / (0.1 + 0.1)))

    def test_equal_logits_gain_nothing(self) -> None:
        assert answer_logprob_gain(logits_of(BASE), logits_of(BASE), (1, 2)) == 0.0

    def test_an_answer_that_became_less_probable_has_a_loss(self) -> None:
        assert answer_logprob_gain(logits_of(SELECT), logits_of(BASE), (0,)) == pytest.approx(math.log(0.2 / 0.7))

    def test_a_candidate_that_is_given_twice_counts_once(self) -> None:
        once, twice = (answer_logprob_gain(logits_of(SELECT), logits_of(BASE), ids) for ids in ((1, 2), (2, 1, 1, 2)))

        assert once == twice

    def test_no_candidate_is_an_error_and_not_a_zero(self) -> None:
        with pytest.raises(ValueError, match="without candidate tokens"):
            answer_logprob_gain(logits_of(SELECT), logits_of(BASE), ())


class TestKL:
    def test_it_is_the_formula_over_the_whole_vocabulary(self) -> None:
        expected = sum(p * math.log(p / q) for p, q in zip(SELECT, BASE, strict=True))

        assert float(kl(logits_of(SELECT), logits_of(BASE))) == pytest.approx(expected)

    def test_it_has_a_direction(self) -> None:
        there, back = kl(logits_of(SELECT), logits_of(BASE)), kl(logits_of(BASE), logits_of(SELECT))

        assert float(there) != pytest.approx(float(back))

    def test_nearly_equal_logits_are_never_below_zero(self) -> None:
        torch.manual_seed(0)
        logits = torch.randn(64, 1000)
        moved = logits + 1e-6 * torch.randn(64, 1000)

        assert float(kl(moved, logits).min()) >= 0.0

    def test_a_token_that_both_rule_out_adds_nothing(self) -> None:
        p, q = torch.tensor([0.0, 1.0, -math.inf]), torch.tensor([1.0, 0.0, -math.inf])

        assert float(kl(p, q)) == pytest.approx(float(kl(p[:2], q[:2])))

    def test_a_token_that_one_side_alone_rules_out_makes_it_infinite(self) -> None:
        assert float(kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -math.inf]))) == math.inf

    def test_what_is_no_number_stays_none(self) -> None:
        assert math.isnan(float(kl(torch.tensor([math.nan, 0.0]), torch.tensor([0.0, 0.0]))))


class TestRanks:
    @pytest.mark.parametrize("n, expected", [(1, 1), (2, 2), (100, 99), (101, 100), (256, 254)])
    def test_the_99th_percentile_is_the_nearest_rank(self, n: int, expected: int) -> None:
        import numpy as np

        values = [float(value) for value in range(1, n + 1)]

        assert p99(values) == expected == np.percentile(values, 99, method="inverted_cdf")

    def test_a_hit_is_any_candidate_at_the_top(self) -> None:
        assert is_hit(logits_of(SELECT), (3, 1))
        assert not is_hit(logits_of(SELECT), (0, 2, 3))

    def test_the_likeliest_tokens_come_with_their_probabilities(self) -> None:
        assert top_tokens(logits_of(SELECT), 1) == [(1, pytest.approx(0.5))]
        assert len(top_tokens(logits_of(SELECT), 16)) == 4
