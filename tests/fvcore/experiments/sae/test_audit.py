"""What an audit finds: everything that is wrong, all of it counted, and nothing in data that is right."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore.formats import write_json
from tests.fvcore.experiments.sae.worlds import CONDITIONS, Data, codes, records, result, right, trials


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return right(tmp_path)


def test_right_data_passes_with_nothing_to_say_and_every_number_counted(data: Data) -> None:
    found = data.audit()

    assert (found.validated, found.issues, found.audit_results.errors) == (True, [], [])
    assert found.checkpoints == {
        "results_total": 15,
        "unique_features": 10,
        "duplicates": 5,
        "conflicts": 0,
        "schema_variants": {"is_causal": 2},
        "nonfinite_cohen_d": 0,
    }
    assert (found.causal_by_layer, found.total_causal_features) == ({"1": 5, "2": 5}, 10)
    assert (found.total_trials, found.total_response_features, found.join_rate_percent) == (180, 10, 100.0)
    assert found.trials_per_cell == {"min": 3, "p05": 3, "median": 3, "max": 3}
    assert found.files["bytes"] == sum((data.root / name).stat().st_size for name in data.files)


Change = Callable[[dict[str, Any]], object]


def put(name: str, at: int, **more: Any) -> Change:
    """Other values in a record of a log, or in a result of a checkpoint; `...` takes the key away."""

    def change(files: dict[str, Any]) -> None:
        rows = files[name]["results"] if name.startswith("c") else files[name]
        rows[at] = {key: value for key, value in (rows[at] | more).items() if value is not ...}

    return change


def drop(prefix: str) -> Change:
    return lambda files: [files.pop(name) for name in list(files) if name.startswith(prefix)]


def none_causal(files: dict[str, Any]) -> None:
    for name in ("c1.json", "c2.json"):
        files[name]["results"] = [one | {"is_causal": False} for one in files[name]["results"]]


# code: severity, count, and a change of files that are right
CASES: dict[str, tuple[str, int, Change]] = {
    "NO_CHECKPOINTS": ("error", 1, drop("c")),
    "NO_RESPONSE_LOGS": ("error", 1, drop("l")),
    "UNREADABLE_FILE": ("error", 1, lambda files: files.update({"l3.json": '[{"feature": "L1-0", "cond'})),
    "BAD_TOPLEVEL": ("error", 2, lambda files: files.update({"l3.json": {"a": 1}, "c3.json": [1]})),
    "MISSING_FIELD": ("error", 1, put("c2.json", 3, cohen_d=...)),
    "BAD_TYPE": (
        "error",
        2,
        lambda files: (put("c2.json", 3, is_causal=1)(files), put("l2.json", 4, trial="4")(files)),
    ),
    "FEATURE_ID_MISMATCH": ("error", 1, put("c2.json", 3, feature_id=77)),
    "MISSING_FEATURE": ("error", 1, put("l2.json", -1, feature=...)),
    "MISSING_CONDITION": ("error", 1, put("l2.json", -1, condition=...)),
    "EMPTY_RESPONSE": ("warning", 1, put("l2.json", -1, response=" \n")),
    "NO_CAUSAL": ("error", 1, none_causal),
    "MISSING_CONDITIONS": ("warning", 1, lambda files: files["l2.json"].__delitem__(slice(-3, None))),
    "LOW_TRIALS": ("warning", 1, lambda files: files["l2.json"].pop()),
    "LOW_JOIN_RATE": ("warning", 1, drop("l2")),
    "DUP_TRIAL": ("warning", 1, lambda files: files["l1.json"].append(files["l1.json"][0])),
    "DUP_RESULT": ("warning", 1, lambda files: files["c2.json"]["results"].append(result(1, 0, cohen_d=-4.5))),
    "CONFLICTING_RESULT": ("warning", 1, put("c1.json", 0, cohen_d=-4.4)),
    "NONFINITE_D": ("warning", 1, put("c2.json", 1, cohen_d=float("nan"))),
    "UNKNOWN_CONDITION": ("warning", 1, lambda files: files["l1.json"].extend(trials("L1-0", "sober"))),
    "EXTRA_FILE": ("warning", 1, lambda files: files.update({"l9.txt": "notes"})),
    "ALIAS_USED": ("info", 1, lambda files: files["l1.json"].append(trials("L1-0", "safe_with_safe_patch", 4)[-1])),
}


@pytest.mark.parametrize("code", CASES)
def test_each_code_is_found_by_itself_and_decides_whether_the_data_passes(data: Data, code: str) -> None:
    severity, count, change = CASES[code]
    change(data.files)

    found = data.audit()

    assert codes(found)[code] == (severity, count)
    assert found.validated == (severity != "error")
    behind = {"NO_CHECKPOINTS": {"NO_CAUSAL"}, "NO_RESPONSE_LOGS": {"LOW_JOIN_RATE"}, "BAD_TYPE": {"LOW_TRIALS"}}
    behind |= {"MISSING_FEATURE": {"LOW_TRIALS"}, "MISSING_CONDITION": {"LOW_TRIALS"}}
    assert set(codes(found)) == {code} | behind.get(code, set())
    listed = found.audit_results.errors + found.audit_results.warnings
    assert severity == "info" or next(g.first[0].message for g in found.issues if g.code == code) in listed


@pytest.mark.parametrize(
    ("name", "about"), [("cfg.json", {"d_sae": 4}), ("config.json", {"trainer": {"dict_size": 4}})]
)
def test_features_that_an_autoencoder_does_not_have(data: Data, name: str, about: dict[str, Any]) -> None:
    """It is asked where it lies on this machine; of layer 2 nothing is there, so nothing is said."""
    write_json(data.root / "sae/L1" / name, about)
    where = {"sae.source": str(data.root / "sae"), "sae.pattern": "L{layer}"}
    beyond = [f"L1-{at}" for at in range(4, 10) if f"L1-{at}" in json.dumps(data.files)]

    found = data.audit(**where)

    assert codes(found) == {"FEATURE_ID_MISMATCH": ("error", len(beyond))}
    assert f"{beyond[0]}: its autoencoder has 4 features" in found.audit_results.errors
    assert data.audit(policy="v4", **where).validated


def test_layers_that_a_model_does_not_have(data: Data) -> None:
    write_json(data.root / "model/config.json", {"num_hidden_layers": 2})
    found = data.audit(**{"model.name": str(data.root / "model")})
    assert {row.feature[:3] for group in found.issues for row in group.first} == {"L2-"}
    assert all("has 2 layers" in row.message for group in found.issues for row in group.first)
    assert data.audit(**{"model.name": "tiny-llama"}).validated


def test_every_code_has_a_case() -> None:
    from typing import get_args

    from fvcore.experiments.sae.schemas import Code

    assert set(CASES) == set(get_args(Code))


@pytest.mark.parametrize(("n", "low"), [(20, 0), (19, 6)])
def test_exactly_twenty_trials_are_enough(data: Data, n: int, low: int) -> None:
    data.files["l1.json"] = records([f"L{1 + at % 2}-{at}" for at in range(5)], 20)
    data.files["l2.json"] = records([f"L{1 + at % 2}-{at}" for at in range(5, 9)], 20) + records(["L2-9"], n)

    found = data.audit(**{"audit.min_trials": 20})

    assert found.conditions["low_trial_cells"] == low
    if low:
        assert "L2-9 risky_amplification has only 19 trials (expected ~30)" in found.audit_results.warnings


@pytest.mark.parametrize(("n", "joined", "percent", "low"), [(10, 9, 90.0, False), (1000, 899, 89.9, True)])
def test_exactly_ninety_percent_are_enough(data: Data, n: int, joined: int, percent: float, low: bool) -> None:
    data.files = {"c1.json": {"results": [result(1, at) for at in range(n)]}}
    data.files["l1.json"] = records([f"L1-{at}" for at in range(joined)], 1)

    found = data.audit(**{"audit.min_trials": 1})

    assert found.join_rate_percent == pytest.approx(percent)
    assert ("LOW_JOIN_RATE" in codes(found)) == low
    assert found.missing_causal_features["count"] == n - joined
    assert found.missing_causal_features["first"] == [f"L1-{at}" for at in range(joined, n)][:10]


def test_the_first_ten_are_listed_and_all_are_counted_whatever_order_they_come_in(data: Data) -> None:
    names = [f"L{layer}-{number}" for layer in (12, 2) for number in (100, 20, 3)][:5]
    data.files["l3.json"] = [one for name in names for c in CONDITIONS[:5] for one in trials(name, c, 1)]

    first = data.audit()
    data.files["l3.json"].reverse()
    again = data.audit()

    (low,) = (group for group in first.issues if group.code == "LOW_TRIALS")
    assert (low.count, low.listed, len(low.first)) == (25, 10, 10)
    assert [row.feature for row in low.first] == ["L2-20"] * 5 + ["L2-100"] * 5
    assert [row.condition for row in low.first[:5]] == sorted(CONDITIONS[:5])
    assert first.issues == again.issues


def test_aliases_count_as_the_expected_condition_and_the_plan_knows_none(data: Data) -> None:
    told = json.dumps(data.files["l1.json"]).replace("safe_amplification", "safe_with_safe_patch")
    data.files["l1.json"] = told

    found, plan = data.audit(), data.audit("v4")

    assert found.conditions["aliases_seen"] == {"safe_with_safe_patch": 15}
    assert found.conditions["totals"] == dict.fromkeys(sorted(CONDITIONS), 30)
    assert codes(found) == {"ALIAS_USED": ("info", 1)}
    assert plan.conditions["features_missing_any"] == 5
    assert "L1-0 missing conditions: ['safe_amplification']" in plan.audit_results.warnings


def test_the_newest_checkpoint_counts_whatever_its_name(data: Data) -> None:
    data.files["c0.json"] = {"timestamp": "3", "results": [result(1, 0, cohen_d=-4.5, is_causal=False)]}

    found = data.audit()

    assert found.total_causal_features == 9
    assert codes(found) == {"CONFLICTING_RESULT": ("warning", 1)}
    (issue,) = found.issues
    assert "what c0.json says, the newest, counts" in issue.first[0].message
    assert data.audit("v4").total_causal_features == 15  # every entry of every file


def test_the_other_layout_of_a_result_is_read(data: Data) -> None:
    def told(**more: object) -> dict[str, Any]:
        return {"causality": more}

    rows = [
        told(is_causal_safe=True),
        told(is_causal_risky=False, interpretation="no_effect"),
        told(interpretation="up"),
    ]
    data.files = {"l1.json": records(["L1-0", "L1-2"])}
    data.files["c1.json"] = {"results": [result(1, at, is_causal=...) | row for at, row in enumerate(rows)]}
    for row in data.files["c1.json"]["results"]:
        del row["is_causal"]

    found = data.audit()

    assert (found.total_causal_features, found.validated) == (2, True)
    assert found.checkpoints["schema_variants"] == {"causality": 1}


def test_damage_is_named_by_line_and_what_stands_before_it_is_counted(data: Data) -> None:
    whole = json.dumps(data.files["l2.json"], indent=2)
    data.files["l2.json"] = whole[: len(whole) // 2]
    data.files["l3.json"] = b'[{"feature": "L1-0\xff"}]'

    found = data.audit()

    assert (found.files["response_logs_failed"], found.total_trials) == (2, 90 + 45)
    line = data.files["l2.json"].count("\n") + 1
    messages = [row.message for group in found.issues if group.code == "UNREADABLE_FILE" for row in group.first]
    assert f"l2.json: not valid JSON (line {line}, " in messages[0]
    assert "l3.json: not UTF-8 text (byte 18)" in messages[1]


def test_a_bad_record_at_the_end_of_the_last_file_is_found(data: Data) -> None:
    for n in range(3, 40):
        data.files[f"l{n:02d}.json"] = trials("L1-0", CONDITIONS[0])[:1]
    data.files["l99.json"] = [*trials("L1-0", CONDITIONS[0])[:1], {"condition": CONDITIONS[0]}]

    found = data.audit()

    (bad,) = (group for group in found.issues if group.code == "MISSING_FEATURE")
    assert (bad.count, bad.first[0].file) == (1, "l99.json")
    assert "record 2" in bad.first[0].message


def test_trials_that_stand_twice_count_once_and_another_text_is_told_apart(data: Data) -> None:
    again = [one | {"response": "other"} for one in data.files["l1.json"][:2]] + data.files["l1.json"][2:3]
    data.files["l0.json"] = again
    found, plan = data.audit(), data.audit("v4")

    assert found.conditions["duplicate_trials"] == 3
    assert found.conditions["duplicate_trials_of_other_text"] == 2
    assert (found.trials_per_cell["max"], plan.trials_per_cell["max"]) == (3, 6)
    assert "DUP_TRIAL" not in codes(plan)


def test_rates_and_overrides_decide_what_an_issue_weighs(data: Data) -> None:
    for at in range(9):
        put("l2.json", at, response="")(data.files)
    put("l2.json", 10, condition=...)(data.files)

    assert codes(data.audit())["EMPTY_RESPONSE"] == ("warning", 9)  # of 180: exactly 5 %
    put("l2.json", 9, response="")(data.files)
    assert codes(data.audit())["EMPTY_RESPONSE"] == ("error", 10)
    lenient = {"audit.max_empty_rate": 0.1, "audit.max_error_rate": 0.1, "audit.severity": '{"LOW_TRIALS": "error"}'}
    found = codes(data.audit(**lenient))
    assert {code: one[0] for code, one in found.items()} == {
        "EMPTY_RESPONSE": "warning",
        "MISSING_CONDITION": "warning",
        "LOW_TRIALS": "error",
    }


def by_plan(root: Path) -> dict[str, Any]:
    """The plan's audit in short, to its first error."""
    results = [one for path in sorted(root.glob("c*")) for one in json.loads(path.read_text()).get("results", [])]
    causal = [one["feature"] for one in results if one["is_causal"]]
    logged: dict[str, dict[str, int]] = {}
    warnings, n = set(), 0
    for path in sorted(root.glob("l*")):
        for one in json.loads(path.read_text()):
            n += 1
            if not one.get("response"):
                return {"errors": [f"Response missing text payload: {one['feature']}"], "n": n}
            counts = logged.setdefault(one["feature"], {})
            counts[one["condition"]] = counts.get(one["condition"], 0) + 1
    for feature, counts in logged.items():
        if missing := [condition for condition in CONDITIONS if condition not in counts]:
            warnings.add(f"{feature} missing conditions: {missing}")
        warnings |= {f"{feature} {c} has only {k} trials (expected ~30)" for c, k in counts.items() if k < 20}
    rate = 100 * len(set(causal) & logged.keys()) / len(set(causal))
    if rate < 90:
        warnings.add(f"Low join rate: {rate:.1f}% (expected >90%)")
    return {"errors": [], "warnings": warnings, "n": n, "causal": len(causal), "rate": rate}


