"""Comparing artifacts: nothing coerced, everything counted, each difference located."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import compare as comparison
    from fvcore.compare import EXACT, MAX_FINDINGS, Tolerance, changes, compare, unchanged


NAN, INF = math.nan, math.inf


ENDED = "nothing: the list ends before it"


def messages(expected: Mapping[str, Any], actual: Mapping[str, Any], **options: Any) -> list[str]:
    return [f"{f.where}: {f.message}" for f in compare(expected, actual, **options).findings]


# ---------------------------------------------------------------- names, type, dtype, shape, values


def test_equal_artifacts_pass_and_are_counted() -> None:
    artifact = {"a": torch.arange(6.0), "b": 3, "c": [1, [2, "x"]], "d": None, "e": 0.5, "f": True}
    verdict = compare(artifact, artifact)
    assert verdict.passed
    assert (verdict.compared, verdict.mismatch_count, verdict.findings) == (6 + 1 + 3 + 1 + 1 + 1, 0, ())
    assert verdict.measurements == {"max_abs_diff": 0.0, "max_rel_diff": 0.0}


def test_a_missing_leaf_and_a_new_leaf_are_both_disagreements() -> None:
    assert messages({"a": 1, "b": 2}, {"b": 2, "c": 3}) == ["a: missing in the candidate", "c: not in the golden"]


def test_disagreements_come_in_the_order_of_the_golden_then_new_leaves() -> None:
    verdict = compare({"z": 1, "a": torch.zeros(1), "m": "x"}, {"new": 1, "m": "y", "a": torch.ones(1), "z": 2})
    assert [finding.where for finding in verdict.findings] == ["z", "a[axis0 0]", "m[0]", "new"]
    assert verdict.first_mismatch is verdict.findings[0]


@pytest.mark.parametrize(
    ("expected", "actual", "names"),
    [
        (1, 1.0, ("int", "float")),
        (1, True, ("int", "bool")),
        ("1", 1, ("str", "int")),
        (None, 0, ("NoneType", "int")),
        ([1, 2], (1, 2), ("list", "tuple")),
        (lambda: torch.tensor(1.0), 1.0, ("Tensor", "float")),
        ([1.0], lambda: torch.tensor([1.0]), ("list", "Tensor")),
    ],
)
def test_another_type_is_a_disagreement_even_where_python_sees_equality(
    expected: Any, actual: Any, names: tuple[str, str]
) -> None:
    expected, actual = (value() if callable(value) else value for value in (expected, actual))
    expected, actual = (value() if callable(value) else value for value in (expected, actual))
    expected, actual = (value() if callable(value) else value for value in (expected, actual))
    assert messages({"a": expected}, {"a": actual}) == [f"a: type differs: expected {names[0]}, actual {names[1]}"]


def test_the_type_is_named_before_the_dtype_and_the_dtype_before_the_shape() -> None:
    assert messages({"a": torch.zeros(2)}, {"a": torch.zeros(3, dtype=torch.float64)}) == [
        "a: dtype differs: expected torch.float32, actual torch.float64"
    ]
    assert messages({"a": torch.zeros(2, 3)}, {"a": torch.ones(3, 2)}) == [
        "a: shape differs: expected [2, 3], actual [3, 2]"
    ]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int64", "bool"])
def test_a_dtype_is_never_coerced(dtype: str) -> None:
    verdict = compare({"a": torch.ones(2)}, {"a": torch.ones(2, dtype=getattr(torch, dtype))}, Tolerance(atol=100.0))
    assert not verdict.passed


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (2, 2), (), (1,)])
def test_a_shape_is_never_broadcast(shape: tuple[int, ...]) -> None:
    verdict = compare({"a": torch.ones(4)}, {"a": torch.ones(shape)}, Tolerance(atol=100.0))
    assert (verdict.mismatch_count, verdict.compared, verdict.findings[0].expected) == (4, 4, [4])


def test_empty_tensors_of_one_shape_are_equal() -> None:
    assert compare({"a": torch.zeros(0, 3)}, {"a": torch.zeros(0, 3)}, Tolerance(of_max=0.1, of_norm=0.1)).passed
    assert not compare({"a": torch.zeros(0, 3)}, {"a": torch.zeros(0, 2)}).passed


# ---------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize(
    ("expected", "actual", "equal"),
    [
        (NAN, NAN, True),
        (NAN, 1.0, False),
        (1.0, NAN, False),
        (NAN, INF, False),
        (INF, INF, True),
        (-INF, -INF, True),
        (INF, -INF, False),
        (INF, 1.0, False),
        (1.0, INF, False),
        (0.0, -0.0, True),
    ],
)
@pytest.mark.parametrize(
    "allowed",
    [{}, {"atol": 1.0, "rtol": 0.1}, {"of_max": 0.1}, {"of_norm": 0.1}],
    ids=["exact", "absolute", "of_max", "of_norm"],
)
def test_nan_equals_nan_alone_and_infinity_itself_alone(
    expected: float, actual: float, equal: bool, allowed: dict[str, float]
) -> None:
    tolerance = Tolerance(**allowed)
    assert compare({"a": expected}, {"a": actual}, tolerance).passed is equal
    tensors = [{"a": torch.tensor([0.5, value])} for value in (expected, actual)]
    verdict = compare(*tensors, tolerance)
    assert (verdict.passed, verdict.mismatch_count) == (equal, 0 if equal else 1)


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
@pytest.mark.parametrize("allowed", [{"of_max": 0.1}, {"of_norm": 0.1}, {"atol": 0.1, "rtol": 0.1}])
def test_one_odd_value_does_not_excuse_its_neighbours(odd: float, allowed: dict[str, float]) -> None:
    expected, actual = torch.tensor([odd, 1.0, 2.0]), torch.tensor([odd, 1.0, 3.0])
    verdict = compare({"a": expected}, {"a": actual}, Tolerance(**allowed))
    assert [finding.coordinate for finding in verdict.findings] == [{"axis0": 2}]


def test_one_odd_value_does_not_condemn_its_neighbours() -> None:
    for tolerance in (Tolerance(of_max=0.1), Tolerance(of_norm=0.1)):
        for odd in (NAN, INF):
            expected, actual = torch.tensor([odd, 1.0, 2.0]), torch.tensor([odd, 1.0, 2.1])
            assert compare({"a": expected}, {"a": actual}, tolerance).passed


def test_the_largest_difference_is_nan_when_any_is() -> None:
    verdict = compare({"b": 1.0, "a": torch.tensor([1.0, 2.0])}, {"b": 1.5, "a": torch.tensor([NAN, 2.5])})
    assert math.isnan(verdict.measurements["max_abs_diff"])
    assert verdict.mismatch_count == 3


def test_the_largest_difference_is_over_all_leaves_and_passes_or_not() -> None:
    expected, actual = {"a": torch.tensor([1.0, 2.0]), "b": 1.0}, {"a": torch.tensor([1.25, 2.0]), "b": 0.5}
    for tolerance in (EXACT, Tolerance(atol=1.0)):
        assert compare(expected, actual, tolerance).measurements == {
            "max_abs_diff": 0.5,
            "max_rel_diff": 0.5,
        }


def test_findings_can_be_written_as_json() -> None:
    expected = {"a": torch.tensor([1.0, NAN, INF, 2.0]), "b": torch.zeros(2), "c": NAN, "d": [1]}
    actual = {"a": torch.tensor([NAN, 1.0, -INF, INF]), "b": 3, "c": 1.0, "d": torch.zeros(1)}
    verdict = compare(expected, actual)
    assert verdict.mismatch_count == 8
    text = json.dumps([asdict(finding) for finding in verdict.findings], allow_nan=False)
    assert '"tensor float32 [2]"' in text
    assert '"nan"' in text


# ---------------------------------------------------------------- tolerances


def passes(expected: Any, actual: Any, **tolerance: float) -> bool:
    one, other = (torch.tensor(side, dtype=torch.float64) for side in (expected, actual))
    return compare({"a": one}, {"a": other}, Tolerance(**tolerance)).passed


def test_an_absolute_bound_is_inclusive() -> None:
    assert passes([1.0], [1.5], atol=0.5)
    assert not passes([1.0], [1.5000001], atol=0.5)


def test_a_relative_bound_is_relative_to_the_expected_value_and_adds() -> None:
    assert passes([100.0], [110.0], rtol=0.1)
    assert not passes([100.0], [111.0], rtol=0.1)
    assert passes([100.0], [111.0], rtol=0.1, atol=1.0)
    assert not passes([90.0], [100.0], rtol=0.1)
    assert not passes([0.0], [1e-30], rtol=0.1)


def test_a_bound_of_the_maximum_is_the_same_for_the_whole_leaf() -> None:
    assert passes([[0.0, -10.0], [0.0, 0.0]], [[0.9, -10.0], [0.0, 0.9]], of_max=0.1)
    assert not passes([[0.0, -10.0], [0.0, 0.0]], [[1.1, -10.0], [0.0, 0.0]], of_max=0.1)


def test_a_bound_of_the_norm_is_that_of_the_last_axis() -> None:
    expected = [[3.0, 4.0], [0.3, 0.4]]
    assert passes(expected, [[3.4, 4.0], [0.3, 0.44]], of_norm=0.1)
    assert not passes(expected, [[3.6, 4.0], [0.3, 0.4]], of_norm=0.1)
    assert not passes(expected, [[3.0, 4.0], [0.3, 0.46]], of_norm=0.1)
    assert not passes(1.0, 1.05, of_norm=0.1)  # a number has no axis


def test_the_larger_of_two_bounds_counts() -> None:
    assert passes([1.0], [1.4], atol=0.5, of_max=0.1)
    assert passes([10.0], [10.9], atol=0.5, of_max=0.1)
    assert passes([10.0], [10.9], atol=0.5, of_norm=0.1)


def test_each_leaf_has_its_own_tolerance_and_the_message_says_the_rule() -> None:
    tolerances = {"a": Tolerance(atol=0.5, rule="measured"), "b": EXACT}
    found = messages({"a": 1.0, "b": 1.0}, {"a": 1.25, "b": 1.25}, tolerance=tolerances.__getitem__)
    assert found == ["b: differs by 0.25 (allowed: exact; exact; atol 0.25 would have passed)"]
    found = messages({"a": 1.0}, {"a": 2.0}, tolerance=tolerances["a"])
    assert found == ["a: differs by 1 (allowed: atol 0.5; measured; atol 1 would have passed)"]


def test_a_tolerance_does_not_apply_to_whole_numbers_text_or_lists() -> None:
    assert (
        len(messages({"a": 1, "b": "1", "c": [1.0]}, {"a": 2, "b": "2", "c": [2.0]}, tolerance=Tolerance(atol=9))) == 3
    )


def test_half_precision_is_compared_without_rounding_of_its_own() -> None:
    one = torch.tensor([1.0], dtype=torch.bfloat16)
    other = one + torch.finfo(torch.bfloat16).eps
    verdict = compare({"a": one}, {"a": other})
    assert verdict.measurements["max_abs_diff"] == 2**-7
    assert not compare({"a": one}, {"a": other}, Tolerance(atol=0.999 * 2**-7)).passed  # which bfloat16 rounds up


def test_whole_numbers_that_float64_cannot_tell_apart_are_told_apart() -> None:
    large = torch.tensor([2**53, 2**62, 1])
    assert compare({"a": large}, {"a": large.clone()}).passed
    verdict = compare({"a": large}, {"a": large + 1})
    assert [verdict.mismatch_count, verdict.measurements["max_abs_diff"]] == [3, 1.0]


# ---------------------------------------------------------------- counting and locating


def test_everything_is_counted_and_the_first_hundred_are_kept() -> None:
    verdict = compare({"a": torch.zeros(30, 10), "b": 1}, {"a": torch.ones(30, 10), "b": 2})
    assert (verdict.compared, verdict.mismatch_count, len(verdict.findings)) == (301, 301, MAX_FINDINGS)
    assert verdict.findings[0].coordinate == {"axis0": 0, "axis1": 0}
    assert verdict.findings[99].coordinate == {"axis0": 9, "axis1": 9}


def test_the_first_hundred_are_over_all_leaves() -> None:
    verdict = compare({f"{i:03}": i for i in range(250)}, {f"{i:03}": -1 for i in range(250)})
    assert (verdict.mismatch_count, len(verdict.findings)) == (250, 100)
    assert verdict.findings[-1].where == "099"


def test_no_more_findings_are_made_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand trials that all differ cost a thousand comparisons, and a hundred findings."""
    made, whole = list[Any](), comparison._element
    monkeypatch.setattr(comparison, "_element", lambda *given: made.append(given[:2]) or whole(*given))
    sides = ({f"{trial}:{trial}/with_logits": torch.full((30,), value) for trial in range(20)} for value in (0.0, 1.0))
    expected, actual = sides

    verdict = compare(expected, actual)

    assert (verdict.mismatch_count, len(verdict.findings), len(made)) == (600, MAX_FINDINGS, MAX_FINDINGS)
    assert sum(row["count"] for row in verdict.details["errors"]["with_logits"]) == 600


