"""A sparse autoencoder in canonical form, whatever files it came from.

It reads the residual stream as it is, its decoder rows have length 1, and each feature has a threshold. So a feature's
activation is the length that it adds to the residual stream, and activations of different layers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SAE:
    """w_enc (d_model, feature), b_enc (feature,), w_dec (feature, d_model), b_dec (d_model,), threshold (feature,)

    A feature is active above its threshold, and where there is `k`, if it also is among the `k` of a token that are largest
    in the units of the files, or with `in_length` in canonical ones. kappa (feature,): a value in the units of the files times kappa is a canonical one.
    info: where it is from: format, units, gating, digests of its files
    """

    layer: int
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    threshold: Tensor
    kappa: Tensor
    k: int | None = None
    in_length: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def d_sae(self) -> int:
        return len(self.w_dec)

    def pre(self, hidden: Tensor) -> Tensor:
        """(..., d_model) -> activations before the gate (..., feature), in the autoencoder's own dtype."""
        return hidden.to(self.w_enc.dtype) @ self.w_enc + self.b_enc

    def encode(self, hidden: Tensor) -> Tensor:
        """(..., d_model) -> (..., feature)."""
        return self.gate(self.pre(hidden))

    def gate(self, pre: Tensor) -> Tensor:
        """(..., feature) -> (..., feature): 0 where a feature is not active."""
        active = pre > self.threshold
        if self.k is not None:
            own = torch.where(active, pre if self.in_length else pre / self.kappa, -torch.inf)
            active = active & torch.zeros_like(active).scatter(-1, own.topk(self.k, dim=-1).indices, True)
        return torch.where(active, pre, 0)

    def decode(self, features: Tensor) -> Tensor:
        """(..., feature) -> (..., d_model)."""
        return features @ self.w_dec + self.b_dec

    def rows(self, ids: Tensor) -> SAE:
        """The autoencoder of these features only (feature,). With `k` there is none: which are active depends on all."""
        if self.k is not None:
            raise no_rows()
        picked: dict[str, Any] = {name: getattr(self, name)[ids] for name in ("b_enc", "w_dec", "threshold", "kappa")}
        return replace(self, w_enc=self.w_enc[:, ids], **picked)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SAE:
        return self._each(lambda x: x.to(device=device, dtype=dtype))

    def pinned(self) -> SAE:
        """In memory that a device can read while it computes."""
        return self._each(Tensor.pin_memory)

    @property
    def n_bytes(self) -> int:
        return sum(x.nbytes for x in vars(self).values() if isinstance(x, Tensor))

    def _each(self, change: Callable[[Tensor], Tensor]) -> SAE:
        changed: dict[str, Any] = {name: change(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **changed)


def no_rows() -> ValueError:
    return ValueError("a TopK autoencoder has no rows of its own: which features are active depends on all of them")