def test_policy_v4_says_what_the_plans_own_text_says(data: Data) -> None:
    data.files["l1.json"] = records(["L1-0", "L2-1"], 20)[:-25] + trials("L1-2", "sober", 4)
    data.files["l2.json"] = records(["L2-3"], 19)

    found = data.audit("v4", **{"audit.min_trials": 20, "audit.max_listed": 99})
    plan = by_plan(data.root)
    assert set(found.audit_results.warnings) == plan["warnings"]
    assert (found.total_trials, found.total_causal_features) == (plan["n"], plan["causal"])
    assert (found.join_rate_percent, found.validated) == (plan["rate"], True)

    data.files["l1.json"][30]["response"] = data.files["l1.json"][40]["response"] = ""
    stopped, plan = data.audit("v4"), by_plan(data.root)
    assert (len(stopped.audit_results.errors), stopped.total_trials) == (1, plan["n"])
    assert stopped.audit_results.errors[0].startswith(plan["errors"][0])
    assert set(stopped.model_dump()) == set(found.model_dump())


def told(found: Any) -> Any:
    """All but what a machine decides."""
    return found.model_copy(update={"timing_s": 0.0, "peak_rss_mb": 0.0, "inputs_fingerprint": "", "files": {}})


def damaged(files: dict[str, Any]) -> None:
    files["l1.json"][0]["parsed"]["bet"] = float("nan")
    files["l1.json"][3]["response"] = "half \ud83d"  # the first of its cell
    files["l1.json"][4]["response"] = "half \ude00"
    files["l1.json"][2]["response"] = "whole \N{SLOT MACHINE}"
    files["l1.json"] += [
        5,
        None,
        {"feature": [1], "condition": "x"},
        {"feature": "L1-0", "condition": 3, "response": 4},
    ]