def test_a_coordinate_has_the_names_of_its_axes() -> None:
    expected = torch.zeros(2, 3)
    actual = expected.clone()
    actual[1, 2] = 0.5
    (finding,) = compare({"cie": expected}, {"cie": actual}, axes=lambda leaf: ("layer", "head")).findings
    assert finding.where == "cie[layer 1, head 2]"
    assert finding.coordinate == {"layer": 1, "head": 2}
    assert (finding.expected, finding.actual, finding.abs_diff, finding.rel_diff) == (0.0, 0.5, 0.5, None)


def test_a_leaf_of_a_trial_is_located_at_the_trial() -> None:
    leaf = "7:3/corrupted/logits"
    (finding,) = compare({leaf: torch.zeros(2)}, {leaf: torch.tensor([0.0, 2.0])}).findings
    assert finding.coordinate == {"axis0": 1, "trial_id": 7, "trial_idx": 3}
    (missing,) = compare({leaf: 1}, {}).findings
    assert missing.coordinate == {"trial_id": 7, "trial_idx": 3}


def test_a_relative_difference_is_relative_to_the_expected_value() -> None:
    (finding,) = compare({"a": -4.0}, {"a": -3.0}).findings
    assert (finding.abs_diff, finding.rel_diff) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("expected", "actual", "position", "pair"),
    [
        ([1, 2, 3], [1, 5, 6], 1, (2, 5)),
        ([1, 2, 3], [1, 2], 2, (3, ENDED)),
        ([1, 2], [1, 2, 3], 2, (ENDED, 3)),
        ([1, 2], [4, 2, 3], 0, (1, 4)),
        ([], [1], 0, (ENDED, 1)),
        ([[0, "Q"], [1, "A"]], [[0, "Q"], [1, "B"]], 1, ([1, "A"], [1, "B"])),
    ],
)
def test_lists_differ_at_their_first_differing_position(
    expected: list[Any], actual: list[Any], position: int, pair: tuple[Any, Any]
) -> None:
    verdict = compare({"1:1/ids": expected}, {"1:1/ids": actual})
    (finding,) = verdict.findings
    assert finding.where == f"1:1/ids[{position}]"
    assert finding.coordinate == {"position": position, "trial_id": 1, "trial_idx": 1}
    assert (finding.expected, finding.actual) == pair
    assert f"differs first at position {position}" in finding.message
    if len(expected) != len(actual):
        assert f"length {len(expected)} expected, {len(actual)} actual" in finding.message


