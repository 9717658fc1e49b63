"""The forms that an answer may have, that the page names them, and that any other is a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore import shipped
from fvcore.gates import StageError, Status
from pytest_fvparity.parity.asking import formed
from tests.late import RUNNING

if RUNNING:
    from fvcore import artifacts
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.candidates.candidates import FromFolder
    from pytest_fvparity.parity.implementation import CHECK_KEYS
    from pytest_fvparity.selftest.rig import Rig, rig_of

GUIDE = (Path(__file__).parents[2] / "docs" / "candidates.md").read_text()
MAPS = ("idx_map", "idx_avg", "full_idx_map")


def test_the_guide_shows_a_trial_as_the_file_has_it() -> None:
    (shown,) = map(json.loads, re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL))
    of_file = json.loads((shipped.root() / shipped.TRIALS["tiny-llama"]).read_text())["trials"][0]

    assert shown == {
        name: of_file[name][: len(value)] if isinstance(value, list) else of_file[name] for name, value in shown.items()
    }


def as_objects(leaves: dict[str, Any]) -> dict[str, Any]:
    """The maps as objects, with text for keys."""

    def mapped(rows: list[list[Any]]) -> dict[str, Any]:
        return {str(row[0]): row[1] if len(row) == 2 else row[1:] for row in rows}

    return {leaf: mapped(value) if leaf.rpartition("/")[2] in MAPS else value for leaf, value in leaves.items()}


def reversed_rows(leaves: dict[str, Any]) -> dict[str, Any]:
    rows = (*MAPS, "labels", "dummy_labels")
    return {leaf: value[::-1] if leaf.rpartition("/")[2] in rows else value for leaf, value in leaves.items()}


def trials_reversed(leaves: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(leaves.items()))


def scores_in_a_list(leaves: dict[str, Any]) -> dict[str, Any]:
    return leaves | {"scores": leaves["scores"].tolist()}


def answering(key: str, form: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return {key: lambda self, *inputs: form(dict(getattr(Pipeline, key)(self, *inputs)))}


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("slot_map", as_objects),
        ("slot_map", reversed_rows),
        ("slot_map", trials_reversed),
        ("prompt_boundary", trials_reversed),
        ("injection_output", trials_reversed),
        ("top_heads", scores_in_a_list),
    ],
)
def test_another_legal_form_is_green_at_every_key(key: str, form: Callable[[Any], Any]) -> None:
    rig = rig_of("llama")

    assert {r.status for r in rig.judge(rig.candidate(**answering(key, form)))} == {Status.PASS}


def test_maps_in_a_folder_may_be_objects(tmp_path: Path) -> None:
    rig = rig_of("llama")
    for key, artifact in rig.artifacts.items():
        artifacts.save(artifact, tmp_path / key)
    (tmp_path / "slot_map.json").write_text(json.dumps(as_objects(dict(rig.artifacts["slot_map"]))))

    assert {result.status for result in rig.judge(FromFolder(tmp_path))} == {Status.PASS}


def test_a_wrong_map_is_a_fault_in_every_form() -> None:
    rig = rig_of("llama")

    def wrong(leaves: dict[str, Any]) -> dict[str, Any]:
        objects = as_objects(leaves)
        objects["0:0/clean/idx_map"]["3"] += 1
        return objects

    results = {result.key: result for result in rig.judge(rig.candidate(**answering("slot_map", wrong)))}

    assert results["slot_map"].status is Status.FAIL
    assert results["slot_map"].verdict.findings[0].where.startswith("0:0/clean/idx_map")


def told() -> dict[tuple[str, str], str]:
    """The guide's table: (key, leaf) -> what it is; a key stands in its first row alone."""
    rows, key = {}, ""
    for named, leaf, kind in re.findall(r"^\| (?:`(\w+)`)? ?\| `([\w/]+)` \| ([^|]+) \|", GUIDE, flags=re.MULTILINE):
        key = named or key
        rows[key, leaf] = kind
    return rows


def kind_of(value: Any) -> str:
    """What the guide begins with of a leaf as a golden's JSON has it, up to the number of axes."""
    if isinstance(value, dict):
        dtype, *shape = value[artifacts.TENSOR]
        return f"{dtype} {len(shape)}"
    if isinstance(value, list):
        return "rows" if isinstance(next(iter(value), []), list) else "list of int"
    return {bool: "bool", int: "int", float: "float", str: "string"}[type(value)]


def test_the_guide_defines_every_leaf_of_a_recorded_golden() -> None:
    (folder,) = (shipped.root() / "golden" / "tiny_antonym").glob("*tiny_llama/src")
    there = {
        (key, re.sub(r"/(clean|corrupted)/", "/R/", re.sub(r"^\d+:\d+/", "T/", leaf))): kind_of(value)
        for key in CHECK_KEYS
        for leaf, value in json.loads((folder / f"{key}.json").read_text()).items()
    }
    said, axes = told(), re.compile(r"(model|float\d+) \(([^)]+?),?\)")

    assert said.keys() - {("mean_activations", "last_slot")} == there.keys()
    for place, kind in there.items():
        tensor = axes.match(said[place])
        shown = f"{tensor[1]} {len(tensor[2].split(', '))}".replace("model", "float32") if tensor else said[place]
        assert shown.startswith(kind), place


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def holding_itself() -> list[Any]:
    value: list[Any] = []
    value += [value, value]
    return value


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({("a", 1): 2}, r"a leaf's name is text, the candidate gave \('a', 1\) \(tuple\)"),
        ({"x": nested(3000)}, "leaf 'x' holds lists more than 100 deep"),
        ({"x": holding_itself()}, "leaf 'x' holds lists more than 100 deep, or one that holds itself"),
        ({"x": 10**5000}, "leaf 'x' holds an integer of 16610 bits"),
        ({"x": [1, [2, {"a": 1}]]}, "leaf 'x' holds a builtins.dict"),
        ([1], "expected a mapping from leaf to value, the candidate gave a list"),
    ],
)
def test_what_is_no_artifact_is_a_sentence(leaves: Any, message: str) -> None:
    with pytest.raises(StageError, match=message):
        formed("top_heads", leaves, {})


def test_what_is_no_artifact_is_an_error_at_its_key() -> None:
    rig: Rig = rig_of("llama")
    results = {r.key: r for r in rig.judge(rig.candidate(fv_vector=lambda *_: {"norm": 10**5000, 3: 1}))}

    assert results["fv_vector"].status is Status.ERROR
    assert results["fv_vector"].message.startswith("fv_vector: leaf 'norm' holds an integer")
