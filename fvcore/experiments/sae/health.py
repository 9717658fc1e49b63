"""Whether an autoencoder is what it is taken for: read off its weights, and off what it makes of residual streams.

Most ways of loading one wrongly give numbers and no error. What gives them away is that another stream than its own is
explained better (the one of another layer, or one that was normalised), or that far too many features are active.
"""

from collections.abc import Iterator, Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fvcore.experiments.sae.autoencoder import SAE

MAX_FVU = 0.6
"""Beyond it the model, or the layer, is another one; published autoencoders leave .1 to .4."""
MOST = 10
"""Times as many active features as it was trained for. A gate that is left out gives 20 times as many and more."""
CLEARLY = 0.95
"""Times what is left unexplained: neighbours are much alike, and nothing but the autoencoder differs in this comparison."""
UNIT = 1e-3
"""What float16 and bfloat16 weights may add to a length of 1, and more."""
SPARSE = {"topk", "AutoEncoderTopK"}
"""Kinds whose files hold no threshold, so that without `k` every positive feature is active."""


class Health(BaseModel):
    """An autoencoder on its stream; what needs a stream is None without one.

    l0: mean number of active features of a token     fvu: fraction of variance unexplained
    dec_norm: shortest and longest decoder row     best: the stream that it explains best, by name
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    layer: int
    d_in: int
    d_sae: int
    k: int | None
    dec_norm: tuple[float, float]
    kappa: tuple[float, float]
    threshold: tuple[float, float]
    nominal_l0: float | None
    l0: float | None = None
    fvu: float | None = None
    best: str | None = None
    findings: list[str] = []


def health(sae: SAE, stream: Tensor | None = None, others: Mapping[str, Tensor] | None = None) -> Health:
    """stream (token, d_model): what leaves its block, special tokens left out     others: name -> what it may be taken from."""
    told = Health(
        layer=sae.layer,
        d_in=len(sae.w_enc),
        d_sae=sae.d_sae,
        k=sae.k,
        dec_norm=_ends(sae.w_dec.norm(dim=1)),
        kappa=_ends(sae.kappa),
        threshold=_ends(sae.threshold),
        nominal_l0=sae.info.get("nominal_l0"),
    )
    if stream is not None:
        features = sae.encode(stream)
        own = fvu(stream, sae.decode(features))
        seen = {f"layer {sae.layer}": own} | {
            name: fvu(x, sae.decode(sae.encode(x))) for name, x in (others or {}).items()
        }
        l0 = float((features > 0).sum(-1).float().mean())
        told = told.model_copy(update={"l0": l0, "fvu": own, "best": min(seen, key=lambda name: seen[name])})
    return told.model_copy(update={"findings": list(_findings(sae, told))})


def _findings(sae: SAE, told: Health) -> Iterator[str]:
    short, long = told.dec_norm
    if max(abs(short - 1), abs(long - 1)) > UNIT:
        yield f"decoder rows are {short:.3g} to {long:.3g} long, expected 1: their lengths are not folded into the encoder"
    if told.threshold[0] < 0:
        yield f"the least threshold is {told.threshold[0]:.3g}: it was never set, and every positive feature is active"
    if sae.k is None and sae.info.get("kind") in SPARSE:
        yield "its files are of a TopK autoencoder, and it is read without k: every positive feature is active"
    if told.fvu is None or told.l0 is None:
        return
    if told.best != f"layer {told.layer}":
        yield f"it explains {told.best} better than what leaves block {told.layer}: it was trained on that, or is of another layer"
    if told.fvu > MAX_FVU:
        yield f"{told.fvu:.2f} of the variance is left unexplained, expected at most {MAX_FVU}: another model, layer or scale"
    if told.l0 < 1 or told.l0 > MOST * (told.nominal_l0 or torch.inf):
        yield (
            f"{told.l0:.1f} features are active at a token, expected 1 to {MOST} times the {told.nominal_l0 or 'number'} that it "
            "was trained for: its gate is not the one of its files"
        )


def shifted(stream: Tensor, layer: int, saes: Mapping[int, SAE]) -> list[str]:
    """Whether another layer's autoencoder explains a layer's stream (token, d_model) better than its own."""
    left = {at: fvu(stream, sae.decode(sae.encode(stream))) for at, sae in saes.items()}
    best = min(left, key=lambda at: left[at])
    if left[best] >= CLEARLY * left[layer]:
        return []
    return [
        f"its stream is explained better by the autoencoder of layer {best} ({left[best]:.3g} left unexplained) than by its own "
        f"({left[layer]:.3g}): layers are shifted, or the model is another one"
    ]


def _ends(values: Tensor) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def fvu(stream: Tensor, made: Tensor) -> float:
    """Fraction of variance unexplained: 0 for a stream (token, d_model) itself, 1 for its mean."""
    exact = stream.float()
    return float((exact - made.float()).square().sum() / (exact - exact.mean(0)).square().sum())