def test_a_list_says_how_many_of_its_elements_differ() -> None:
    assert messages({"a": [1, 2, 3, 4]}, {"a": [1, 5, 3, 6]}) == [
        "a[1]: differs first at position 1; 2 difference(s) in all"
    ]


def test_values_of_another_type_in_a_list_differ_even_where_python_calls_them_equal() -> None:
    for actual in ([True, [2]], [1.0, [2]], [1, (2,)]):
        assert not compare({"a": [1, [2]]}, {"a": actual}).passed
    assert compare({"a": [1, [2]]}, {"a": [1, [2]]}).passed


def test_every_difference_in_a_list_counts() -> None:
    verdict = compare({"a": [1, 2, [3, 4]]}, {"a": [1, 0, [0, 4]]})
    assert (verdict.compared, verdict.mismatch_count) == (4, 2)


def test_the_largest_relative_difference_is_of_the_expected_value() -> None:
    verdict = compare({"a": torch.tensor([4.0, 0.5, 0.0])}, {"a": torch.tensor([5.0, 1.0, 0.1])})
    assert verdict.measurements == {"max_abs_diff": 1.0, "max_rel_diff": 1.0}


def test_a_list_that_is_shifted_by_one_is_wrong_at_every_position() -> None:
    verdict = compare({"a": list(range(50))}, {"a": [-1, *range(49)]})
    assert verdict.mismatch_count == 50
    assert [compare({"a": [1, 1, 1]}, {"a": 3 * [odd]}).mismatch_count for odd in (True, 1.0)] == [3, 3]


