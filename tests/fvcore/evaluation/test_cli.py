"""`fvcore eval`, from the command line to files, output and exit status."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fvcore import cli
from fvcore.formats import FormatError, pt_bytes, read_json, write_bytes, write_json
from tests.eyes import problems
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.evaluation import drawing, report
    from tests.fvcore.evaluation import worlds


if RUNNING:
    BASE = ("--model", "tiny-llama", "--dataset", str(worlds.DATASET), "--n-shots", "0,2", "--edit-layer", "1")


@pytest.fixture
def fvcore(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fvcore", "eval", *arguments])
        monkeypatch.setattr("fvcore.model.model.load", lambda name, *_, **__: worlds.model(name))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    write_bytes(tmp_path / "v.pt", pt_bytes(worlds.vector_of_best_heads("tiny-llama").vector[None]))
    return tmp_path / "v.pt"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_all_writes_every_table_and_says_so(fvcore: Any, vector: Path, tmp_path: Path) -> None:
    templates = tmp_path / "t.yaml"
    templates.write_text(
        '[{name: "I/O", prefixes: {input: "X:", output: "Y:"}, separators: {input: "\\n", output: "\\n"}}]'
    )
    status, out, err = fvcore(
        "all", *BASE, "--vector", str(vector), "--control", "gaussian", "--templates", str(templates),
        "--nll", "--generate", "--n-trials", "5", "--no-filter", "--out", str(tmp_path / "out"),
    )  # fmt: skip

    assert (status, err) == (0, "")
    names = {
        "baseline.csv",
        "nshot.csv",
        "layers.csv",
        "tokens.csv",
        "portability.csv",
        "layers.png",
        "nshot.png",
        "report.html",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"evaluation.json"}
    assert all(name in out for name in names)
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"<h1>Behind layer \d the vector answers \d+% of 5 questions, against \d+% without it", page)
    assert problems(page) == []
    found = report.read(tmp_path / "out")
    assert [fact.name for fact in found.vectors] == ["fv", "gaussian"]
    assert found.kept == [0, 1, 2, 3, 4]
    assert len(found.layers) == 2 * (1 + 2 * 6)
    for name, rows in found.tables.items():
        assert len(table(tmp_path / "out" / f"{name}.csv")) == len(rows)
    row = next(row for row in table(tmp_path / "out" / "nshot.csv") if row["vector"] == "fv" and row["n_shots"] == "0")
    measured = next(r for r in found.nshot if r.vector == "fv" and r.n_shots == 0)
    assert float(row["top1"]) == measured.accuracy > 0.5
    assert float(row["ppl"]) == measured.summary["ppl"]
    assert {"f1", "exact_match", "first_word", "mean_nll", "top1_low"} <= row.keys()


def test_the_report_reads_back_as_it_was_written(fvcore: Any, vector: Path, tmp_path: Path) -> None:
    fvcore("nshot", *BASE, "--vector", str(vector), "--out", str(tmp_path / "out"))
    found = report.read(tmp_path / "out" / report.FILE)
    assert report.write(found, tmp_path / "again")[0].read_bytes() == (tmp_path / "out" / report.FILE).read_bytes()
    assert found.model.weights_sha == worlds.model("tiny-llama").weights_sha


def test_a_report_with_a_wrong_fact_is_refused(fvcore: Any, vector: Path, tmp_path: Path) -> None:
    fvcore("nshot", *BASE, "--vector", str(vector), "--out", str(tmp_path / "out"))
    value = read_json(tmp_path / "out" / report.FILE)
    value["vectors"][0]["norm"] = "long"
    del value["model"]["weights_sha"]
    write_json(tmp_path / "wrong.json", value)
    with pytest.raises(FormatError, match=r"wrong\.json: .*model\.weights_sha.*"):
        report.read(tmp_path / "wrong.json")


def test_without_a_vector_the_baseline_is_measured(fvcore: Any, tmp_path: Path) -> None:
    status, _, _ = fvcore("nshot", *BASE, "--out", str(tmp_path / "out"))
    found = report.read(tmp_path / "out")
    assert status == 0
    assert [result.n_shots for result in found.baseline] == [0, 2]
    assert found.nshot == []


def test_the_vector_is_computed_from_trials_when_asked(fvcore: Any, tmp_path: Path) -> None:
    trials = str(worlds.trials_path("tiny-llama"))
    status, out, _ = fvcore(
        "tokens", *BASE, "--trials", trials, "--n-top-heads", "4", "--control", "random_heads", "--n-tokens", "5",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    found = report.read(tmp_path / "out")
    own = worlds.vector_of_best_heads("tiny-llama").vector
    assert status == 0
    assert found.vectors[0].norm == pytest.approx(float(own.norm()))
    assert [(row.vector, row.way, row.rank) for row in found.tokens] == [
        (vector, way, rank) for vector in ("fv", "random_heads") for way in ("model", "head") for rank in range(5)
    ]
    answers = worlds.bench().answer_tokens()
    assert [row.is_answer for row in found.tokens] == [row.token_id in answers for row in found.tokens]
    assert {row.is_answer for row in found.tokens} == {True, False}
    assert "fv, model:" in out


def test_a_dataset_is_found_by_name_in_a_checkout(fvcore: Any, tmp_path: Path) -> None:
    folder = tmp_path / "src" / "dataset_files" / "abstractive"
    folder.mkdir(parents=True)
    (folder / "tiny.json").write_bytes(worlds.DATASET.read_bytes())
    options = ("--model", "tiny-llama", "--dataset", "tiny", "--fv-src", str(tmp_path / "src"), "--n-shots", "1")
    status, _, _ = fvcore("nshot", *options, "--out", str(tmp_path / "out"))
    assert status == 0
    assert report.read(tmp_path / "out").task.name == "tiny"


@pytest.mark.parametrize(
    "what, options, said",
    [
        ("layers", (), "layers: no vector; give one with --vector, or --trials"),
        ("nshot", ("--control", "gaussian"), "a control needs a vector"),
        ("nshot", ("--vector", "VECTOR", "--trials", "x.json"), "choose one"),
        ("nshot", ("--vector", "VECTOR", "--control", "random_heads"), "needs the heads' means"),
        (
            "nshot",
            ("--vector", "VECTOR", "--control", "luck"),
            "input should be 'random_heads' or 'gaussian' (found 'luck')",
        ),
        ("nshot", ("--n-shots", "0;1"), "--n-shots: expected numbers and ranges"),
        ("nshot", ("--n-shots", "99"), "99 shots asked for"),
        ("nshot", ("--edit-layer", "6"), "edit_layer out of range: 6"),
        ("nshot", ("--split", "train"), "--split: input should be 'test' or 'valid' (found 'train')"),
        ("nshot", ("--dataset", "synonym"), "--src"),
        ("nshot", ("--engine", "slow"), "--engine: input should be"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(
    fvcore: Any, vector: Path, tmp_path: Path, what: str, options: tuple[str, ...], said: str
) -> None:
    given = [str(vector) if option == "VECTOR" else option for option in options]
    status, _, err = fvcore(what, *BASE, *given, "--out", str(tmp_path / "out"))
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_report_of_another_version_or_shape_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"schema_version": 99})
    write_json(tmp_path / "b.json", {"schema_version": 1})
    with pytest.raises(FormatError, match="schema version 1, found 99"):
        report.read(tmp_path / "a.json")
    with pytest.raises(FormatError, match=r"b\.json: missing key 'task'"):
        report.read(tmp_path / "b.json")


def test_pictures_are_drawn_where_there_is_something_to_draw(fvcore: Any, vector: Path, tmp_path: Path) -> None:
    fvcore("tokens", *BASE, "--vector", str(vector), "--out", str(tmp_path / "out"))
    drawn = drawing.draw(report.read(tmp_path / "out"), tmp_path / "pictures")
    assert [path.name for path in drawn] == ["report.html"]
    assert "<h1>The vector speaks most for" in drawn[0].read_text()


def test_rows_of_json_hold_every_answer(fvcore: Any, vector: Path, tmp_path: Path) -> None:
    fvcore("nshot", *BASE, "--vector", str(vector), "--out", str(tmp_path / "out"))
    raw = read_json(tmp_path / "out" / report.FILE)
    assert raw["schema_version"] == 1
    result = raw["nshot"][1]
    assert len(result["ranks"]) == len(result["positions"]) == result["summary"]["n"]
    assert torch.isfinite(torch.tensor(result["logprobs"])).all()
