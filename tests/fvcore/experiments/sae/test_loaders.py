"""Files of every format against the formula that their own library computes, written out here once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch
    from torch import Tensor

    from fvcore.experiments.sae.autoencoder import SAE
    from fvcore.experiments.sae.config import Autoencoders
    from fvcore.experiments.sae.loaders import folder_of, load, save, save_sae_lens
    from fvcore.experiments.sae.store import Store
    from fvcore.formats import FormatError, write_json, write_pt, write_safetensors


SIZE, WIDTH, LAYER = 40, 12, 3
HOOK = f"blocks.{LAYER}.hook_resid_post"
if RUNNING:
    HIDDEN = 3 * torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float32)


def drawn() -> dict[str, Tensor]:
    """Encoder and decoder rows of lengths from .5 to 2, biases, thresholds and a gate of its own."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(SIZE, WIDTH, generator=draw)
    values = {name: 0.2 * torch.randn(SIZE, generator=draw) for name in ("b_enc", "r_mag", "b_mag", "b_gate")}
    return values | {
        "encoder": rows / WIDTH**0.5,
        "decoder": torch.nn.functional.normalize(rows) * (0.5 + 1.5 * torch.rand(SIZE, 1, generator=draw)),
        "b_dec": torch.randn(WIDTH, generator=draw),
        "threshold": 0.4 * torch.rand(SIZE, generator=draw),
    }


def scope(folder: Path, weights: dict[str, Tensor], **more: Any) -> None:
    about = {
        "hook_point_in": HOOK,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.3,
        "top_k": 8,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 7.0, "out": 9.0},
        "sparsity_include_decoder_norm": True,
        "use_decoder_bias": True,
        "use_glu_encoder": False,
        "apply_decoder_bias_to_pre_encoder": False,
    }
    write_json(folder / "hyperparams.json", about | more)
    write_safetensors(
        folder / "checkpoints/final.safetensors",
        {
            "encoder.weight": weights["encoder"],
            "encoder.bias": weights["b_enc"],
            "decoder.weight": weights["decoder"].T,
            "decoder.bias": weights["b_dec"],
        },
    )


def lens(folder: Path, weights: dict[str, Tensor], architecture: str = "jumprelu", **more: Any) -> None:
    about = {"architecture": architecture, "apply_b_dec_to_input": True, "normalize_activations": "none"}
    names = {"W_enc": weights["encoder"].T, "W_dec": weights["decoder"]}
    same = {name: weights[name] for name in ("b_enc", "b_dec", "threshold", "r_mag", "b_mag", "b_gate")}
    write_safetensors(folder / "sae_weights.safetensors", names | same)
    write_json(folder / "cfg.json", about | {"metadata": {"hook_name": HOOK}} | more)


def dictionary(folder: Path, weights: dict[str, Tensor], kind: str, threshold: float = 0.3) -> None:
    w = weights
    linear = {"encoder.weight": w["encoder"], "encoder.bias": w["b_enc"], "decoder.weight": w["decoder"].T}
    matrices = {"W_enc": w["encoder"].T, "b_enc": w["b_enc"], "W_dec": w["decoder"], "b_dec": w["b_dec"]}
    late = {"k": torch.tensor(8), "threshold": torch.tensor(threshold)}
    of_kind = {
        "AutoEncoder": linear | {"bias": w["b_dec"]},
        "AutoEncoderNew": linear | {"decoder.bias": w["b_dec"]},
        "AutoEncoderTopK": linear | {"b_dec": w["b_dec"], "k": torch.tensor(8), "threshold": torch.tensor(-1.0)},
        "BatchTopKSAE": linear | {"b_dec": w["b_dec"]} | late,
        "MatryoshkaBatchTopKSAE": matrices | late,
        "JumpReluAutoEncoder": matrices | {"threshold": w["threshold"]},
        "GatedAutoEncoder": {
            "encoder.weight": w["encoder"],
            "decoder.weight": w["decoder"].T,
            "decoder_bias": w["b_dec"],
            "r_mag": w["r_mag"],
            "mag_bias": w["b_mag"],
            "gate_bias": w["b_gate"],
        },
    }
    write_pt(folder / "ae.pt", of_kind[kind])
    trainer = {"dict_class": kind, "layer": LAYER, "submodule_name": f"resid_post_layer_{LAYER}", "k": 8}
    write_json(folder / "config.json", {"trainer": trainer})