def test_a_leaf_that_only_looks_like_a_trials_is_a_difference_like_any_other() -> None:
    assert messages({}, {"trial:0/text": 1, "0:1:2/text": 2}) == [
        "trial:0/text: not in the golden",
        "0:1:2/text: not in the golden",
    ]


# ---------------------------------------------------------------- how far off, and where


def test_the_message_says_which_tolerance_would_have_passed_and_it_would() -> None:
    expected, actual = {"a": torch.tensor([10.0, -2.0])}, {"a": torch.tensor([10.5, -2.25])}
    (found, *_) = messages(expected, actual, tolerance=Tolerance(rtol=0.01, rule="mine"))
    assert found.endswith("(allowed: rtol 0.01; mine; atol 0.4 would have passed)")
    assert compare(expected, actual, Tolerance(rtol=0.01, atol=0.4000001)).passed
    assert not compare(expected, actual, Tolerance(rtol=0.01, atol=0.3999)).passed


def test_no_tolerance_passes_a_nan() -> None:
    (found,) = messages({"a": torch.tensor([1.0])}, {"a": torch.tensor([NAN])})
    assert "no tolerance would have passed" in found


def test_errors_are_counted_by_magnitude_and_size() -> None:
    expected = torch.tensor([5.0, 7.0, 0.02, 0.0, 1.0])
    actual = torch.tensor([5.5, 7.5, 0.02, 30.0, NAN])
    table = compare({"a": expected}, {"a": actual}).details["errors"]["a"]
    rows = {(row["magnitude"], row["error"]): row["count"] for row in table}
    assert rows == {(0, -1): 2, (-2, -999): 1, (-999, 1): 1, (0, 999): 1}
    assert "errors" not in compare({"a": expected}, {"a": expected.clone()}).details


