"""Every file of a run: that it is there, what it holds, and that files agree with one another."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fvcore.experiments.folder import Folder
from fvcore.experiments.relation import data, files
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.relation.data import draw
from fvcore.experiments.relation.gates import QIdStatus
from fvcore.experiments.steps import layout, sampled
from fvcore.experiments.workers import Local
from fvcore.formats import FormatError, digest, read_csv, read_json, read_pt
from tests.eyes import problems
from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.relation import report
    from fvcore.experiments.relation.run import run
    from fvcore.experiments.steps import zeroshot
    from fvcore.experiments.steps.plan import unique_queries
    from fvcore.model.model import LanguageModel
    from tests.fvcore.experiments.relation.worlds import SMALL, SMALL_PAIRS, small, tree, write_csv


PER_LAYER = ("eval_summary.json", "eval_trials.jsonl", "eval_meta.json", "step6.log")


def _expected_files(q_id: str, n: int) -> set[str]:
    artifacts = {
        "sampled_trials.json", "sampled_trials_zeroshot.json", "cie_scores.csv", "aie_scores.csv", "trial_metrics.jsonl",
        f"stepD_mean_acts/qid_{q_id}_clean_mean.pt", "stepD_mean_acts/global_clean_mean.pt", "mean_activations.pt",
        "mean_activations_meta.json", "top_heads.json", "fv_by_layer.pt", "fv_global_resid.pt",
        "fv_global_resid_meta.json", "stepE_eval.json", "step6/step6_all_layers_summary.json", "qid_status.json",
        "run_meta.json", "aie_intervals.csv", "step6/injection_intervals.csv", "random_heads.json",
        "fv_random_heads.pt", "step6/random_heads_trials.jsonl",
    }  # fmt: skip
    for layer in range(6):
        results = f"step6_results_tiny-llama_layer{layer}_n{n}.json"
        artifacts |= {f"step6/layer_{layer}/{name}" for name in (*PER_LAYER, results)}
    return {f"artifacts/{name}" for name in artifacts} | {"logs/stepD_aie.log"}


def test_the_tree_of_a_q_id_is_the_plans_and_what_stands_beside_it(ran: Path) -> None:
    for q_id, n in (("Q1", 3), ("Q10", 3), ("Q2", 3)):
        n_queries = len({t.query.input for t in sampled.read(ran / q_id / layout.SAMPLED).trials})
        assert set(tree(ran / q_id)) == _expected_files(q_id, min(n, n_queries))


def test_the_tree_of_a_skipped_q_id_is_its_status(ran: Path) -> None:
    assert set(tree(ran / "Q3")) == {files.STATUS}


def test_the_runs_own_files(ran: Path) -> None:
    own = {path.name for path in ran.iterdir()}
    assert own == {"Q1", "Q10", "Q2", "Q3", "_status", "overview.csv"}
    assert {path.name for path in (ran / "_status").iterdir()} == {
        "run_meta.json", "run_summary.json", "failure_report.json", "qwise_orchestrator.log",
    }  # fmt: skip


def test_trials_are_drawn_with_the_seed_restarted_for_every_q_id(ran: Path) -> None:
    relation = data.read(ran.parent / "small.csv")
    for q_id in ("Q1", "Q10", "Q2"):
        found = sampled.read(ran / q_id / layout.SAMPLED)
        expected = draw({q_id: relation.pairs[q_id]}, 4, 3, 0)
        assert [t.query_source_index for t in found.trials] == [d.query_source_index for d in expected]
        assert [t.demo_source_indices for t in found.trials] == [list(d.demo_source_indices or ()) for d in expected]
        assert found.meta.source == "relation_csv"


def test_step6_goes_over_the_snapshots_unique_queries_at_every_layer(ran: Path) -> None:
    folder = Folder(ran / "Q2")
    examples = zeroshot.read(folder / layout.ZERO_SHOT)
    assert [e.trial_idx for e in examples] == [t.trial_idx for t in sampled.read(folder / layout.SAMPLED).trials]
    chosen = unique_queries(examples, 3, 0)
    summary = read_json(folder / layout.ALL_LAYERS)
    assert (summary["q_id"], summary["expected_layers"], summary["missing_layers"]) == ("Q2", list(range(6)), [])
    for layer in range(6):
        (results,) = (folder / layout.layer_dir(layer)).glob("step6_results_*.json")
        value = read_json(results)
        assert (value["config"]["n_eval"], value["config"]["requested_n_eval"]) == (len(chosen), 3)
        assert [row["trial_idx"] for row in value["results"]] == [e.trial_idx for e in chosen]
        assert list(value["matrix"]) == ["Q2"]
        meta = read_json(folder / f"{layout.layer_dir(layer)}/eval_meta.json")
        assert (meta["fv_type"], meta["fv_source_qid"], meta["eval_scope"]) == ("qid", "Q2", "in_domain")


def test_means_of_the_relation_path_have_one_slot(ran: Path) -> None:
    assert read_pt(ran / "Q2" / layout.MEANS).shape == (6, 4, 32)


def test_a_status_names_every_file_with_its_digest(ran: Path) -> None:
    for q_id in ("Q1", "Q2"):
        one = QIdStatus.read(Folder(ran / q_id))
        assert one is not None
        assert set(one.files) == set(tree(ran / q_id)) - {files.STATUS, layout.RUN_META}
        assert one.damage(Folder(ran / q_id)) == []
        assert set(one.model_dump()) == {
            "q_id", "status", "created_at", "updated_at", "config", "q_row_count", "reason", "cause", "step",
            "expected_layers", "settings_digest", "settings", "files",
        }  # fmt: skip


def test_schemas_of_the_runs_files(ran: Path) -> None:
    summary = read_json(ran / files.RUN_SUMMARY)
    assert list(summary) == [
        "updated_at", "status", "relation_name", "n_selected_qids", "processed", "completed_q_ids", "skipped_q_ids",
        "failed_q_ids", "out_root",
    ]  # fmt: skip
    assert (summary["status"], summary["n_selected_qids"], summary["processed"]) == ("completed", 4, 4)
    assert summary["skipped_q_ids"] == ["Q3"]
    meta = read_json(ran / files.RUN_META)
    assert meta["settings_digest"] == digest(meta["settings"])
    assert meta["q_ids"] == {"Q1": 6, "Q10": 8, "Q2": 8, "Q3": 3}
    failures = read_json(ran / files.FAILURES)
    assert (failures["by_cause"], failures["failures"]) == ({}, [])
    log = (ran / files.LOG).read_text().splitlines()
    assert [line.split()[1] for line in log[1:-1]] == ["Q1:", "Q10:", "Q2:", "Q3:"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z ", line) for line in log)


def test_the_overview_has_the_numbers_of_the_files(ran: Path) -> None:
    columns, rows = read_csv(ran / files.OVERVIEW)

    assert columns == list(report.COLUMNS)
    assert [row["q_id"] for row in rows] == ["Q1", "Q10", "Q2", "Q3"]
    skipped = rows[-1]
    assert (skipped["status"], skipped["reason"], skipped["aie"]) == ("skipped", "insufficient rows (3 < 4)", "")
    for row in rows[:-1]:
        folder = Folder(ran / row["q_id"])
        head, summary = read_json(folder / layout.TOP_HEADS)["heads"][0], read_json(folder / layout.ALL_LAYERS)
        assert row["best_head"] == f"{head['layer']}.{head['head']}"
        assert float(row["aie"]) == head["rank_score"]
        assert float(row["aie_low"]) < float(row["aie"]) < float(row["aie_high"])
        assert int(row["best_layer"]) == summary["best_layer"]
        assert float(row["delta"]) == pytest.approx(summary["best_score"])
        evaluated = read_json(folder / f"{layout.layer_dir(summary['best_layer'])}/eval_summary.json")
        assert float(row["acc_with"]) == pytest.approx(evaluated["acc_with"])
        assert float(row["difference"]) == pytest.approx(float(row["delta"]) - float(row["random"]))


def test_the_plans_literal_choices(llama: LanguageModel, tmp_path: Path) -> None:
    changed = {"with_replacement": True, "zeroshot_trailing_space": True, "n_eval": 9}
    settings = RelationSettings.model_validate(dict(SMALL) | changed)

    run(small(tmp_path), tmp_path / "out", settings, Local(llama), ["Q2"])

    folder = Folder(tmp_path / "out" / "Q2")
    trials = read_json(folder / layout.ZERO_SHOT)["trials"]
    assert all(trial["corrupted_prompt_str"] == f"Q: {trial['query']['input']}\nA: " for trial in trials)
    (row,) = report.rows(tmp_path / "out")
    assert (row["n_eval"], row["requested_n_eval"]) == (9, 9)
    assert (folder / "artifacts/step6/layer_0/step6_results_tiny-llama_layer0_n9.json").is_file()
    curve = report.curve(folder, "top", "delta_logprob")
    assert curve[0]["n_queries"] < curve[0]["n_eval"] == 9  # a query that is drawn again is no new witness


# ---------------------------------------------------------------- the report


class _Html(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.images += [value or "" for name, value in attrs if name == "src"]


@pytest.fixture(scope="module")
def drawn(llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with pictures over words that a page must not take for tags."""
    folder = tmp_path_factory.mktemp("drawn")
    pairs = {"Q1": SMALL_PAIRS["Q1"], "Q<b>2": SMALL_PAIRS["Q2"], "Q3": SMALL_PAIRS["Q3"]}
    relation = data.read(write_csv(folder / "<i>odd.csv", pairs))
    settings = RelationSettings.model_validate(dict(SMALL) | {"pictures": True})
    return run(relation, folder / "out", settings, Local(llama)).root