def relu_of(pre: Tensor, threshold: Tensor | float = 0.0) -> Tensor:
    return torch.where(pre > threshold, pre, 0).relu()


def largest(pre: Tensor, by: Tensor | float = 1.0) -> Tensor:
    kept = torch.zeros_like(pre, dtype=torch.bool).scatter(-1, (pre * by).topk(8, dim=-1).indices, True)
    return torch.where(kept, pre, 0).relu()


def agrees(sae: SAE, features: Tensor, reconstruction: Tensor) -> None:
    """Canonical features are the files' own times kappa, and what they give is the same."""
    assert 0.02 < (features > 0).float().mean() < 0.8
    torch.testing.assert_close(sae.encode(HIDDEN), features * sae.kappa, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(sae.encode(HIDDEN)), reconstruction, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.w_dec.norm(dim=1), torch.ones(SIZE))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    ("act_fn", "gating"), [("jumprelu", "own"), ("jumprelu", "saelens"), ("topk", "own"), ("relu", "own")]
)
def test_published_normalised_files(tmp_path: Path, centred: bool, act_fn: str, gating: Any) -> None:
    w = drawn()
    scope(tmp_path, w, apply_decoder_bias_to_pre_encoder=centred, act_fn=act_fn)
    s_in, s_out = WIDTH**0.5 / 7, WIDTH**0.5 / 9
    read = s_in * HIDDEN - centred * w["b_dec"]
    pre = read @ w["encoder"].T + w["b_enc"]
    length = w["decoder"].norm(dim=1) / s_out  # of what a feature of 1 adds to the residual stream
    gates = {"jumprelu": relu_of(pre, 0.3 / length), "topk": largest(pre, length), "relu": relu_of(pre)}
    if gating == "saelens":
        gates["jumprelu"] = relu_of(pre, 0.3 * s_in)
    features = gates[act_fn]

    sae = load(tmp_path, LAYER, WIDTH, gating=gating)

    agrees(sae, features, (features @ w["decoder"] + w["b_dec"]) / s_out)
    torch.testing.assert_close(sae.kappa, length)
    assert sae.info["format"] == "llama_scope"


def test_lengths_of_decoder_rows_decide_at_the_threshold(tmp_path: Path) -> None:
    """So that the two ways of reading the same files are not the same autoencoder, unless all lengths are 1."""
    for name, weights in {
        "as drawn": drawn(),
        "unit": drawn() | {"decoder": torch.nn.functional.normalize(drawn()["decoder"])},
    }.items():
        scope(tmp_path / name, weights, dataset_average_activation_norm={"in": 7.0, "out": 7.0})
    active = {
        (name, gating): load(tmp_path / name, gating=gating).encode(HIDDEN) > 0
        for name in ("as drawn", "unit")
        for gating in ("own", "saelens")
    }

    assert not torch.equal(active["as drawn", "own"], active["as drawn", "saelens"])
    assert torch.equal(active["unit", "own"], active["unit", "saelens"])


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated"])
def test_files_of_sae_lens(tmp_path: Path, architecture: str, centred: bool) -> None:
    w = drawn()
    lens(tmp_path, w, architecture, apply_b_dec_to_input=centred, k=8)
    read = (HIDDEN - centred * w["b_dec"]) @ w["encoder"].T
    pre = read + w["b_enc"]
    features = {
        "standard": relu_of(pre),
        "jumprelu": relu_of(pre, w["threshold"]),
        "topk": largest(pre),
        "gated": (read + w["b_gate"] > 0) * (w["r_mag"].exp() * read + w["b_mag"]).relu(),
    }[architecture]

    agrees(load(tmp_path, LAYER, WIDTH), features, features @ w["decoder"] + w["b_dec"])


