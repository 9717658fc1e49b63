"""A failed check in words: where it differs, one count, numbers that are told apart, and no more lines than a screen has."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvcore.gates import Finding, Status, Verdict
from pytest_fvparity.parity import words
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report import story
from pytest_fvparity.report.render import MOST_TRIALS, REPORT, markdown, write_report
from pytest_fvparity.report.report import Report
from pytest_fvparity.report.screen import alike, lines
from tests.late import RUNNING
from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

if RUNNING:
    import torch

    from fvcore.compare import Tolerance
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.parity.where import LONGEST, MOST, located
    from pytest_fvparity.selftest.rig import rig_of
    from tests.pytest_fvparity.worlds import World, plant, reports

KEY = "mean_activations"
AXES = ("layer", "head", "slot", "dim")


def found(want: dict[str, Any], have: dict[str, Any], axes: tuple[str, ...] = AXES) -> dict[str, Any]:
    def names(leaf: str) -> tuple[str, ...]:
        return axes

    return located(want, have, lambda leaf: Tolerance(atol=0.1), names, {"slot": {2: "predictive_token"}})


def test_the_worst_place_the_counts_and_the_map_are_those_of_the_differences() -> None:
    want = torch.zeros(3, 2, 4, 5)
    have = want.clone()
    have[1, 0, 2], have[1, 1, 2, 3], have[0, 0, 0, 0] = 0.5, -7.0, 0.05  # the last is within its tolerance

    seen = found({KEY: want}, {KEY: have})

    (kind,) = seen["kinds"]
    assert (kind["leaf"], kind["count"], kind["compared"]) == (KEY, 6, 120)
    assert kind["example"].where == f"{KEY}[layer 1, head 1, slot 2, dim 3]"
    counts = {axis["axis"]: {one["index"]: one["count"] for one in axis["places"]} for axis in seen["axes"]}
    assert counts == {"layer": {1: 6}, "head": {0: 5, 1: 1}, "slot": {2: 6}}
    by_head, by_slot = seen["maps"]
    assert by_head["outside"] == [[0, 0], [5, 1], [0, 0]]
    assert by_head["largest"] == [[0.05, 0.0], [0.5, 7.0], [0.0, 0.0]]
    assert (by_slot["rows"], by_slot["columns"], by_slot["labels"][2]) == ("slot", "layer", "predictive_token")


def test_texts_and_lists_are_counted_by_trial_and_by_prompt() -> None:
    want = {f"{n}:{n}/{regime}/text": "a b" for n in range(3) for regime in ("clean", "corrupted")}

    seen = found(want, {**want, "1:1/clean/text": "a c"}, ())

    assert [(kind["leaf"], kind["count"], kind["compared"]) for kind in seen["kinds"]] == [("text", 1, 6)]
    assert [(axis["axis"], axis["n_wrong"], axis["places"][0]["index"]) for axis in seen["axes"]] == [
        ("trial", 1, "1:1"),
        ("prompt", 1, "clean"),
    ]


def test_what_is_told_of_places_has_a_bound() -> None:
    many = {f"leaf{n}": n for n in range(300)} | {KEY: torch.zeros(300, 200, 2, 1)}
    seen = found(many, {leaf: value + 1 for leaf, value in many.items()})

    assert (len(seen["kinds"]), seen["n_kinds"]) == (MOST, 301)
    assert all(len(axis["places"]) <= MOST for axis in seen["axes"])
    assert [(len(one["largest"]), len(one["largest"][0])) for one in seen["maps"]] == [(LONGEST, LONGEST), (2, LONGEST)]


def test_a_faulty_candidate_is_located_on_a_rig() -> None:
    """The count is the verdict's, and slots are named."""
    rig = rig_of("llama")

    def station(self: Any, prompts: Any, slot_map: Any) -> Any:
        means = rig.artifacts[KEY][KEY].clone()  # type: ignore[union-attr]
        means[0, 1, 3] *= 2
        return {KEY: means}

    (result,) = [one for one in rig.judge(rig.candidate(**{KEY: station})) if one.key == KEY]

    where = result.verdict.details["where"]
    assert sum(kind["count"] for kind in where["kinds"]) == result.verdict.mismatch_count
    assert {"layer": 0, "head": 1, "slot": 3}.items() <= where["kinds"][0]["example"]["coordinate"].items()
    assert where["kinds"][0]["example"]["coordinate"]["slot_label"]