def test_the_report_is_whole_in_itself_and_takes_no_word_for_a_tag(drawn: Path) -> None:
    text = (drawn / files.REPORT).read_text()
    page = _Html(text)

    assert len(page.images) == 2 + 3 * 2  # bars and overlap; two curves and a heat map each
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert "http" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "Q&lt;b&gt;2" in text
    assert "insufficient rows (3 &lt; 4)" in text
    assert page.tags.count("article") == 2
    assert problems(text) == []


def test_all_maps_of_a_run_have_one_scale(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fvcore.experiments.steps import curves

    scales = []
    monkeypatch.setattr(
        curves, "effects", lambda grid, outer, *rest: scales.append(outer) or curves.png(lambda f: None, (1, 1))
    )
    report.write(drawn)

    assert len(scales) == 2
    assert len(set(scales)) == 1


def test_a_run_of_the_steps_has_a_page_with_its_finding(drawn: Path, tmp_path: Path) -> None:
    from fvcore.experiments.antonym import report as antonym

    shutil.copytree(drawn / "Q1", tmp_path / "run")
    written = antonym.write(tmp_path / "run")
    assert written is not None
    text = written.read_text()

    assert re.search(r"<h1>The vector of \d+ heads answers \d+% of \d+ questions behind layer \d, against", text)
    assert problems(text) == []
    (tmp_path / "run" / layout.ALL_LAYERS).unlink()
    assert antonym.write(tmp_path / "run") is None


def test_the_headline_is_what_was_found() -> None:
    row = {"status": "completed", "metric": "delta_p", "best_layer": 2, "delta": 0.5, "difference": 0.4}
    found, unsure = row | {"q_id": "A", "difference_low": 0.1}, row | {"q_id": "B", "difference_low": -0.1}
    skipped = {"q_id": "C", "status": "skipped"}

    assert report.headline([found, unsure]) == "1 of 2 relations has a vector: A +0.5 behind layer 2 (delta p)"
    assert report.headline([found] * 6) == (
        "6 of 6 relations have a vector: " + ", ".join(["A +0.5 behind layer 2"] * 4) + ", 2 more (delta p)"
    )
    assert report.headline([unsure, skipped]) == (
        "None of 1 relations have a vector that does more than random heads; 1 not completed"
    )
    assert report.headline([skipped]) == "None of 1 relations could be completed"


def test_pictures_lie_under_the_plans_names(drawn: Path) -> None:
    assert (drawn / "Q1" / "artifacts" / "aie_heatmap_Q1.png").is_file()
    assert (drawn / "Q1" / "artifacts" / "aie_top_heads_by_layer_mean_delta_p.png").is_file()


def test_a_report_shows_what_failed_and_why(ran: Path, tmp_path: Path) -> None:
    one = QIdStatus.read(Folder(ran / "Q1"))
    assert one is not None
    one.write(Folder(tmp_path / "Q1"), "failed", reason="no <number>", cause="numeric", step="stepd")

    text = report.write(tmp_path).read_text()

    assert re.search(r"numeric</td><td>stepd</td><td>no &lt;number&gt;", text)


def test_there_is_no_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no q_id of a run"):
        report.write(tmp_path)


def test_shared_heads_are_a_share_of_all_of_both() -> None:
    from fvcore.experiments.relation.pictures import shared

    a, b = frozenset({(0, 1), (2, 3), (3, 3)}), frozenset({(2, 3), (4, 0), (5, 1)})
    assert shared(a, b) == 1 / 5
    assert shared(a, a) == 1
    assert shared(a, frozenset()) == 0
