"""Merged reports: what one run would have said, and a refusal where two runs contradict each other."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from fvcore.gates import Status, Verdict
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.merge import Contradiction, merge
from pytest_fvparity.report.render import folders, read_report, write_all
from pytest_fvparity.report.report import Report
from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

EARLY, LATE = CHECK_KEYS[:3], CHECK_KEYS[3:]
IDENTITY = {"edit_layer": 9, "n_top_heads": 3, "token_class_idx": -1, "dtype": "fp32", "seed": 0}
CONDITIONS = {"device": "cpu", "engine": "exact", "attn_implementation": "sdpa", "threads": 1}
VERSIONS = {"torch": "2.5", "transformers": "5.0"}
PROFILE: dict[str, Any] = {"identity": IDENTITY, "conditions": {**CONDITIONS, "versions": VERSIONS}}


def _shard(keys: tuple[str, ...], at: str = "1", keep_going: bool = False, **changed: Any) -> Report:
    rows = {name: changed.pop(name) for name in CHECK_KEYS if name in changed}
    report = assemble(keys, {k: v for k, v in rows_of(**rows).items() if k in keys}, keep_going)
    return report.model_copy(update={"created_at": at, "profile": PROFILE, **changed})


def _merge(*reports: Report) -> Report:
    (merged,) = merge([(f"{n}.json", report) for n, report in enumerate(reports)])
    return merged


def _statuses(report: Report) -> dict[str, str]:
    return {check.key: check.status for check in report.checks}


def test_two_halves_are_one_whole() -> None:
    assert _shard(EARLY).overall_status == "PARTIAL"

    merged = _merge(_shard(LATE, "1"), _shard(EARLY, "2"))

    assert merged.overall_status == "PASS"
    assert merged.headline.startswith("PASS: all 6 check keys agree")
    assert list(_statuses(merged)) == list(CHECK_KEYS)
    assert merged.created_at == "2"
    assert [(shard.created_at, tuple(shard.keys)) for shard in merged.shards] == [("1", LATE), ("2", EARLY)]


def test_two_of_three_thirds_are_partial() -> None:
    merged = _merge(_shard(CHECK_KEYS[:2]), _shard(CHECK_KEYS[2:4], "2"))

    assert merged.overall_status == "PARTIAL"
    assert merged.headline.startswith("PARTIAL: 4 of 6 check keys compared")


def test_a_pass_behind_another_shards_failure_is_blocked() -> None:
    early = _shard(EARLY, slot_map=row_of("slot_map", Status.FAIL, failed()))
    late = _shard(LATE, "2", trials=[{"trial_id": 0}], heads={"heads_actual": [[0, 0]]})

    merged = _merge(early, late)

    assert list(_statuses(merged).values()) == ["PASS", "FAIL", *["BLOCKED"] * 4]
    assert {check.blocked_by for check in merged.checks[2:]} == {"slot_map"}
    assert merged.overall_status == "FAIL"
    assert merged.headline == early.headline
    assert merged.first_divergence == early.first_divergence
    assert merged.repro_command == early.repro_command
    assert (merged.trials, merged.heads) == ([], {})


def test_with_keep_going_it_stands() -> None:
    early = _shard(EARLY, keep_going=True, slot_map=row_of("slot_map", Status.FAIL, failed()))

    merged = _merge(early, _shard(LATE, "2", keep_going=True))

    assert list(_statuses(merged).values()) == ["PASS", "FAIL", *["PASS"] * 4]
    assert merged.overall_status == "FAIL"


@pytest.mark.parametrize("silent", [Status.BLOCKED, Status.NOT_RUN])
def test_what_says_nothing_gives_way_to_a_verdict(silent: Status) -> None:
    merged = _merge(_shard(CHECK_KEYS, fv_vector=row_of("fv_vector", silent)), _shard(LATE, "2"))

    assert merged.overall_status == "PASS"


def test_a_crash_stays_a_crash() -> None:
    crashed = assemble(EARLY, {}).model_copy(update={"dataset": "unknown", "created_at": "0"})

    merged = _merge(crashed, _shard(LATE, "2"))

    assert merged.dataset == "words"
    assert list(_statuses(merged).values()) == ["CRASHED", *["BLOCKED"] * 5]
    assert merged.overall_status == "FAIL"


@pytest.mark.parametrize("status", [Status.FAIL, Status.ERROR, Status.CRASHED, Status.NO_GOLDEN, Status.NOT_PROVIDED])
def test_two_verdicts_for_one_key_are_refused_by_name(status: Status) -> None:
    other = _shard(("slot_map",), "2", slot_map=row_of("slot_map", status))

    with pytest.raises(Contradiction, match=rf"fixed_trials_x: slot_map is PASS in 0.json and {status} in 1.json"):
        _merge(_shard(EARLY), other)


def test_passes_over_different_numbers_of_values_are_refused() -> None:
    other = _shard(("slot_map",), "2", slot_map=row_of("slot_map", verdict=Verdict(compared=2)))

    with pytest.raises(Contradiction, match=r"values compared at slot_map is 1 in 0.json and 2 in 1.json"):
        _merge(_shard(EARLY), other)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"profile": {**PROFILE, "identity": {**IDENTITY, "edit_layer": 8}}}, "profile edit_layer is 9"),
        ({"golden_path": "golden/other"}, "golden is golden/words"),
        ({"golden_path": "(live)"}, "golden is golden/words"),
        ({"golden_profile": {"identity": {}}}, "golden profile is"),
        ({"reference": {"commit": "b"}}, "reference is"),
        ({"mode": "keep-going"}, "mode is chained"),
        ({"n_compared_trials": 1}, "n_compared_trials is 3"),
        ({"tolerance_sources": ["mine.yaml"]}, "tolerances is the defaults"),
    ],
)
def test_another_experiment_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    known = {"golden_profile": {"identity": {"a": 1}}, "reference": {"commit": "a"}}

    with pytest.raises(Contradiction, match=f"fixed_trials_x: {said}.* in 0.json and .* in 1.json"):
        _merge(_shard(EARLY, **known), _shard(LATE, "2", **(known | changed)))


def test_another_candidate_is_refused() -> None:
    merged = _merge(_shard(EARLY, candidate="a.A"), _shard(LATE, "2", candidate="a.A"))
    assert (merged.overall_status, merged.candidate) == ("PASS", "a.A")
    with pytest.raises(Contradiction, match=r"candidate is a.A in 0.json and b.B in 1.json"):
        _merge(_shard(EARLY, candidate="a.A"), _shard(LATE, "2", candidate="b.B"))


def test_a_folder_of_artifacts_elsewhere_on_another_machine_is_no_other_candidate() -> None:
    merged = _merge(_shard(EARLY, candidate="/here/found"), _shard(LATE, "2", candidate="/there/found"))
    assert merged.overall_status == "PASS"


def test_all_contradictions_are_named_at_once() -> None:
    other = _shard(EARLY, "2", mode="keep-going", slot_map=row_of("slot_map", Status.FAIL, failed()))

    with pytest.raises(Contradiction) as refused:
        _merge(_shard(EARLY), other)

    # Behind its failure the other run's third key is blocked, and says nothing.
    assert [line.split(" is ")[0] for line in str(refused.value).splitlines()[1:]] == [
        "- fixed_trials_x: mode",
        "- fixed_trials_x: slot_map",
    ]


def test_other_machines_may_join_and_are_told_apart() -> None:
    gpu = {**PROFILE, "conditions": {"device": "cuda", "threads": 8}}

    merged = _merge(_shard(EARLY), _shard(LATE, "2", profile=gpu, conditions={"device": ["cpu", "cuda"]}))

    assert [shard.conditions["device"] for shard in merged.shards] == ["cpu", "cuda"]
    assert merged.conditions == {"device": ["cpu", "cuda"]}


def test_of_two_failures_of_one_key_the_larger_counts() -> None:
    def by(n: int, at: str) -> Report:
        verdict = Verdict(failed().findings, 10, n, {"max_abs_diff": float(n)})
        return _shard(("slot_map",), at, slot_map=row_of("slot_map", Status.FAIL, verdict))

    merged = _merge(by(5, "1"), by(9, "2"), by(7, "3"))

    assert [check.mismatch_count for check in merged.checks] == [9]


def test_order_and_repetition_change_nothing(tmp_path: Path) -> None:
    shards = [
        _shard(EARLY, "1"),
        _shard(("top_heads",), "2"),
        _shard(("fv_vector",), "2"),
        _shard(("injection_output",), "0"),
    ]
    expected = _merge(*shards)

    assert all(_merge(*order) == expected for order in permutations(shards))
    assert _merge(*shards, shards[0]) == expected
    assert _merge(expected) == expected


def test_of_trials_whose_dataset_is_known_no_folder_is_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A hundred reports would search a hundred folders each."""
    monkeypatch.setattr(Path, "glob", None)

    assert folders(assemble(CHECK_KEYS, rows_of()), tmp_path) == [tmp_path / "words" / "fixed_trials_x"]


