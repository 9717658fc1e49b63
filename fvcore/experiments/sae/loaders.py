"""Autoencoders from the files that others publish, whole or some features of them, in canonical form; and into files.

Every format ends in the same formula (`canonical`), feature by feature: what differs is how tensors are named, what the
activations were multiplied with before training, and what makes a feature active.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fvcore.experiments.sae.autoencoder import SAE, no_rows
from fvcore.experiments.sae.config import Autoencoders
from fvcore.formats import (
    FormatError,
    opened_safetensors,
    read_json,
    read_pt,
    sha256_file,
    write_json,
    write_safetensors,
)

Gating: TypeAlias = Literal["own", "saelens", "relu"]
Take: TypeAlias = Callable[..., Tensor]
"""`take(name, axis)`: a tensor in fp32, its features in front; without the axis that features stand on, the whole tensor."""

Arguments: TypeAlias = dict[str, Any]


def load(
    folder: Path,
    layer: int | None = None,
    d_model: int | None = None,
    *,
    format: str = "auto",
    gating: Gating = "own",
    ids: Sequence[int] | None = None,
) -> SAE:
    """The autoencoder of a folder in canonical form, fp32, on the CPU.

    layer, d_model: what it must be of     ids: these features alone, in this order, of which alone the file is read
    gating: own, as the format means it; saelens, as SAELens gates Llama Scope; relu, every positive feature is active
    Raises FormatError for what it is not, or what has no canonical form; ValueError for some features of a TopK autoencoder.
    """
    name = found_format(folder) if format == "auto" else format
    about, weights, reader = FORMATS[name]
    facts = read_json(folder / about, strict=False)
    path = next((folder / one for one in weights if (folder / one).is_file()), None)
    if path is None:
        raise FormatError(f"{folder}: expected {' or '.join(weights)} beside {about}, found neither")
    with _read(path) as read:
        sae: SAE = reader(folder / about, facts, partial(_take, read, ids), gating)
    if sae.k is not None and ids is not None:
        raise no_rows()
    if layer is not None and layer != sae.layer:
        raise FormatError(
            f"{folder / about}: an autoencoder of the residual stream behind block {sae.layer}, asked for as layer {layer}"
        )
    if d_model is not None and d_model != len(sae.w_enc):
        raise FormatError(f"{path}: expected an autoencoder of width {d_model}, the model's, found {len(sae.w_enc)}")
    if (low := float(sae.threshold.min())) < 0:
        raise FormatError(
            f"{folder}: the least threshold is {low:g}; a negative one was never set in training, and every positive feature "
            "would be active: use a later checkpoint"
        )
    files = {"format": name, "config_sha256": sha256_file(folder / about), "weights_bytes": path.stat().st_size}
    return replace(sae, info=sae.info | files)


def found_format(folder: Path) -> str:
    """By the file that describes it. Raises FormatError where none is there."""
    for name, (about, _, _) in FORMATS.items():
        if (folder / about).is_file():
            return name
    raise FormatError(
        f"{folder}: expected the folder of an autoencoder, with one of "
        f"{', '.join(f'{about} ({name})' for name, (about, _, _) in FORMATS.items())}; found none of them"
    )


def folder_of(settings: Autoencoders, layer: int) -> Path:
    """Where a layer's files lie: in a directory, or in the local cache of the hub. Nothing is downloaded."""
    root = Path(settings.source).expanduser()
    name = settings.pattern.format(layer=layer)
    if not root.is_dir():
        root = _cached(settings.source, name)
    if not (root / name).is_dir():
        raise FormatError(
            f"{root}: no folder {name!r} (sae.pattern {settings.pattern!r}) for layer {layer}; found "
            f"{', '.join(sorted(path.name for path in root.iterdir() if path.is_dir())[:5]) or 'no folder'}"
        )
    return root / name


def _cached(repository: str, name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[f"{name}/*"], local_files_only=True))
    except Exception as error:  # of many kinds: a name that is none, a cache without it
        raise FormatError(
            f"sae.source {repository!r} is neither a directory nor in the local cache (nothing is downloaded): {error}"
        ) from None