@pytest.mark.parametrize(
    ("both", "said"),
    [
        ((1.0, 2.0), ("1", "2")),
        ((0.123456, 0.123457), ("0.123456", "0.123457")),
        ((1.0, 1.0 + 2**-52), ("1", "1.0000000000000002")),
        ((0.123456, 0.123456), ("0.1235", "0.1235")),
        ((0.123456, "nan"), ("0.1235", "nan")),
        ((None, 3), ("nothing", "3")),
    ],
)
def test_numbers_that_differ_never_read_the_same(both: tuple[Any, Any], said: tuple[str, str]) -> None:
    assert story.pair(*both) == said


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (None, ""),
        (0.016, "1.6 % of its tolerance"),
        (3.04, "3 times its tolerance"),
        (4263.9, "4,264 times its tolerance"),
    ],
)
def test_a_share_of_a_tolerance_is_said_in_words(used: float | None, said: str) -> None:
    assert story.times(used) == said


def green(outside: bool = False, n: int = 3) -> Report:
    """Log-probabilities that differ by rounding, and one that is outside its tolerance if so said."""
    row = {f"{name}_logprob_{side}": -3.25 for name in ("base", "with", "delta") for side in ("src", "fv")}
    row |= {"with_logprob_fv": -3.25 + 1e-7, "with_logprob_outside": outside}
    more = {f"{name}_logits_max_abs_diff": 1e-7 for name in ("base", "with")}
    trials = [{"trial_id": at, "trial_idx": at, "target_id": 5, **row, **more} for at in range(n)]
    verdict = Verdict(compared=1, details={"trials": trials})
    return assemble(CHECK_KEYS, rows_of(injection_output=row_of("injection_output", verdict=verdict)))


def page(report: Report, folder: Path) -> str:
    write_report(report, folder)
    return (folder / f"{REPORT}.html").read_text()


def test_on_a_green_page_nothing_is_red(tmp_path: Path) -> None:
    assert not re.findall(r'class="[^"]*\b(?:off|bad|FAIL)\b', page(green(), tmp_path))

    red = page(green(outside=True, n=1), tmp_path)
    # What is red does not read like what stands beside it.
    assert '<td class="n">-3.25</td><td class="n off">-3.2499999</td>' in red


def test_a_page_shows_a_bounded_number_of_trials_and_says_how_many_there_are(tmp_path: Path) -> None:
    many = green(n=1000)

    assert page(many, tmp_path).count('<tr><th scope="row">') < MOST_TRIALS + 20
    assert "Of 1000 trials those that differ most" in markdown(many, 10**6)


def loud() -> Report:
    """A failure that has something to say in every line."""
    where = {
        "kinds": [{"leaf": KEY, "count": 9, "compared": 10, "example": None}],
        "n_kinds": 1,
        "axes": [{"axis": "layer", "n": 4, "n_wrong": 1, "places": [{"index": 2, "label": "", "count": 9}]}],
        "maps": [],
    }
    said = {"where": where, "signature": "only layer 2 differs", "fault": "own"}
    row = row_of(KEY, Status.FAIL, replace(failed(), details=said))
    row["context"] |= {"candidate": "mine.Mine", "conditions": {f"c{n}": [1, 2] for n in range(50)}}
    row["context"] |= {"whereabouts": {KEY: {"file": "mine.py", "line": 31}}}
    return assemble(CHECK_KEYS, rows_of(**{KEY: row}))


def test_a_failure_takes_twelve_lines_of_a_terminal_at_most() -> None:
    shown = list(lines(loud(), "page.html"))

    assert len(shown) <= 11  # and the line of its name
    assert shown[0] == f"FAIL at {KEY}: 1 of 10 values is not what is expected"
    assert shown[2:4] == ["  where      layer 2", "  probably   only layer 2 differs"]


