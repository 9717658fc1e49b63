"""Artifacts on disk: every leaf comes back bit for bit, and two files that do not belong together are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fvcore.formats import FormatError, write_safetensors
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import artifacts
    from fvcore.artifacts import Leaf, limited_to, load, save, tensor_leaf, trial_of
    from fvcore.compare import compare


def artifact() -> dict[str, Leaf]:
    odd = torch.tensor([[math.nan, math.inf], [-math.inf, -0.0], [1e-45, 1 / 3]])
    return {
        "zeta": odd,
        "0:0/ids": [1, [2, "x\u00e9\n"], None],
        "alpha": 0.1 + 0.2,
        "half": torch.tensor([1 / 3, 65504.0], dtype=torch.bfloat16),
        "0:0/count": 7,
        "flag": True,
        "nothing": None,
        "text": "A:\n",
        "whole": torch.arange(6).reshape(2, 3),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }


def bits(value: torch.Tensor) -> bytes:
    return value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""


def test_an_artifact_comes_back_bit_for_bit_and_in_order(tmp_path: Path) -> None:
    saved, stem = artifact(), tmp_path / "deep" / "top_heads"
    assert save(saved, stem) == [stem.with_suffix(".json"), stem.with_suffix(".safetensors")]
    loaded = load(stem)
    assert list(loaded) == list(saved)
    for leaf, value in saved.items():
        back = loaded[leaf]
        assert type(back) is type(value)
        if isinstance(value, torch.Tensor):
            assert isinstance(back, torch.Tensor)
            assert (back.dtype, back.shape, bits(back)) == (value.dtype, value.shape, bits(value))
        else:
            assert back == value
    assert compare(saved, loaded).passed


def test_an_object_that_describes_no_tensor_is_a_value(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"idx_map": {"0": 1}, "x": 1}')

    assert load(tmp_path / "a") == {"idx_map": {"0": 1}, "x": 1}


def test_a_view_is_stored_as_its_own_values(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    save({"part": whole[:, 1], "turned": whole.T}, tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert torch.equal(tensor_leaf(loaded, "part"), torch.tensor([1.0, 5.0, 9.0]))
    assert torch.equal(tensor_leaf(loaded, "turned"), whole.T)


def test_the_same_artifact_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(artifact(), tmp_path / name)
    for suffix in (".json", ".safetensors"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_without_tensors_there_is_one_file(tmp_path: Path) -> None:
    assert save({"a": 1}, tmp_path / "x") == [tmp_path / "x.json"]
    assert load(tmp_path / "x") == {"a": 1}


def _edit(stem: Path, leaf: str, value: Any) -> None:
    path = stem.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {leaf: value}))


@pytest.mark.parametrize(
    ("leaf", "described", "message"),
    [
        ("zeta", {"$tensor": ["float16", 3, 2]}, "leaf 'zeta' is described as float16"),
        ("zeta", {"$tensor": ["float32", 2, 3]}, r"leaf 'zeta' is described as float32 \[2, 3\], found .* \[3, 2\]"),
        ("zeta", 5, r"tensors \['zeta'\] stand in one of the two files only"),
        ("ghost", {"$tensor": ["float32", 1]}, r"tensors \['ghost'\] stand in one of the two files only"),
        ("zeta", {"$tensor": ["float33", 3, 2]}, "leaf 'zeta'"),
        ("zeta", {"other": 1}, r"tensors \['zeta'\] stand in one of the two files only"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, leaf: str, described: Any, message: str) -> None:
    stem = tmp_path / "a"
    save(artifact(), stem)
    _edit(stem, leaf, described)
    with pytest.raises(FormatError, match=message) as error:
        load(stem)
    assert str(error.value).startswith(f"{stem}.json: ")


def test_tensors_of_another_artifact_are_refused(tmp_path: Path) -> None:
    save(artifact(), tmp_path / "a")
    write_safetensors(tmp_path / "a.safetensors", {"zeta": torch.zeros(3, 2)})
    with pytest.raises(FormatError, match=r"tensors \['empty', 'half', 'scalar', 'whole'\]"):
        load(tmp_path / "a")


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    save(artifact(), tmp_path / "a")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(FormatError, match=r"a\.safetensors: no such file"):
        load(tmp_path / "a")
    with pytest.raises(FormatError, match=r"b\.json: no such file"):
        load(tmp_path / "b")


def test_what_is_no_object_of_leaves_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(FormatError, match="expected an object of leaves, found list"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("leaf", "trial"),
    [("3:1/clean/ids", "3:1"), ("3:1/x", "3:1"), ("aie", None), ("bos/adds_bos", None), ("3:1", None), ("a/3:1", None)],
)
def test_a_leaf_belongs_to_the_trial_it_begins_with(leaf: str, trial: str | None) -> None:
    assert trial_of(leaf) == trial


def test_limiting_keeps_the_trials_asked_for_and_what_belongs_to_none() -> None:
    leaves = {"aie": 1, "0:0/a": 2, "1:1/a": 3, "11:1/a": 4}
    assert limited_to(leaves, ["1:1"]) == {"aie": 1, "1:1/a": 3}


def test_a_leaf_that_should_be_a_tensor_and_is_none_is_named() -> None:
    with pytest.raises(TypeError, match="leaf 'a' is a int, expected a tensor"):
        tensor_leaf({"a": 1}, "a")
    assert artifacts.tensor_leaf({"a": torch.ones(1)}, "a").item() == 1
