"""Autoencoders of the shipped model, trained for a moment: what is wrong with one that is taken for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fvcore.experiments.sae.config import Training
from tests.late import RUNNING

if RUNNING:
    import torch
    from torch import Tensor
    from typer.testing import CliRunner

    from fvcore.cli import app
    from fvcore.experiments.sae.autoencoder import SAE
    from fvcore.experiments.sae.health import Health, health, shifted
    from fvcore.experiments.sae.loaders import load as load_sae
    from fvcore.experiments.sae.loaders import save_sae_lens
    from fvcore.experiments.sae.streams import questions, taken_for
    from fvcore.experiments.sae.train import fitted, train
    from fvcore.formats import FormatError, read_json, write_pt
    from fvcore.model.model import LanguageModel, load


LAYER, LAST = 2, 5
BRIEF = Training(steps=120, batch=256)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load("tiny-llama")


@pytest.fixture(scope="module")
def streams(lm: LanguageModel) -> dict[str, Tensor]:
    return taken_for(lm, [one.input_ids for one in questions(lm, 54, Random(0))])


@pytest.fixture(scope="module")
def sae(streams: dict[str, Tensor]) -> SAE:
    return fitted(streams[f"layer {LAYER}"], LAYER, BRIEF)


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def judged(sae: SAE, streams: dict[str, Tensor]) -> Health:
    own = f"layer {sae.layer}"
    return health(sae, streams[own], {name: stream for name, stream in streams.items() if name != own})


def test_one_that_is_right_has_no_findings(sae: SAE, streams: dict[str, Tensor]) -> None:
    found = judged(sae, streams)
    assert found.findings == []
    assert found.best == f"layer {LAYER}"
    assert found.fvu is not None
    assert found.fvu < 0.2
    assert found.l0 == pytest.approx(BRIEF.k, abs=0.1)


@pytest.mark.parametrize("layer", [LAYER - 1, LAYER + 1])
def test_another_layer(sae: SAE, streams: dict[str, Tensor], layer: int) -> None:
    (said, *_) = judged(replace(sae, layer=layer), streams).findings
    assert f"explains layer {LAYER} better than what leaves block {layer}" in said


def test_autoencoders_that_are_shifted_by_a_layer(streams: dict[str, Tensor]) -> None:
    saes = {layer: fitted(streams[f"layer {layer}"], layer, BRIEF) for layer in (1, 2, 3)}
    assert shifted(streams["layer 2"], 2, saes) == []
    (said,) = shifted(streams["layer 2"], 2, {layer: saes.get(layer - 1, saes[1]) for layer in (2, 3)})
    assert "by the autoencoder of layer 3" in said


@pytest.mark.parametrize("name", ["the final norm's output", f"layer {LAST} at one length"])
def test_one_that_was_trained_on_a_normalised_stream(streams: dict[str, Tensor], name: str) -> None:
    (said, *_) = judged(fitted(streams[name], LAST, BRIEF), streams).findings
    assert f"explains {name} better" in said


def test_topk_that_is_read_as_relu(sae: SAE, streams: dict[str, Tensor], tmp_path: Path) -> None:
    read = load_sae(save_sae_lens(sae, tmp_path, "some model"), gating="relu")
    found = judged(read, streams)
    assert found.l0 is not None
    assert found.l0 > 2 * BRIEF.k
    assert any("read without k" in said for said in found.findings)


def test_a_gate_that_lets_too_much_through(sae: SAE, streams: dict[str, Tensor]) -> None:
    unmarked = replace(sae, k=None, info={"nominal_l0": 2})
    assert any("its gate is not the one of its files" in said for said in judged(unmarked, streams).findings)


def test_lengths_that_are_not_folded(sae: SAE) -> None:
    assert "not folded" in health(replace(sae, w_dec=sae.w_dec * 1.5)).findings[0]


def test_a_negative_threshold(sae: SAE) -> None:
    assert "never set" in health(replace(sae, threshold=sae.threshold - 1)).findings[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "sae"
    brief = Training(out=out, prompts=36, held_out=18, steps=40, batch=128)
    report = train(brief)
    assert [row.layer for row in report.layers] == list(range(6))
    return out


def test_training_writes_what_sae_info_reads_and_says_what_is_not_good_enough(trained: Path) -> None:
    report = read_json(trained / "training.json")
    assert report["failures"], "forty steps are too few"
    assert report["clean_accuracy"] > 0.9
    info = invoke("pathways", "sae-info", str(trained / "L1"), "--json")
    assert info.exit_code == 0, info.output
    assert '"d_sae": 256' in info.output


def test_sae_info_fails_on_what_is_wrong(trained: Path, tmp_path: Path) -> None:
    read = invoke("pathways", "sae-info", str(trained / "L1"), "--gating", "relu")
    assert read.exit_code == 1
    assert "read without k" in read.output
    write_pt(tmp_path / "ae.pt", {})
    assert invoke("pathways", "sae-info", str(tmp_path)).exit_code == 1


@pytest.mark.slow
def test_the_shipped_model_is_explained_and_answers_through_its_autoencoders(tmp_path: Path) -> None:
    report = train(Training(out=tmp_path))
    assert report.failures == []
    assert report.clean_accuracy >= 0.95


def test_training_is_reproducible(streams: dict[str, Tensor]) -> None:
    brief = Training(steps=5, batch=64)
    one, other = (fitted(streams["layer 0"], 0, brief) for _ in "ab")
    assert torch.equal(one.w_enc, other.w_enc)
    assert torch.equal(one.w_dec, other.w_dec)


def test_a_folder_without_an_autoencoder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="found none of them"):
        load_sae(tmp_path)
