"""A kept digest is taken only where the weights surely are those it was made of."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from fvcore import embedded
from fvcore.formats import read_json, write_json
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.model import digests
    from fvcore.model import model as models

CHANGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "another digest": lambda path: write_json(path, {**read_json(path), "weights_sha": "0" * 64}),
    "no mapping": lambda path: path.write_text("[]"),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which digests of small models are kept as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1)
    return tmp_path / "cache" / "fvcore" / "weights"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the shipped model, written an hour ago."""
    made = tmp_path / "model"
    made.mkdir()
    for path in embedded.path_of("tiny-llama").iterdir():
        (made / path.name).write_bytes(path.read_bytes())
        touched(made / path.name, 3600)
    return made


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """What hashes weights, and counts how often."""
    counting = Mock(wraps=digests.weights_digest)
    monkeypatch.setattr(digests, "weights_digest", counting)
    return counting


def touched(path: Path, seconds_ago: float) -> None:
    os.utime(path, (time.time() - seconds_ago,) * 2)


def loaded(directory: Path, dtype: str = "fp32") -> models.LanguageModel:
    return models.load(str(directory), dtype=dtype)


def test_weights_are_hashed_once_and_anew_as_soon_as_a_file_is_another(
    home: Path, directory: Path, hashed: Mock
) -> None:
    first = loaded(directory).weights_sha
    assert loaded(directory).weights_sha == first == models.load("tiny-llama").weights_sha
    assert hashed.call_count == 2  # the shipped one lies elsewhere

    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    touched(weights, 1800)
    changed = loaded(directory)
    assert changed.weights_sha == models.weights_digest(changed.hf) != first

    assert loaded(directory, "bf16").weights_sha not in {first, changed.weights_sha}


def test_weights_that_are_edited_in_memory_have_their_own_digest(home: Path, directory: Path) -> None:
    first = loaded(directory).weights_sha
    by_data, in_place, negated, swapped = (loaded(directory) for _ in range(4))
    by_data.hf.model.layers[0].mlp.up_proj.weight.data[3, 4] *= 1.0000002
    negated.hf.model.embed_tokens.weight.data[:, 1::2].neg_()
    with torch.no_grad():
        in_place.hf.model.layers[5].self_attn.o_proj.weight.neg_()
        rows = swapped.hf.model.layers[2].mlp.down_proj.weight
        rows[[0, 1]] = rows[[1, 0]].clone()

    for lm in (by_data, in_place, negated, swapped):
        assert lm.weights_sha == models.weights_digest(lm.hf) != first
    assert loaded(directory).weights_sha == first


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_and_damaged_is_not_believed(home: Path, directory: Path, hashed: Mock, change: str) -> None:
    first = loaded(directory).weights_sha
    (path,) = home.iterdir()
    CHANGES[change](path)

    assert loaded(directory).weights_sha == first
    assert hashed.call_count == 2
    assert read_json(path)["weights_sha"] == first


@pytest.mark.parametrize("why", ["young", "from another folder", "an adapter", "drawn at random", "small", "no folder"])
def test_nothing_is_kept_where_it_could_be_of_other_weights(
    home: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    expected = loaded(directory).weights_sha
    shutil.rmtree(home.parent)
    if why == "young":
        touched(directory / "model.safetensors", 1)
    if why == "from another folder":
        write_json(directory / "model.safetensors.index.json", {"weight_map": {"w": "../model.safetensors"}})
        touched(directory / "model.safetensors.index.json", 60)
    if why == "drawn at random":
        monkeypatch.setattr("transformers.LlamaForCausalLM._keys_to_ignore_on_load_missing", ["norm"])
    if why == "small":
        monkeypatch.setattr(digests, "LARGE", 2**28)
    if why == "no folder":
        home.parent.write_text("a file stands where the folder would be")
    if why == "an adapter":
        (directory / "adapter_config.json").write_text("{}")
        files = digests.files_of(str(directory))
        assert files is None
    else:
        assert loaded(directory).weights_sha == expected
    assert not home.is_dir()