def test_features_that_are_lengths_already(tmp_path: Path) -> None:
    w = drawn()
    lens(tmp_path, w, "topk", k=8, rescale_acts_by_decoder_norm=True)
    pre, length = (HIDDEN - w["b_dec"]) @ w["encoder"].T + w["b_enc"], w["decoder"].norm(dim=1)
    features = largest(pre * length)

    agrees(load(tmp_path), features, (features / length) @ w["decoder"] + w["b_dec"])
    assert not torch.equal(features > 0, largest(pre) > 0)


@pytest.mark.parametrize(
    "kind",
    [
        "AutoEncoder",
        "AutoEncoderNew",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder",
        "GatedAutoEncoder",
    ],
)
def test_files_of_dictionary_learning(tmp_path: Path, kind: str) -> None:
    w = drawn()
    dictionary(tmp_path, w, kind)
    centred = kind not in {"AutoEncoderNew", "JumpReluAutoEncoder"}
    read = (HIDDEN - centred * w["b_dec"]) @ w["encoder"].T
    pre = read + w["b_enc"]
    gates = {
        "AutoEncoderTopK": largest(pre),
        "BatchTopKSAE": relu_of(pre, 0.3),
        "MatryoshkaBatchTopKSAE": relu_of(pre, 0.3),
        "JumpReluAutoEncoder": relu_of(pre, w["threshold"]),
        "GatedAutoEncoder": (read + w["b_gate"] > 0) * (w["r_mag"].exp() * read + w["b_mag"]).relu(),
    }
    features = gates.get(kind, relu_of(pre))

    agrees(load(tmp_path, LAYER, WIDTH), features, features @ w["decoder"] + w["b_dec"])


def written(root: Path, name: str) -> Path:
    """A folder of each format that has rows."""
    folder = root / name
    makers: dict[str, Any] = {
        "llama_scope": scope,
        "sae_lens": lens,
        "dictionary_learning": lambda f, w: dictionary(f, w, "BatchTopKSAE"),
    }
    if name == "canonical":
        lens(root / "from", drawn())
        return save(load(root / "from"), folder)
    makers[name](folder, drawn())
    return folder


@pytest.mark.parametrize("name", ["llama_scope", "sae_lens", "dictionary_learning", "canonical"])
def test_some_rows_of_a_file_are_those_of_the_whole(tmp_path: Path, name: str) -> None:
    folder, ids = written(tmp_path, name), [31, 4, 4, 0]

    some, whole = load(folder, LAYER, WIDTH, ids=ids), load(folder, LAYER, WIDTH)

    torch.testing.assert_close(some.encode(HIDDEN), whole.encode(HIDDEN)[:, ids])
    torch.testing.assert_close(some.w_dec, whole.w_dec[ids])
    assert whole.info["format"] == name


def test_rows_of_topk_are_refused(tmp_path: Path) -> None:
    lens(tmp_path / "L3", drawn(), "topk", k=8)
    store = Store(Autoencoders(source=str(tmp_path), pattern="L{layer}"), WIDTH)

    with pytest.raises(ValueError, match="TopK"):
        store.rows(LAYER, [1])


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_what_is_saved_is_read_again_as_the_same(tmp_path: Path, architecture: str) -> None:
    lens(tmp_path, drawn(), architecture, k=8)
    sae = load(tmp_path)
    for again in (load(save(sae, tmp_path / "own")), load(save_sae_lens(sae, tmp_path / "lens", "some model"))):
        torch.testing.assert_close(again.encode(HIDDEN), sae.encode(HIDDEN))
        torch.testing.assert_close(again.decode(again.encode(HIDDEN)), sae.decode(sae.encode(HIDDEN)))
        torch.testing.assert_close(again.kappa, sae.kappa)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"metadata": {"hook_name": "blocks.4.hook_resid_post"}}, "behind block 4, asked for as layer 3"),
        ({"metadata": {"hook_name": "blocks.3.hook_mlp_out"}}, "hook_mlp_out"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"architecture": "temporal"}, "'temporal' has no canonical form"),
    ],
)
def test_what_has_no_place_here_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    lens(tmp_path, drawn(), **more)
    with pytest.raises(FormatError, match=said):
        load(tmp_path, LAYER)


