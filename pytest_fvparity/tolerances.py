"""Which tolerance a leaf is compared with: `tolerances.yaml`, or the user's file in its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fvcore.compare import EXACT, Tolerance
from fvcore.formats import FormatError, read_yaml
from pytest_fvparity.implementation import CHECK_KEYS

DEFAULTS = Path(__file__).with_name("tolerances.yaml")


class Rule(BaseModel):
    """One row. `leaf`, `dtype` and `device` are regular expressions that must fit wholly; absent ones fit all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    leaf: str = ".*"
    dtype: str = ".*"
    device: str = ".*"
    atol: float = Field(0.0, ge=0, allow_inf_nan=False)
    rtol: float = Field(0.0, ge=0, allow_inf_nan=False)
    of_max: float = Field(0.0, ge=0, allow_inf_nan=False)
    of_norm: float = Field(0.0, ge=0, allow_inf_nan=False)

    def fits(self, key: str, leaf: str, dtype: str, device: str) -> bool:
        pairs = ((self.leaf, leaf), (self.dtype, dtype), (self.device, device))
        return self.key == key and all(re.fullmatch(pattern, value) for pattern, value in pairs)

    def tolerance(self, name: str) -> Tolerance:
        return Tolerance(self.rtol, self.atol, self.of_max, self.of_norm, rule=name)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rules: list[Rule]


@dataclass(frozen=True)
class Tolerances:
    """The rules in force, for one dtype and device."""

    rules: tuple[Rule, ...]
    source: str
    dtype: str
    device: str

    @classmethod
    def read(cls, path: Path | None, dtype: str, device: str) -> Tolerances:
        file = path or DEFAULTS
        try:
            rules = _File.model_validate(read_yaml(file)).rules
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "the top level"
            raise FormatError(f"{file}: {place}: {problem['msg'].lower()}") from None
        for number, rule in enumerate(rules, start=1):
            if rule.key not in CHECK_KEYS:
                raise FormatError(
                    f"{file}: rule {number}: unknown key {rule.key!r}; expected one of {', '.join(CHECK_KEYS)}"
                )
        return cls(tuple(rules), file.name, dtype, device)

    def of(self, key: str) -> Callable[[str], Tolerance]:
        """leaf -> tolerance, for one check key; a leaf's trial key is not part of its name here."""

        def tolerance_of(leaf: str) -> Tolerance:
            name = leaf.rpartition("/")[2]
            for number, rule in enumerate(self.rules, start=1):
                if rule.fits(key, name, self.dtype, self.device):
                    return rule.tolerance(f"{self.source} rule {number}")
            return EXACT

        return tolerance_of
