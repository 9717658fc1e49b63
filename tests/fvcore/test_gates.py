"""Ordered stages: the earliest failure blocks the rest, and whatever a stage does becomes a result."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fvcore.gates import (
    Finding,
    Gate,
    NotProvided,
    Refused,
    Stage,
    StageError,
    StageResult,
    Status,
    Suite,
    Verdict,
    blocked_behind,
    merge,
    run_stage,
    run_suite,
    settled,
)

Check = Callable[[list[str]], Verdict]
RIGHT = Verdict(compared=1)
WRONG = Verdict((Finding("here", "differs"),), compared=1, mismatch_count=1)


def logging_stage(key: str, verdict: Verdict | Exception = RIGHT) -> Stage[list[str]]:
    """A stage that writes its key into the subject, then says or raises what it was given."""

    def check(subject: list[str]) -> Verdict:
        subject.append(key)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    return Stage(key, f"stage {key}", check)


def ran(*stages: Stage[list[str]], keep_going: bool = False) -> tuple[list[str], list[tuple[str, Status, str | None]]]:
    """Which stages were run, and what became of each."""
    log: list[str] = []
    results = list(run_suite(Suite("suite", stages, lambda: log, keep_going)))
    assert [r.suite for r in results] == ["suite"] * len(stages)
    return log, [(r.key, r.status, r.blocked_by) for r in results]


def test_stages_run_in_order_until_the_end() -> None:
    log, results = ran(*(logging_stage(key) for key in "abc"))
    assert log == ["a", "b", "c"]
    assert results == [(key, Status.PASS, None) for key in "abc"]


def test_after_a_failure_nothing_runs_and_the_earliest_is_named() -> None:
    log, results = ran(logging_stage("a"), logging_stage("b", WRONG), logging_stage("c", WRONG), logging_stage("d"))
    assert log == ["a", "b"]
    assert results == [
        ("a", Status.PASS, None),
        ("b", Status.FAIL, None),
        ("c", Status.BLOCKED, "b"),
        ("d", Status.BLOCKED, "b"),
    ]


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (ValueError("boom"), Status.ERROR),
        (StageError("no way"), Status.ERROR),
        (Refused("another experiment"), Status.REFUSED),
    ],
)
def test_after_an_exception_nothing_runs(raised: Exception, status: Status) -> None:
    log, results = ran(logging_stage("a", raised), logging_stage("b"))
    assert log == ["a"]
    assert results == [("a", status, None), ("b", Status.BLOCKED, "a")]


def test_what_is_not_provided_is_not_green_and_stops_nothing() -> None:
    log, results = ran(logging_stage("a", NotProvided("not offered")), logging_stage("b"))
    assert log == ["a", "b"]
    assert results == [("a", Status.NOT_PROVIDED, None), ("b", Status.PASS, None)]


def test_keeping_going_runs_everything() -> None:
    stages = [logging_stage("a", WRONG), logging_stage("b", ValueError()), logging_stage("c")]
    log, results = ran(*stages, keep_going=True)
    assert log == ["a", "b", "c"]
    assert results == [("a", Status.FAIL, None), ("b", Status.ERROR, None), ("c", Status.PASS, None)]


def test_a_result_is_there_before_the_next_stage_runs() -> None:
    log: list[str] = []
    results = run_suite(Suite("suite", (logging_stage("a"), logging_stage("b")), lambda: log))
    assert next(results).key == "a"
    assert log == ["a"]


def test_the_subject_is_built_once_and_not_before_it_is_needed() -> None:
    built: list[list[str]] = []

    def subject() -> list[str]:
        built.append([])
        return built[-1]

    results = run_suite(Suite("suite", (logging_stage("a"), logging_stage("b")), subject))
    assert built == []
    list(results)
    assert built == [["a", "b"]]


def test_a_subject_that_cannot_be_built_is_the_first_stages_error() -> None:
    def subject() -> list[str]:
        raise Refused("not the same weights")

    results = list(run_suite(Suite("suite", (logging_stage("a"), logging_stage("b")), subject)))
    assert [(r.status, r.message) for r in results] == [(Status.REFUSED, "not the same weights"), (Status.BLOCKED, "")]


def test_an_unexpected_exception_keeps_its_traceback_and_an_expected_one_its_message() -> None:
    unexpected = run_stage("suite", logging_stage("a", ZeroDivisionError("div")), list)
    assert unexpected.message.startswith("ZeroDivisionError: div\nTraceback")
    assert "in check" in unexpected.message
    assert unexpected.message.endswith("ZeroDivisionError: div")
    assert run_stage("suite", logging_stage("a", Refused("why")), list).message == "why"


def test_an_interrupt_is_not_swallowed() -> None:
    def check(subject: list[str]) -> Verdict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage("suite", Stage("a", "a", check), list)


def test_a_gate_is_closed_behind_the_earliest_stage_in_whatever_order_they_failed() -> None:
    gate = Gate("abcd")
    for key, status in (
        ("c", Status.ERROR),
        ("d", Status.BLOCKED),
        ("b", Status.CRASHED),
        ("a", Status.NOT_RUN),
        ("c", Status.FAIL),
    ):
        gate.judged(key, status)
    assert [gate.blocks(key) for key in "abcd"] == [None, None, "b", "b"]
    assert Gate("ab").blocks("b") is None


def test_a_gate_stays_open_and_a_later_pass_is_believed_behind_these_alone() -> None:
    gates = {status: Gate("ab") for status in Status}
    for status, gate in gates.items():
        gate.judged("a", status)
    lacking = {Status.PASS, Status.NOT_PROVIDED, Status.NOT_HELD}
    assert {status for status, gate in gates.items() if not gate.blocks("b")} == {*lacking, "BLOCKED", "NOT_RUN"}
    assert {status for status in Status if not blocked_behind({"a": status, "b": "PASS"})} == lacking


def test_with_keep_going_a_gate_stands_open() -> None:
    gate = Gate("ab", keep_going=True)
    gate.judged("a", Status.FAIL)
    assert (gate.earliest, gate.blocks("b")) == ("a", None)


def test_what_passed_or_died_behind_a_failure_is_not_believed_and_what_failed_there_stands() -> None:
    statuses = {"a": "PASS", "b": "FAIL", "c": "PASS", "d": "FAIL", "e": "CRASHED", "f": "NOT_PROVIDED"}
    assert blocked_behind(statuses) == {"c": "b", "e": "b"}


@pytest.mark.parametrize("silent", ["NOT_RUN", "BLOCKED"])
def test_what_passed_behind_a_stage_that_was_not_judged_is_not_believed(silent: str) -> None:
    """One machine had no device, another had: nothing is known of the stage between."""
    assert blocked_behind({"a": "PASS", "b": silent, "c": "PASS", "d": "FAIL"}) == {"c": "b"}
    told = {key: StageResult("suite", key, Status(status)) for key, status in (("a", silent), ("b", "PASS"))}
    assert [result.status for result in settled("suite", "ab", told).values()] == [silent, Status.BLOCKED]


def test_two_stages_of_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match="suite 'suite' has two stages of one key"):
        Suite("suite", (logging_stage("a"), logging_stage("a")), list)


# ---------------------------------------------------------------- verdicts


def test_a_verdict_fails_by_its_count_or_by_a_blocking_finding() -> None:
    note = Finding("here", "a note", blocking=False)
    assert Verdict((note,)).passed
    assert not Verdict((), mismatch_count=1).passed
    assert not Verdict((Finding("here", "wrong"),)).passed


def test_the_first_mismatch_is_the_first_that_blocks() -> None:
    note, first, second = Finding("a", "note", blocking=False), Finding("b", "wrong"), Finding("c", "wrong")
    assert Verdict((note, first, second)).first_mismatch is first
    assert Verdict((note,)).first_mismatch is None


def test_merging_adds_counts_and_keeps_every_finding_in_order() -> None:
    one = Verdict((Finding("a", ""),), 2, 1, {"x": 1.0, "y": 1.0}, {"k": "one"})
    other = Verdict((Finding("b", ""),), 3, 4, {"y": 2.0}, {"k": "other"})
    both = merge(one, other)
    assert [finding.where for finding in both.findings] == ["a", "b"]
    assert (both.compared, both.mismatch_count) == (5, 5)
    assert (both.measurements, both.details) == ({"x": 1.0, "y": 2.0}, {"k": "other"})
    assert merge() == Verdict()


# ---------------------------------------------------------------- results as data


@pytest.mark.parametrize("status", list(Status))
def test_a_result_survives_json(status: Status) -> None:
    finding = Finding("cie[layer 1]", "differs", 1.5, "nan", {"layer": 1, "trial_id": 7}, 0.25, None, blocking=False)
    verdict = Verdict((finding, Finding("b", "wrong", [1], None)), 9, 2, {"max_abs_diff": 0.25}, {"why": ["x"]})
    result = StageResult("suite", "top_heads", status, verdict, 1.25, "slot_map", "told")
    assert StageResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_only_pass_is_green() -> None:
    assert [status for status in Status if status == "PASS"] == [Status.PASS]
    assert len(Status) == 11