def test_merging_in_two_steps_keeps_every_shard() -> None:
    parts = [_shard(EARLY), _shard(("top_heads",), "2"), _shard(("fv_vector", "injection_output"), "3")]

    merged = _merge(_merge(*parts[:2]), parts[2])

    assert merged.overall_status == "PASS"
    assert sorted(key for shard in merged.shards for key in shard.keys) == sorted(CHECK_KEYS)
    assert len(merged.shards) == 3


def test_other_trials_stand_beside_each_other(tmp_path: Path) -> None:
    other = _shard(CHECK_KEYS).model_copy(update={"fixed_trials_id": "fixed_trials_a"})

    merged = merge([("0.json", _shard(EARLY)), ("1.json", other), ("2.json", _shard(LATE, "2"))])

    assert [(report.fixed_trials_id, report.overall_status) for report in merged] == [
        ("fixed_trials_a", "PASS"),
        ("fixed_trials_x", "PASS"),
    ]
    write_all(merged, tmp_path)
    again = read_report(tmp_path / "words" / "fixed_trials_x" / "src_vs_fv_diff_report.json")
    assert again == merged[1]
    page = (tmp_path / "words" / "fixed_trials_x" / "src_vs_fv_diff_report.html").read_text()
    assert "Merged from 2 reports" in page