def test_what_enters_the_next_block_is_what_leaves_this_one(tmp_path: Path) -> None:
    lens(tmp_path, drawn(), metadata={"hook_name": f"blocks.{LAYER + 1}.hook_resid_pre"})
    assert load(tmp_path, LAYER).layer == LAYER


def test_a_threshold_that_was_never_set_is_an_error(tmp_path: Path) -> None:
    dictionary(tmp_path, drawn(), "BatchTopKSAE", threshold=-1.0)
    with pytest.raises(FormatError, match="negative"):
        load(tmp_path)


def test_another_width_and_another_folder_are_errors(tmp_path: Path) -> None:
    lens(tmp_path / "L3", drawn())
    with pytest.raises(FormatError, match="width 13"):
        load(tmp_path / "L3", LAYER, 13)
    with pytest.raises(FormatError, match="found none of them"):
        load(tmp_path)
    with pytest.raises(FormatError, match="no folder 'L4'"):
        folder_of(Autoencoders(source=str(tmp_path), pattern="L{layer}"), 4)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    lens(tmp_path, drawn())
    path = tmp_path / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="sae_weights"):
        load(tmp_path)


def test_a_store_keeps_what_was_used_last_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in range(3):
        lens(tmp_path / f"L{layer}", drawn(), metadata={"hook_name": f"blocks.{layer}.hook_resid_post"})
    size = load(tmp_path / "L0").n_bytes / 1e9
    settings = Autoencoders(source=str(tmp_path), pattern="L{layer}", cpu_budget_gb=2.5 * size)
    store, read = Store(settings, WIDTH), list[int]()
    reading = store._read

    def counted(layer: int, ids: Any = None) -> SAE:
        read.append(layer)
        return reading(layer, ids)

    monkeypatch.setattr(store, "_read", counted)
    for layer in (0, 1, 0, 2, 0, 1):
        assert store.sae(layer).layer == layer
        assert store.in_memory.n_bytes <= 2.5 * size * 1e9
    assert read == [0, 1, 2, 1]
    assert store.rows(1, [2]).d_sae == 1
    assert read == [0, 1, 2, 1], "a layer that is held is not read for its rows"

    small = settings.model_copy(update={"cpu_budget_gb": 0.5 * size})
    with pytest.raises(FormatError, match="cpu_budget_gb"):
        Store(small, WIDTH).sae(0)
    assert Store(small, WIDTH).rows(0, [1, 2]).d_sae == 2


def test_weights_in_bfloat16_are_held_in_half_of_the_bytes(tmp_path: Path) -> None:
    lens(tmp_path / "L3", drawn())
    sizes = [
        Store(Autoencoders(source=str(tmp_path), pattern="L{layer}", dtype=dtype), WIDTH).sae(3).n_bytes
        for dtype in ("float32", "bfloat16")
    ]
    assert sizes[0] == 2 * sizes[1]


def test_info_says_where_it_is_from(tmp_path: Path) -> None:
    scope(tmp_path, drawn())
    info = load(tmp_path).info
    assert info["kind"] == "jumprelu"
    assert info["nominal_l0"] == 8
    assert info["weights_bytes"] == (tmp_path / "checkpoints/final.safetensors").stat().st_size
    json.dumps(info)