def _read(path: Path) -> Any:
    """What reads one tensor of a file by name and index, while it is entered."""
    from contextlib import nullcontext

    if path.suffix == ".safetensors":
        return opened_safetensors(path)
    state = read_pt(path)
    return nullcontext(lambda name, index=(): _entry(path, state, name)[index])


def _entry(path: Path, state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise FormatError(f"{path}: expected a tensor {name!r}, found {', '.join(state)}")
    return state[name]


def _take(read: Callable[..., Tensor], ids: Sequence[int] | None, name: str, axis: int | None = None) -> Tensor:
    picked = axis is not None and ids is not None
    index = ((slice(None),) * (axis or 0) + (list(ids),)) if picked and ids is not None else ()
    tensor = read(name, index).float()
    return tensor if axis is None else tensor.movedim(axis, 0)


def canonical(
    layer: int,
    encoder: Tensor,
    b_enc: Tensor,
    decoder: Tensor,
    b_dec: Tensor,
    *,
    threshold: Tensor | float = 0.0,
    k: int | None = None,
    centred: bool = False,
    scale: tuple[float, float] = (1.0, 1.0),
    in_length: bool = False,
    **info: Any,
) -> SAE:
    """encoder, decoder (feature, d_model), b_enc (feature,), b_dec (d_model,), as files have them.

    centred: b_dec is taken off what is read     scale: what activations were multiplied with, where read and where written
    threshold: in the files' units; with `in_length` already of the length that a feature adds, and so is what `k` is about
    """
    s_in, s_out = scale
    length = decoder.norm(dim=1) * s_in / s_out  # of what a feature of 1 adds, in files whose input has the scale 1
    kappa = length / s_in
    bias = b_enc - encoder @ b_dec if centred else b_enc
    gate = torch.as_tensor(threshold).expand_as(kappa)
    return SAE(
        layer,
        w_enc=(encoder * length[:, None]).T.contiguous(),
        b_enc=kappa * bias,
        w_dec=torch.nn.functional.normalize(decoder, dim=1),
        b_dec=b_dec / s_out,
        threshold=(gate if in_length else gate * kappa),
        kappa=kappa,
        k=k,
        in_length=in_length,
        info=info,
    )


def _scope(path: Path, facts: Arguments, take: Take, gating: Gating) -> SAE:
    """Llama Scope: trained on activations of a mean norm, its threshold set on lengths that a feature adds."""
    require(path, facts, use_glu_encoder=False)
    encoder, b_enc, decoder = take("encoder.weight", 0), take("encoder.bias", 0), take("decoder.weight", 1)
    width = encoder.shape[1]
    b_dec = take("decoder.bias") if facts.get("use_decoder_bias", True) else torch.zeros(width)
    kind, scale = facts["act_fn"].lower(), (1.0, 1.0)
    if facts.get("norm_activation", "dataset-wise") == "dataset-wise":
        norms = facts["dataset_average_activation_norm"]
        scale = (width**0.5 / norms["in"], width**0.5 / norms["out"])
    gates: dict[str, Arguments] = {"jumprelu": {"threshold": facts.get("jump_relu_threshold", 0.0)}, "relu": {}}
    gates["topk"] = {"k": facts.get("top_k"), "in_length": facts.get("sparsity_include_decoder_norm", False)}
    gate = {"in_length": True} | _one_of(path, "act_fn", kind, gates)
    if gating == "saelens" and kind == "jumprelu":
        gate = {"threshold": gate["threshold"] * scale[0]}
    centred = bool(facts.get("apply_decoder_bias_to_pre_encoder", False))
    layer = layer_of(path, facts.get("hook_point_in"))
    return canonical(
        layer,
        encoder,
        b_enc,
        decoder,
        b_dec,
        scale=scale,
        centred=centred,
        **_gated(gate, gating),
        kind=kind,
        nominal_l0=facts.get("top_k"),
        units="activations times sqrt(d_model) over their mean norm",
    )


def _sae_lens(path: Path, facts: Arguments, take: Take, gating: Gating) -> SAE:
    require(path, facts, normalize_activations="none", reshape_activations="none")
    kind = facts.get("architecture", "standard")
    gates: dict[str, Callable[[], Arguments]] = {
        "standard": lambda: _matrices(take),
        "jumprelu": lambda: _matrices(take) | {"threshold": take("threshold", 0)},
        "topk": lambda: _matrices(take) | {"k": facts.get("k") or facts["activation_fn_kwargs"]["k"]},
        "gated": lambda: _two_gates(
            take("W_enc", 1), take("r_mag", 0), take("b_mag", 0), take("b_gate", 0), take("W_dec", 0), take("b_dec")
        ),
    }
    found = _one_of(path, "architecture", kind, gates)()
    hook = (facts.get("metadata") or {}).get("hook_name") or facts.get("hook_name")
    sae = canonical(
        layer_of(path, hook),
        **_gated(found, gating),
        centred=bool(facts.get("apply_b_dec_to_input", True)),
        kind=kind,
        nominal_l0=found.get("k"),
        units="activations as they are",
    )
    in_length = facts.get("rescale_acts_by_decoder_norm", False)  # then its features are lengths already
    return replace(sae, kappa=torch.ones_like(sae.kappa)) if in_length else sae


def _dictionary(path: Path, facts: Arguments, take: Take, gating: Gating) -> SAE:
    """dictionary_learning: six classes, of which those of JumpReLU and the newer ReLU read activations as they are."""
    trainer = facts["trainer"]
    kind, k = trainer["dict_class"], trainer.get("k")
    classes: dict[str, Callable[[], Arguments]] = {
        "AutoEncoder": lambda: _linear(take, "bias") | {"centred": True},
        "AutoEncoderNew": lambda: _linear(take, "decoder.bias"),
        "AutoEncoderTopK": lambda: _linear(take, "b_dec") | {"centred": True, "k": int(take("k"))},
        "BatchTopKSAE": lambda: _linear(take, "b_dec") | {"centred": True, "threshold": take("threshold")},
        "MatryoshkaBatchTopKSAE": lambda: _matrices(take) | {"centred": True, "threshold": take("threshold")},
        "JumpReluAutoEncoder": lambda: _matrices(take) | {"threshold": take("threshold", 0)},
        "GatedAutoEncoder": lambda: (
            _two_gates(
                take("encoder.weight", 0),
                take("r_mag", 0),
                take("mag_bias", 0),
                take("gate_bias", 0),
                take("decoder.weight", 1),
                take("decoder_bias"),
            )
            | {"centred": True}
        ),
    }
    found = _one_of(path, "dict_class", kind, classes)()
    site = trainer.get("submodule_name")
    if site is not None and not site.startswith("resid_post"):
        raise FormatError(f"{path}: expected an autoencoder of resid_post, found one of {site!r}")
    units = "activations as they are"
    return canonical(trainer["layer"], **_gated(found, gating), kind=kind, nominal_l0=k, units=units)


def _canonical(path: Path, facts: Arguments, take: Take, gating: Gating) -> SAE:
    """What `save` wrote: nothing is to be converted."""
    axes: dict[str, int | None] = {"w_enc": 1, "b_dec": None}
    tensors = {name: take(name, axes.get(name, 0)) for name in TENSORS}
    tensors["w_enc"] = tensors["w_enc"].T
    if gating == "relu":
        tensors["threshold"] = torch.zeros_like(tensors["threshold"])
    return SAE(**facts | tensors)


def _linear(take: Take, b_dec: str) -> Arguments:
    return {
        "encoder": take("encoder.weight", 0),
        "b_enc": take("encoder.bias", 0),
        "decoder": take("decoder.weight", 1),
        "b_dec": take(b_dec),
    }


def _matrices(take: Take) -> Arguments:
    return {
        "encoder": take("W_enc", 1),
        "b_enc": take("b_enc", 0),
        "decoder": take("W_dec", 0),
        "b_dec": take("b_dec"),
    }


def _two_gates(
    encoder: Tensor, r_mag: Tensor, b_mag: Tensor, b_gate: Tensor, decoder: Tensor, b_dec: Tensor
) -> Arguments:
    """One encoder that gates by one bias and measures by another is a threshold on what it measures."""
    slope = r_mag.exp()
    threshold = (b_mag - slope * b_gate).clamp(min=0)
    weights = {"encoder": encoder * slope[:, None], "b_enc": b_mag, "decoder": decoder, "b_dec": b_dec}
    return weights | {"threshold": threshold}


def _gated(found: Arguments, gating: Gating) -> Arguments:
    """With the gate that is asked for; `relu` reads a TopK autoencoder as others have misread it."""
    relu = {"threshold": 0.0, "k": None} if gating == "relu" else {}
    return found | relu | {"gating": gating}


def _one_of(path: Path, key: str, kind: str, known: Mapping[str, Any]) -> Any:
    if kind not in known:
        raise FormatError(f"{path}: {key} {kind!r} has no canonical form here; expected one of {', '.join(known)}")
    return known[kind]


def require(path: Path, facts: Mapping[str, Any], **expected: Any) -> None:
    for key, value in expected.items():
        if facts.get(key) not in (None, value):
            raise FormatError(
                f"{path}: {key} {facts[key]!r} is done anew for every token and has no canonical form, or is not folded into "
                f"the weights; expected {value!r}"
            )


def layer_of(path: Path, hook: Any) -> int:
    """The block that a hook point's stream leaves: `blocks.3.hook_resid_post` is 3, and what enters block 4 is that, too."""
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(post|pre)", str(hook))
    if not found:
        raise FormatError(f"{path}: expected a hook point such as blocks.3.hook_resid_post, found {hook!r}")
    return int(found[1]) - (found[2] == "pre")


FORMATS: dict[str, tuple[str, tuple[str, ...], Callable[[Path, Arguments, Take, Gating], SAE]]] = {
    "llama_scope": ("hyperparams.json", ("checkpoints/final.safetensors", "final.safetensors"), _scope),
    "sae_lens": ("cfg.json", ("sae_weights.safetensors",), _sae_lens),
    "dictionary_learning": ("config.json", ("ae.pt",), _dictionary),
    "canonical": ("sae.json", ("sae.safetensors",), _canonical),
}
"""Format -> the file that describes it, where its weights may lie, and who reads it."""

TENSORS = [one.name for one in fields(SAE) if one.type == "Tensor"]


def save(sae: SAE, folder: Path) -> Path:
    """Write it in canonical form."""
    about = {"layer": sae.layer, "k": sae.k, "in_length": sae.in_length, "info": sae.info}
    write_safetensors(folder / "sae.safetensors", {name: getattr(sae, name) for name in TENSORS})
    write_json(folder / "sae.json", about)
    return folder


def save_sae_lens(sae: SAE, folder: Path, model: str) -> Path:
    """Write it as SAELens reads it, in the units of the files that it came from: TopK chooses by those.

    model: the name of the model, which SAELens keeps
    """
    unit = torch.ones_like(sae.kappa) if sae.in_length else sae.kappa
    kind = "topk" if sae.k is not None else "jumprelu"
    tensors = {
        "W_enc": sae.w_enc / unit,
        "b_enc": sae.b_enc / unit,
        "W_dec": sae.w_dec * unit[:, None],
        "b_dec": sae.b_dec,
    }
    own: Arguments = {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if sae.k is None:
        own, tensors["threshold"] = {}, sae.threshold / unit
    about = {
        "architecture": kind,
        "d_in": len(sae.w_enc),
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": model, "hook_name": f"blocks.{sae.layer}.hook_resid_post"},
    }
    write_safetensors(folder / "sae_weights.safetensors", tensors)
    write_json(folder / "cfg.json", about | own)
    return folder