def told(*findings: Finding, **others: str) -> tuple[Verdict, list[str]]:
    """A failed key of its own fault, and its lines on a terminal; of further keys that fail the faults."""
    verdict = Verdict(findings, 10, len(findings), details={"fault": "own"})
    rows = {KEY: row_of(KEY, Status.FAIL, verdict)}
    for key, fault in others.items():
        rows[key] = row_of(key, Status.FAIL, replace(failed(), details={"fault": fault}))
    return verdict, list(lines(assemble(CHECK_KEYS, rows_of(**rows)), None))


def test_of_a_dtype_or_a_shape_both_sides_are_said_once() -> None:
    message = "shape differs: expected [2, 3], actual [3]"
    _, said = told(Finding("mean_activations", message, [2, 3], [3]))

    assert f"  worst      {KEY} {message}" in said
    assert not any("--fv-drill" in line for line in said)


def test_what_is_found_beside_the_values_says_nothing_of_inputs_and_is_not_drilled_into() -> None:
    verdict, said = told(Finding(KEY, "at mean_activations the candidate left a hook; put back"))

    assert "  fault      its own" in said
    assert not any("--fv-drill" in line for line in said)
    assert words.lines(verdict) == []
    differs = Finding(f"{KEY}[0]", "differs by 1 (allowed: 0.1)", 1.0, 2.0, abs_diff=1.0)
    assert any("--fv-drill" in line for line in told(differs)[1])
    assert len(words.lines(told(differs)[0])) == 1


def test_of_several_keys_that_fail_it_is_told_whose_fault_each_is() -> None:
    _, said = told(Finding(KEY, "at it"), top_heads="inherited", fv_vector="inherited")

    assert any(f"{KEY} FAIL (own); top_heads, fv_vector FAIL (inherited)" in line for line in said)


def test_a_drill_is_said_without_its_name_twice() -> None:
    warning = Finding(KEY, "drill into layer 0: no module differs", blocking=False)
    _, said = told(Finding(f"{KEY}[0]", "differs by 1", 1.0, 2.0, abs_diff=1.0), warning)

    assert "  drill      into layer 0: no module differs" in said


def test_a_failure_says_which_line_to_open(tmp_path: Path) -> None:
    assert "  open       mine.py:31 (mine.Mine)" in list(lines(loud(), None))
    shown = page(loud(), tmp_path)
    assert "<code>mine.<wbr>py:31</code>" in shown
    assert shown.index("mine.<wbr>py:31") < shown.index("<h2>Where</h2>") < shown.index("Conditions, settings")


def test_reports_that_fail_in_one_way_stand_together() -> None:
    groups = alike([green(), loud(), green(), loud()])

    assert [(len(group), group[0].overall_status) for group in groups] == [(2, "FAIL"), (2, "PASS")]


def test_a_failure_is_said_once_in_ci_too(
    pytester: pytest.Pytester, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    plant(pytester, "slot_map", 'leaves["dummy_labels"] = []')

    result = pytester.runpytest_inprocess("-m", "parity", "--junitxml=junit.xml", *world.options)

    (report,) = reports(pytester)
    text = result.stdout.str()
    sentence = report["headline"].partition(";")[0]
    assert text.count(sentence) == 1
    assert text.count("dummy_labels differs") == 1
    assert "dummy_labels" in (pytester.path / "junit.xml").read_text()
    shown = text[text.index("= parity of") :].splitlines()
    assert next(at for at, line in enumerate(shown) if "short test summary" in line) <= 12


def test_a_verdict_stands_where_the_places_are_not_found_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise KeyError("an axis")

    def off(self: Any, prompts: Any, slot_map: Any) -> Any:
        leaves = Pipeline.mean_activations(self, prompts, slot_map)
        return leaves | {KEY: leaves[KEY] + 1}

    monkeypatch.setattr("pytest_fvparity.parity.where.located", broken)
    rig = rig_of("llama")

    (result,) = [one for one in rig.judge(rig.candidate(mean_activations=off)) if one.key == KEY]

    assert result.status is Status.FAIL
    assert result.verdict.mismatch_count > 0
    notes = [one.message for one in result.verdict.findings if not one.blocking]
    assert "the places of the differences were not found (KeyError: 'an axis')" in notes
