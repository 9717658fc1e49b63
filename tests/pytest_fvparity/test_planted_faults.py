"""For each of the six keys a planted fault turns exactly that key red and blocks all later ones."""

from __future__ import annotations

import pytest

from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING

if RUNNING:
    from tests.pytest_fvparity.worlds import World, plant, reports, statuses


# Check key -> a fault in the candidate's artifact, and what the report must say of it.
FAULTS = {
    "prompt_boundary": ('leaves["1:1/clean/input_ids"] = leaves["1:1/clean/input_ids"][:-1]', "1:1/clean/input_ids"),
    "slot_map": ('leaves["2:2/corrupted/idx_avg"] = []', "2:2/corrupted/idx_avg"),
    "mean_activations": (
        'leaves["mean_activations"] = leaves["mean_activations"].clone(); leaves["mean_activations"][1, 2, 5, 3] += 0.01',
        "mean_activations[layer 1, head 2, slot 5",
    ),
    "top_heads": ('leaves["cie"] = leaves["cie"] * 1.01', "cie[trial 0, layer 0, head 0]"),
    "fv_vector": ('leaves["function_vector"] = leaves["function_vector"] / 3', "function_vector[dim 0]"),
    "injection_output": ('leaves["0:0/with_logits"] = leaves["0:0/base_logits"]', "with_logits"),
}


@pytest.mark.parametrize("key", CHECK_KEYS)
def test_a_fault_turns_its_own_key_red_and_blocks_the_later_ones(
    pytester: pytest.Pytester, world: World, key: str
) -> None:
    fault, where = FAULTS[key]
    plant(pytester, key, fault)

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    at = CHECK_KEYS.index(key)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    expected = ["PASS"] * at + ["FAIL"] + ["BLOCKED"] * (5 - at)
    assert statuses(report) == dict(zip(CHECK_KEYS, expected, strict=True))
    assert report["checks"][at]["fault"] == "own"
    divergence = report["first_divergence"]
    assert divergence["check_key"] == key
    assert divergence["leaf"].startswith(where)
    assert divergence["artifact"].rpartition("/")[2].partition(".")[0] == key
    blocked = [f"*{5 - at} blocked*"] if at < 5 else []
    passed = [f"*{at} passed*"] if at else []
    result.stdout.fnmatch_lines(["*1 failed*"])
    for line in blocked + passed:
        result.stdout.fnmatch_lines([line])


def test_nothing_planted_is_green_with_difference_zero(pytester: pytest.Pytester, world: World) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    assert result.ret == pytest.ExitCode.OK
    (report,) = reports(pytester)
    assert set(statuses(report).values()) == {"PASS"}
    assert [check["max_abs_diff"] for check in report["checks"]] == [None, None, 0, 0, 0, 0]
    assert report["first_divergence"] is None


def test_the_reproduce_command_runs_the_failing_stage_alone(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "fv_vector", FAULTS["fv_vector"][0])
    pytester.runpytest_inprocess("-m", "parity", *world.options)
    (report,) = reports(pytester)
    program, *words = __import__("shlex").split(report["repro_command"])

    result = pytester.runpytest_inprocess(*words)

    assert program == "pytest"
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*parity::fv_vector*"])