def test_trials_share_a_table_of_errors_and_each_leaf_name_has_its_own() -> None:
    expected = {f"0:{trial}/{name}": torch.full((3,), 2.0) for trial in range(12) for name in ("base", "with")}
    actual = {leaf: value + (0.5 if leaf.endswith("/with") else 0.0) for leaf, value in expected.items()}
    errors = compare(expected, actual).details["errors"]
    assert errors == {"with": [{"magnitude": 0, "error": -1, "count": 36}]}


def test_how_much_of_the_tolerance_is_used_is_said_also_of_what_passes() -> None:
    assert compare({"a": 1.0}, {"a": 1.25}, Tolerance(atol=0.5)).details["largest"]["a"]["used"] == 0.5
    assert compare({"a": torch.ones(0)}, {"a": torch.ones(0)}).details["largest"]["a"]["used"] == 0.0


def test_what_has_no_numbers_to_subtract_uses_no_tolerance() -> None:
    found = compare({"a": torch.ones(2), "b": [1]}, {"a": torch.ones(3), "b": [2]})
    assert found.details == {}


# ---------------------------------------------------------------- texts


def test_a_text_says_where_it_parts_and_what_stands_there() -> None:
    prompt = "Q: " + 20 * "word " + "A:"
    (finding,) = compare({"0:0/clean/text": prompt}, {"0:0/clean/text": prompt[:-2] + " A:"}).findings

    assert finding.where == "0:0/clean/text[103]"
    assert finding.message == "differs first at character 103; length 105 expected, 106 actual"
    assert (finding.expected, finding.actual) == (f"...{prompt[73:103]}A:", f"...{prompt[73:103]} A:")
    assert finding.coordinate == {"position": 103, "trial_id": 0, "trial_idx": 0}


