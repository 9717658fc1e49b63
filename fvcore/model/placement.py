"""How a model is loaded: dtype, device or device map, quantisation. Nothing is cast or quantised unless it is asked for.

What is asked for is an option, else a default that a user's spec carries, else fp32 on the CPU without quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from fvcore.model.spec import ModelError, ModelSpec

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
QUANTS = ("none", "8bit", "4bit")
FOR_PARITY = "use cpu, fp32, quant none for parity"


@dataclass(frozen=True)
class Placement:
    """What was asked for, resolved: `device_map` takes the place of `device` where there is one."""

    dtype: str
    device: str
    device_map: str | Mapping[str, Any] | None
    quant: str

    @classmethod
    def of(
        cls,
        spec: ModelSpec | None,
        dtype: str | None,
        device: str | None,
        device_map: str | Mapping[str, Any] | None,
        quant: str | None,
    ) -> Placement:
        """Option, else the spec's default, else the library's; `auto` is the first CUDA device where there is one.

        Raises ModelError where this machine cannot.
        """
        if device_map is not None and device is not None:
            raise ModelError(
                f"device {device!r} and device_map {device_map!r} are two answers to one question: give one"
            )
        if device is None and device_map is None and spec is not None:
            device_map = spec.device_map
        placement = cls(
            dtype or (spec and spec.dtype) or "fp32",
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device or "cpu",
            device_map,
            quant or (spec and spec.quantization) or "none",
        )
        placement._require()
        return placement

    def _require(self) -> None:
        for what, value, known in (("dtype", self.dtype, DTYPES), ("quant", self.quant, QUANTS)):
            if value not in known:
                raise ModelError(f"unknown {what} {value!r}; expected one of {', '.join(known)}")
        if self.quant != "none":
            _require_package("bitsandbytes", f"quant {self.quant}")
            _require_package("accelerate", f"quant {self.quant}")
            if not torch.cuda.is_available():
                raise ModelError(f"quant {self.quant} needs a CUDA device and this machine has none; {FOR_PARITY}")
            if self.device_map is None and self.device == "cpu":
                raise ModelError(f"quant {self.quant} runs on a CUDA device, and device is cpu: ask for cuda or auto")
        if self.device_map is not None:
            _require_package("accelerate", f"device_map {self.device_map!r}")

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is given; without a `device_map` the loaded model is still to be put on `device`."""
        given: dict[str, Any] = {"dtype": DTYPES[self.dtype]}
        if self.quant != "none":
            from transformers import BitsAndBytesConfig

            four = {
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": given["dtype"],
            }
            how = {"load_in_8bit": True} if self.quant == "8bit" else {"load_in_4bit": True, **four}
            given["quantization_config"] = BitsAndBytesConfig(**how)
        if self.device_map is not None or self.quant != "none":
            # Quantised weights are made where they will lie; they cannot be moved there afterwards.
            given["device_map"] = {"": self.device} if self.device_map is None else self.device_map
        return given

    @property
    def advice(self) -> str:
        """What to ask for instead, where it is not that already."""
        asked = (self.dtype, self.device, self.device_map, self.quant)
        return "" if asked == ("fp32", "cpu", None, "none") else f"; {FOR_PARITY}"

    def __str__(self) -> str:
        where = f"device {self.device}" if self.device_map is None else f"device_map {self.device_map}"
        return f"dtype {self.dtype}, quant {self.quant}, {where}"


def _require_package(package: str, what: str) -> None:
    if find_spec(package) is None:
        raise ModelError(f"{what} needs {package}, which is not installed: `pip install {package}`; {FOR_PARITY}")


def quant_of(config: Any) -> str:
    """What a loaded model's config says of its weights: none, 8bit, 4bit, or the name of another method."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return "none"
    said = found if isinstance(found, Mapping) else vars(found)
    for name in QUANTS[1:]:
        if said.get(f"load_in_{name}") or said.get(f"_load_in_{name}"):
            return name
    method = said.get("quant_method")
    return str(getattr(method, "value", method) or "quantised")