def test_nan_and_lone_surrogates_are_read_and_counted(data: Data) -> None:
    damaged(data.files)
    put("c2.json", 0, safe_effect_size=float("inf"))(data.files)

    found = data.audit()

    assert found.oddities == {"nan": 2, "lone_surrogates": 2}
    assert found.total_trials == 184
    assert codes(found) == {"MISSING_FEATURE": ("error", 2), "BAD_TYPE": ("error", 2)}


def test_all_readers_and_any_number_of_processes_say_the_same(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("msgspec")
    from fvcore.experiments.sae import readers

    monkeypatch.setattr(readers, "_decode", lambda lines: None)
    plain = [data.audit()]
    damaged(data.files)
    plain.append(data.audit())
    monkeypatch.undo()

    quick = [right(data.root).audit(), data.audit()]
    assert [told(one) for one in quick] == [told(one) for one in plain]


@pytest.mark.slow
def test_two_processes_say_the_same_as_one(data: Data) -> None:
    damaged(data.files)

    assert told(data.audit(**{"audit.workers": 2})) == told(data.audit())


@pytest.mark.parametrize("kind", ["jsonl", "json.gz", "jsonl.gz", "parquet"])
def test_a_log_says_the_same_in_every_format(data: Data, kind: str) -> None:
    before = told(data.audit())
    rows = data.files.pop("l2.json")
    (data.root / "l2.json").unlink()
    if kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), data.root / "l2.parquet")
    else:
        text = "\n".join(map(json.dumps, rows)) if "jsonl" in kind else json.dumps(rows)
        data.files[f"l2.{kind}"] = gzip.compress(text.encode()) if kind.endswith("gz") else text

    assert told(data.audit()) == before


@pytest.mark.slow
def test_memory_does_not_grow_with_records(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from fvcore.experiments.config import resolve
from fvcore.experiments.sae.audit import audit
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.generate import CHECKPOINTS, LOGS, Size, write
root, n = Path(sys.argv[1]), int(sys.argv[2])
write(root, Size((1, 4), 10, trials=n, n_logs=40))
paths = {"paths.checkpoints": str(root / CHECKPOINTS), "paths.response_logs": str(root / LOGS)}
found = audit(resolve(PathwaysConfig, paths))
assert found.validated and found.total_trials == 240 * n, found.issues
print(found.peak_rss_mb)
"""
    peaks = [
        float(subprocess.check_output([sys.executable, "-c", script, str(tmp_path / str(n)), str(n)], text=True))
        for n in (21, 833)
    ]

    assert peaks[1] < 100  # 200,000 records; all of them held would be 300
    assert peaks[1] < peaks[0] + 30
