"""A vector is read from our files and from others', and a file that holds none says what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore.formats import FormatError, pt_bytes, write_bytes, write_safetensors
from fvcore.model.spec import ModelError
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import artifacts
    from fvcore.experiments.evaluation.vectors import gaussian, of_random_heads, read_vector
    from fvcore.vectors import function_vector
    from tests.fvcore.evaluation import worlds


if RUNNING:
    VECTOR = torch.arange(1.0, 9.0)


def put(path: Path, value: Any) -> Path:
    write_bytes(path, pt_bytes(value))
    return path


@pytest.mark.parametrize(
    "value",
    [
        lambda: VECTOR,
        lambda: VECTOR[None],
        lambda: VECTOR[None, None],
        lambda: {"fv_global_resid": VECTOR, "resid_dim": 8, "head_dim": 4, "n_heads": 2},
        lambda: {"function_vector": VECTOR},
    ],
)
def test_pt_files_of_several_makers(tmp_path: Path, value: Callable[[], Any]) -> None:
    assert torch.equal(read_vector(put(tmp_path / "v.pt", value()), 8), VECTOR)


def test_our_own_artifact_by_its_json_or_its_stem(tmp_path: Path) -> None:
    artifacts.save({"function_vector": VECTOR, "norm": 1.0}, tmp_path / "fv_vector")
    assert torch.equal(read_vector(tmp_path / "fv_vector.json", 8), VECTOR)
    assert torch.equal(read_vector(tmp_path / "fv_vector", 8), VECTOR)


def test_safetensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "v.safetensors", {"function_vector": VECTOR, "other": torch.ones(2)})
    assert torch.equal(read_vector(tmp_path / "v.safetensors", 8), VECTOR)


@pytest.mark.parametrize(
    "value, said",
    [
        (lambda: torch.ones(7), r"expected a vector of the residual stream, \(8,\) or \(1, 8\), found \(7,\)"),
        (lambda: torch.ones(2, 4), r"found \(2, 4\)"),
        (lambda: torch.ones(8, dtype=torch.long), "floating-point"),
        (lambda: torch.zeros(8), "the vector is zero"),
        (lambda: torch.full((8,), float("nan")), "not finite"),
        (lambda: {"fv_by_layer": VECTOR}, "no vector in it.*found fv_by_layer"),
        (dict, "found none"),
        (lambda: [1, 2], "found list"),
    ],
)
def test_what_is_no_vector_of_the_model_is_refused(tmp_path: Path, value: Callable[[], Any], said: str) -> None:
    with pytest.raises(FormatError, match=f"v.pt: .*{said}"):
        read_vector(put(tmp_path / "v.pt", value()), 8)


def test_other_kinds_of_files_are_refused_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"v\.npy: expected a vector as"):
        read_vector(tmp_path / "v.npy", 8)
    with pytest.raises(FormatError, match="no such file"):
        read_vector(tmp_path / "gone.pt", 8)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"function_vector": Path("x")}, tmp_path / "v.pt")
    with pytest.raises(FormatError, match="not a file of tensors and plain values"):
        read_vector(tmp_path / "v.pt", 8)


def test_a_computed_vector_is_the_sum_over_its_heads() -> None:
    made, lm = worlds.vector_of_best_heads("tiny-llama"), worlds.model("tiny-llama")
    assert len(set(made.heads)) == 4
    assert torch.equal(made.vector, function_vector(lm, made.means, made.heads).cpu())


def test_controls_are_drawn_from_other_heads_and_directions() -> None:
    made, lm = worlds.vector_of_best_heads("tiny-llama"), worlds.model("tiny-llama")
    every = [(layer, head) for layer in range(lm.n_layers) for head in range(lm.n_heads)]
    # Twelve of the 24 heads are taken out: the other twelve are all there is to draw from.
    control = of_random_heads(lm, made.means, every[:12], 0)
    torch.testing.assert_close(control, function_vector(lm, made.means, every[12:]), rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match="20 other heads asked for"):
        of_random_heads(lm, made.means, every[:20], 0)

    noise = gaussian(made.vector, 0)
    assert float(noise.norm()) == pytest.approx(float(made.vector.norm()), rel=1e-5)
    assert abs(float(torch.cosine_similarity(noise, made.vector, dim=0))) < 0.5
    assert not torch.equal(noise, gaussian(made.vector, 1))
