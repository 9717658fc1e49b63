"""Every door through which a file comes in: a damaged one is one clear error, or is taken for what it says; no third thing.

3,000 damages and more, drawn anew from the same seed each time. A door is a reader with whatever a command does to the value
before a model is loaded; beside its own file none may change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import OURS, Campaign, byte_damage, contents, drawn, json_damage
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import shipped
    from fvcore.embedded import path_of
    from fvcore.experiments.config import resolve
    from fvcore.experiments.evaluation import data as tasks
    from fvcore.experiments.evaluation.config import EvaluationConfig
    from fvcore.experiments.folder import Folder
    from fvcore.experiments.plan_files import heads_in
    from fvcore.experiments.record import Record
    from fvcore.experiments.relation import data as relation
    from fvcore.experiments.relation.gates import QIdStatus
    from fvcore.experiments.sae import readers
    from fvcore.experiments.sae.logs import scan_file
    from fvcore.experiments.select_kv.cli import Command
    from fvcore.formats import (
        read_bytes,
        read_csv,
        read_json,
        read_jsonl,
        read_yaml,
        safetensors_metadata,
        write_safetensors,
    )
    from fvcore.gates import Status
    from fvcore.model.spec import read_spec
    from fvcore.trials import fixed, sampled
    from pytest_fvparity.bundle import bundle as bundles
    from pytest_fvparity.bundle.replay import replayed, told
    from pytest_fvparity.golden import listing
    from pytest_fvparity.golden.manifest import read as read_manifest
    from pytest_fvparity.milestones.lock import Lock
    from pytest_fvparity.parity.place import place_of
    from pytest_fvparity.report.merge import Contradiction, merge
    from pytest_fvparity.report.render import read_report, write_all
    from tests.pytest_fvparity.made_reports import assemble, failed, row_of, rows_of

N = 150
"""Damages of each door."""

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fvcore" / "experiments"


class Door(NamedTuple):
    sound: str | bytes
    name: str
    use: Callable[[Path], Any]


def _trials(n: int) -> str:
    """The first trials of the shipped file: what is small is damaged at more of its places."""
    value = json.loads(TRIALS.read_text())
    return json.dumps(value | {"trials": value["trials"][:n], "meta": value["meta"] | {"n_trials": n}})


def _sampled() -> str:
    words = {"input": "hot", "output": "cold"}, {"input": "up", "output": "down"}
    prompt = "Q: hot\nA: cold\n\nQ: up\nA:"
    trial = {
        **{"q_id": "Q1", "trial_idx": 0, "trial_id": 0, "clean_prompt_str": prompt, "corrupted_prompt_str": prompt},
        **{
            "corrupted_full_str": f"{prompt} down",
            "target_str": " down",
            "target_first_token_id": 5,
            "target_token": "d",
        },
        **{"demos_clean": [words[0]], "demos_corrupted": [words[0]], "query": words[1]},
    }
    meta = {
        "source": "relation_csv",
        "relation_csv_path": "a/b.csv",
        "seed": 0,
        "n_trials": 1,
        "n_shots": 1,
        "n_demos": 1,
    }
    return json.dumps({"meta": meta, "trials": [trial]})


def _report() -> str:
    row = row_of("slot_map", Status.FAIL, failed())
    return assemble(list(rows_of()), rows_of(slot_map=row)).model_dump_json()


def _judged(path: Path) -> Any:
    report = read_report(path)
    merged = merge([(str(path), report), ("again", report)])
    write_all(merged, path.parent / "reports")
    return merged


def _failure(path: Path) -> bytes:
    """A bundle of two short vectors."""
    named = {
        f"{side}/fv_vector/function_vector": torch.full((3,), value)
        for side, value in (("golden", 1.0), ("candidate", 2.0))
    }
    profile = read_manifest(next(ROOT.glob(f"golden/*/{TRIALS.stem}/src"))).profile
    first = {
        "where": "function_vector[dim 0]",
        "message": "differs",
        "expected": 1.0,
        "actual": 2.0,
        "coordinate": {"dim": 0},
    }
    allowed = {"leaf": "function_vector", "rule": "r", "atol": 0.5, "rtol": 0.0, "of_max": 0.0, "of_norm": 0.0}
    slices = {"fv_vector": {"norm": {"axis": 0, "indices": [0], "shape": [2]}}}
    fields = {
        **{
            "schema_version": 1,
            "written_at": "now",
            "key": "fv_vector",
            "first": first,
            "message": "",
            "candidate": "mine",
        },
        **{
            "signature": None,
            "fault": "own",
            "mismatch_count": 3,
            "compared": 3,
            "effects": None,
            "noise": {"norm": 0.1},
        },
        **{"profile": profile, "golden_profile": profile, "target_regime": "clean", "trials": json.loads(_trials(1))},
        **{"places": [0], "allowed": [allowed], "slices": slices, "incomplete": [], "left_out": [], "leaves": named},
    }
    bundles.write(path, bundles.Bundle.model_validate(fields))
    return path.read_bytes()


def _replayed(path: Path) -> Any:
    kept = bundles.read(path)
    return list(told(kept, replayed(kept), False))


def _replayed_text(path: Path) -> Any:
    """Of a bundle with this text in it."""
    tensors = {f"{side}/fv_vector/function_vector": torch.ones(3) for side in ("golden", "candidate")}
    text = read_bytes(path).decode(errors="backslashreplace")
    write_safetensors(path.with_suffix(".safetensors"), tensors, {"bundle": text})
    return _replayed(path.with_suffix(".safetensors"))


def _as_config(kind: Any) -> Callable[[Path], Any]:
    return lambda path: resolve(kind, {}, path)


def _read_log(path: Path) -> Any:
    return list(readers.read_records(path, readers.Oddities())), scan_file(path, 1, False)


RECORD = {
    "schema_version": 1,
    "settings_digest": "x",
    "versions": {"torch": "2"},
    "stages": {"a": {"settings": {"b": 1}}},
}
STATUS = {
    **{"status": "completed", "q_id": "Q1", "created_at": "x", "updated_at": "y", "reason": "", "settings_digest": "0"},
    **{
        "settings": {"seed": 0},
        "files": {"a.json": "0"},
        "config": {"topk": 1},
        "q_row_count": 3,
        "expected_layers": [0, 1],
    },
}
ROWS = [{"feature": "L1_F2", "condition": "x", "trial": 0, "response": "yes"}] * 3
SPEC = (
    "name: mine\nblocks_path: model.layers\nattn_path_in_block: self_attn\nout_proj_path_in_attn: o_proj\nn_layers: 2\n"
)
EVALUATION = "what: all\nmodel: tiny-llama\ndataset: antonym\nseed: 3\nalpha: 1.5\n"

NAMES = (
    "fixed trials",
    "their place",
    "sampled trials",
    "raw dataset",
    "task",
    "relation",
    "report",
    "record",
    "status",
    "heads",
    "spec",
    "lock",
    "templates",
    "evaluation",
    "select-kv",
    "log",
    "log by lines",
    "golden",
    "table",
    "lines",
    "yaml",
    "failure",
    "failure, its text",
)

if RUNNING:
    TRIALS = ROOT / shipped.TRIALS["tiny-llama"]
    with TemporaryDirectory() as scratch:
        FAILURE = _failure(Path(scratch) / "failure.safetensors")
        FAILURE_TEXT = safetensors_metadata(Path(scratch) / "failure.safetensors")["bundle"]
    DOORS = {
        "fixed trials": Door(_trials(1), "trials.json", fixed.read),
        "their place": Door(_trials(1), "sampled_trials.json", place_of),
        "sampled trials": Door(_sampled(), "sampled_trials.json", sampled.read_trials),
        "raw dataset": Door('[{"input": "hot", "output": "cold"}, {"input": "up", "output": ["down"]}]', "raw.json", fixed.read_pairs),
        "task": Door('[{"input": "hot", "output": "cold"}, {"input": "up", "output": ["down", "low"]}]', "task.json", tasks.read_rows),
        "relation": Door("q,exA,exB\r\nQ1,hot,cold\r\nQ1,up,down\r\nQ2,a,b\r\n", "relation.csv", relation.read),
        "report": Door(_report(), "src_vs_fv_diff_report.json", _judged),
        "record": Door(json.dumps(RECORD), "record.json", lambda path: Record(Folder(path.parent), path.name).read()),
        "status": Door(json.dumps(STATUS), "artifacts/qid_status.json", lambda path: QIdStatus.all_of(path.parents[2])),
        "heads": Door('[{"layer": 0, "head": 1, "score": 0.5}]', "heads.json", lambda path: heads_in(read_json(path), path)),
        "spec": Door(SPEC, "spec.yaml", read_spec),
        "lock": Door((ROOT / "pytest_fvparity/milestones/antonym-lock.yaml").read_text(), "lock.yaml", lambda p: Lock.load(str(p))),
        "templates": Door((PACKAGE / "evaluation/templates.yaml").read_text(), "templates.yaml", tasks.read_templates),
        "evaluation": Door(EVALUATION, "config.yaml", _as_config(EvaluationConfig)),
        "select-kv": Door((PACKAGE / "select_kv/configs/tiny.yaml").read_text(), "config.yaml", _as_config(Command)),
        "log": Door(json.dumps(ROWS), "log.json", _read_log),
        "log by lines": Door("".join(json.dumps(row) + "\n" for row in ROWS), "log.jsonl", _read_log),
        "golden": Door(
            next(ROOT.glob(f"golden/*/{TRIALS.stem}/src/manifest.json")).read_text(),
            "golden/d/t/src/manifest.json",
            lambda path: listing.rows([path.parents[3]], {"t": {"0"}}),
        ),
        "table": Door("a,b\r\n1,2\r\n", "table.csv", read_csv),
        "lines": Door('{"a": 1}\n{"a": 2}\n', "lines.jsonl", read_jsonl),
        "yaml": Door("a: &x {b: 1}\nc: [*x, 2.5, on]\n", "a.yaml", read_yaml),
        "failure": Door(FAILURE, "failure.safetensors", _replayed),
        "failure, its text": Door(FAILURE_TEXT, "failure.json", _replayed_text),
    }  # fmt: skip


def test_three_thousand_damages_are_drawn() -> None:
    assert tuple(DOORS) == NAMES
    assert N * len(DOORS) >= 3000


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_file_is_taken(name: str, tmp_path: Path) -> None:
    door = DOORS[name]
    _put(tmp_path / "run" / door.name, _bytes(door))

    assert door.use(tmp_path / "run" / door.name) is not None


def _bytes(door: Door) -> bytes:
    return door.sound.encode() if isinstance(door.sound, str) else door.sound


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def settled(door: Door, path: Path) -> str:
    """The kind of error that is told, in one sentence; nothing where the file is taken. Whatever else comes up is raised."""
    told: Exception | None = None
    try:
        door.use(path)
    except (*OURS, Contradiction) as error:
        told = error
    if told is None:
        return ""
    text = str(told)
    assert 10 < len(text) < 3000, f"no sentence: {text[:500]}"
    assert isinstance(told, Contradiction) or "\n" not in text, f"more than a line: {text[:500]}"
    text.encode()
    return type(told).__name__


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_or_taken(name: str, tmp_path: Path, part: int) -> None:
    door, campaign = DOORS[name], Campaign()
    sound = _bytes(door)
    beside = _put(tmp_path / "beside", b"not of this run")
    damages = [byte_damage(sound), *([json_damage(sound.decode())] * 2 if door.name.endswith(".json") else [])]

    @drawn(N // part)
    @given(st.one_of(damages))
    def one(data: bytes) -> None:
        campaign.hurt(data, sound, means=lambda data: data)
        path = _put(tmp_path / "run" / door.name, data)
        kind = settled(door, path) or "taken"
        campaign.said[kind] = campaign.said.get(kind, 0) + 1
        assert path.read_bytes() == data
        assert set(contents(tmp_path)) - set(contents(tmp_path / "run")) == {beside}

    one()
    said = ", ".join(f"{kind} {n}" for kind, n in sorted(campaign.said.items()))
    print(f"{name}: {len(campaign.seen)} damaged inputs ({said})")
    assert len(campaign.seen) >= N // part // 2


@pytest.mark.parametrize("what", ["folder", "pipe", "device", "nothing"])
def test_what_is_no_file_at_all_is_refused(what: str, tmp_path: Path) -> None:
    for number, door in enumerate(DOORS.values()):
        _put_no_file(what, path := tmp_path / str(number) / "run" / door.name)
        settled(door, path)


def _put_no_file(what: str, path: Path) -> None:
    import os

    path.parent.mkdir(parents=True)
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero")}.get(
        what, lambda: None
    )()


def test_the_shipped_models_lie_where_they_are_looked_for() -> None:
    assert path_of("tiny-llama").is_dir()
