"""What the fuzz found, one by one: each of these was once a traceback or was taken for a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import random_lm, trials_for
from fvcore.formats import FormatError, read_json
from fvcore.trials import fixed as trials
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import artifacts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 0, "seed": 1}', "key 'seed' stands twice in one object"),
        ('{"a": [' + "9" * 5000 + "]}", r"Exceeds the limit \(4300 digits\)"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        ('"\\ud800"', "half a surrogate pair"),
    ],
)
def test_what_python_reads_and_json_has_not_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)

    with pytest.raises(FormatError, match=f"a.json: not valid JSON .*{message}"):
        read_json(path)


def test_whole_surrogate_pairs_and_sixty_levels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 60 + '"\\ud83d\\ude00"' + "]" * 60)

    assert "\U0001f600" in str(read_json(path))


@pytest.mark.parametrize("described", [5, [], None, ["float32", True], ["float32", 1.0], "float32", ["float32", [[]]]])
def test_a_tensor_that_is_described_by_anything_else_is_refused(tmp_path: Path, described: Any) -> None:
    artifacts.save({"x": torch.ones(1)}, tmp_path / "a")
    (tmp_path / "a.json").write_text(json.dumps({"x": {"$tensor": described}}))

    with pytest.raises(FormatError, match=r"leaf 'x' is described as .*, found "):
        artifacts.load(tmp_path / "a")


def test_a_candidates_nan_is_a_value_to_compare(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"nll": NaN}')

    assert str(artifacts.load(tmp_path / "a")) == "{'nll': nan}"


@pytest.mark.parametrize("name", ["a\0b.json", "x" * 300 + ".json", "..", "a\nb"])
def test_a_dataset_that_is_no_name_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    value = trials_for(random_lm("llama")).file.model_dump(mode="json")
    value["meta"]["dataset_json"] = name

    with pytest.raises(trials.TrialsError, match="names no dataset"):
        trials.parse(value, "trials.json")