@pytest.mark.parametrize(("expected", "actual"), [("ab", "abc"), ("abc", "ab"), ("", "x")])
def test_a_text_that_goes_on_parts_where_the_other_ends(expected: str, actual: str) -> None:
    (finding,) = compare({"a": expected}, {"a": actual}).findings
    assert finding.where == f"a[{min(len(expected), len(actual))}]"


# ---------------------------------------------------------------- how much of a tolerance is used


def test_the_largest_difference_of_a_name_is_told_with_its_share_of_the_bound() -> None:
    expected = {"0:0/x": torch.tensor([1.0, 100.0]), "1:1/x": torch.tensor([1.0, 1.0]), "y": 0.0}
    actual = {"0:0/x": torch.tensor([1.0, 100.5]), "1:1/x": torch.tensor([1.25, 1.0]), "y": 0.0}

    largest = compare(expected, actual, Tolerance(rtol=0.5)).details["largest"]

    # The larger difference is the smaller share: half of 1 % of 100, and a quarter of 1.
    assert largest["x"] == {"max_abs_diff": 0.5, "used": 0.5}
    assert largest["y"] == {"max_abs_diff": 0.0, "used": 0.0}


def test_a_difference_where_none_is_allowed_uses_more_than_all() -> None:
    assert compare({"x": torch.zeros(2)}, {"x": torch.ones(2)}).details["largest"]["x"]["used"] == INF


def test_a_nan_is_no_share() -> None:
    used = compare({"x": torch.zeros(2)}, {"x": torch.tensor([NAN, 0.0])}, Tolerance(atol=1.0)).details["largest"]["x"]
    assert math.isnan(used["used"])


def test_a_single_number_needs_no_table() -> None:
    assert "errors" not in compare({"a": 1.0}, {"a": 2.0}).details


# ---------------------------------------------------------------- nested values


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": 1, "b": "x"}, {"a": 2, "b": "x"}),
        ({"a": 1, "b": True}, {"a": 1.0, "b": 1}),
        ({"mean.safetensors": "x", "c": None}, {"mean.safetensors": "y", "c": 0}),
        ({"a": {"b": 1}, "c": 1}, {"a": {"b": 1}, "c": 2}),
        ({1: "x"}, {1: "y"}),
    ],
)
def test_a_flat_mapping_differs_as_it_does_in_another(before: dict[Any, Any], after: dict[Any, Any]) -> None:
    inside = changes({"whole": before}, {"whole": after})

    assert changes(before, after)
    assert {f"whole.{path}": pair for path, pair in changes(before, after).items()} == inside


@pytest.mark.parametrize("leaf", ["tensor", "list", "text", "number"])
def test_one_leaf_that_is_another_or_gone_is_a_change(leaf: str) -> None:
    before: dict[str, Any] = {"tensor": torch.zeros(2), "list": [0, [1]], "text": "a", "number": 0.5}
    others = {"tensor": torch.tensor([0.0, 1.0]), "list": [0, [True]], "text": "b", "number": 1.5}
    assert unchanged(before, {**before, "tensor": torch.zeros(2)})
    assert not unchanged(before, {**before, leaf: others[leaf]})
    assert not unchanged(before, {name: value for name, value in before.items() if name != leaf})
    assert not unchanged(before, {**before, "more": 1})