def test_keep_going_runs_later_keys_and_says_whose_fault_each_is(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "mean_activations", 'leaves["mean_activations"] = leaves["mean_activations"] + 0.5')

    result = pytester.runpytest_inprocess("-m", "parity", "--fv-keep-going", *world.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    faults = {check["key"]: (check["status"], check["fault"]) for check in report["checks"]}
    assert faults["mean_activations"] == ("FAIL", "own")
    assert faults["top_heads"] == ("FAIL", "inherited")
    assert faults["fv_vector"] == ("FAIL", "inherited")
    assert faults["injection_output"] == ("FAIL", "inherited")
    assert report["first_divergence"]["check_key"] == "mean_activations"


def test_keep_going_tells_a_second_own_fault_from_an_inherited_one(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        from fvcore.pipeline import Pipeline

        class TwoFaults(Pipeline):
            def slot_map(self, prompts):
                return {**super().slot_map(prompts), "0:0/clean/query_predictive_slot": 0}

            def fv_vector(self, means, heads):
                leaves = super().fv_vector(means, heads)
                return {**leaves, "function_vector": -leaves["function_vector"]}

        def pytest_fvparity_candidate(lm, trials, settings):
            return TwoFaults(lm, trials, settings)
        """
    )

    pytester.runpytest_inprocess("-m", "parity", "--fv-keep-going", *world.options)

    (report,) = reports(pytester)
    found = {check["key"]: (check["status"], check["fault"]) for check in report["checks"]}
    assert found["slot_map"] == ("FAIL", "own")
    assert found["mean_activations"] == ("PASS", None)
    assert found["fv_vector"] == ("FAIL", "own")
    assert found["injection_output"] == ("FAIL", "inherited")
    patterns = {check["key"]: check["signature"] for check in report["checks"]}
    assert "sign is reversed" in patterns["fv_vector"]
    assert patterns["injection_output"] is None  # a pattern would name a mistake that it has not made


def test_a_candidate_that_raises_is_an_error_at_its_key_and_blocks(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "top_heads", 'raise RuntimeError("no heads today")')

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    (report,) = reports(pytester)
    assert statuses(report)["top_heads"] == "ERROR"
    assert statuses(report)["injection_output"] == "BLOCKED"
    assert "no heads today" in report["headline"]
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_candidate_without_a_stage_is_named(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        from fvcore.pipeline import Pipeline

        class PromptsOnly:
            def __init__(self, *how):
                self.prompt_boundary = Pipeline(*how).prompt_boundary

        def pytest_fvparity_candidate(lm, trials, settings):
            return PromptsOnly(lm, trials, settings)
        """
    )

    pytester.runpytest_inprocess("-m", "parity", *world.options)

    (report,) = reports(pytester)
    assert statuses(report)["prompt_boundary"] == "PASS"
    assert statuses(report)["slot_map"] == "NOT_PROVIDED"


def test_a_tie_is_a_warning_and_later_keys_take_the_goldens_heads(pytester: pytest.Pytester, world: World) -> None:
    pytester.makeconftest(
        """
        import torch
        from fvcore.heads import top_heads
        from fvcore.pipeline import Pipeline

        class Tied(Pipeline):
            # Two heads as good as each other up to rounding, in the other order.
            def top_heads(self, *inputs):
                leaves = dict(super().top_heads(*inputs))
                first, second, *others = leaves["heads"]
                aie = leaves["aie"].clone()
                aie[tuple(first)], aie[tuple(second)] = leaves["aie"][tuple(second)], leaves["aie"][tuple(first)]
                return {**leaves, "aie": aie, "heads": [second, first, *others]}

        def pytest_fvparity_candidate(lm, trials, settings):
            return Tied(lm, trials, settings)

        def pytest_fvparity_tolerances(dtype, device):
            return [{"key": "top_heads", "leaf": "aie", "atol": 10.0}]
        """
    )

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    assert result.ret == pytest.ExitCode.OK
    (report,) = reports(pytester)
    heads = report["checks"][3]
    assert heads["status"] == "PASS"
    assert heads["warnings"][0]["message"].startswith("tie:")
    result.stdout.fnmatch_lines(["*top_heads*PASS*tie*"])


def test_heads_in_another_order_are_a_fault_when_their_effects_differ(pytester: pytest.Pytester, world: World) -> None:
    plant(pytester, "top_heads", 'leaves["heads"] = leaves["heads"][::-1]')

    pytester.runpytest_inprocess("-m", "parity", *world.options)

    (report,) = reports(pytester)
    assert statuses(report)["top_heads"] == "FAIL"
    assert report["first_divergence"]["leaf"] == "heads[0]"
