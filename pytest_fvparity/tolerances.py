"""Which tolerance a leaf is compared with: `tolerances.yaml`, or the user's file in its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fvcore.artifacts import Artifact
from fvcore.compare import EXACT, Tolerance
from fvcore.formats import FormatError, read_yaml
from pytest_fvparity.implementation import CHECK_KEYS

DEFAULTS = Path(__file__).with_name("tolerances.yaml")
HOOK = "hook pytest_fvparity_tolerances"


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

    @field_validator("leaf", "dtype", "device")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
        return value

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
    """The rules in force, each with its name, for one dtype and device."""

    rules: tuple[tuple[str, Rule], ...]
    dtype: str
    device: str
    # Where rules come from, if not from the defaults alone.
    sources: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path | None, added: Sequence[Mapping[str, Any]], dtype: str, device: str) -> Tolerances:
        """The rules that hooks added come first, then those of `path`, or the defaults."""
        hooks = _named(HOOK, {"rules": list(added)})
        rules = _named("default" if path is None else path.name, read_yaml(path or DEFAULTS))
        sources = ((HOOK,) if hooks else ()) + ((path.name,) if path else ())
        return cls((*hooks, *rules), dtype, device, sources)

    def of(self, key: str) -> Callable[[str], Tolerance]:
        """leaf -> tolerance, for one check key; a leaf's trial key is not part of its name here."""

        def tolerance_of(leaf: str) -> Tolerance:
            short = leaf.rpartition("/")[2]
            for name, rule in self.rules:
                if rule.fits(key, short, self.dtype, self.device):
                    return rule.tolerance(name)
            return EXACT

        return tolerance_of

    def table(self, key: str, artifact: Artifact) -> list[dict[str, Any]]:
        """What each numeric leaf of an artifact is compared with: one row a leaf name, trials aside."""
        numeric = [leaf for leaf, value in artifact.items() if isinstance(value, float) or hasattr(value, "dtype")]
        names = dict.fromkeys(leaf.rpartition("/")[2] for leaf in numeric)
        return [{"leaf": name, **asdict(self.of(key)(name))} for name in names]


def _named(source: str, value: Any) -> list[tuple[str, Rule]]:
    try:
        rules = _File.model_validate(value).rules
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the top level"
        raise FormatError(f"{source}: {place}: {problem['msg'].lower()}") from None
    for number, rule in enumerate(rules, start=1):
        if rule.key not in CHECK_KEYS:
            known = ", ".join(CHECK_KEYS)
            raise FormatError(f"{source}: rule {number}: unknown key {rule.key!r}; expected one of {known}")
    return [(f"{source} rule {number}", rule) for number, rule in enumerate(rules, start=1)]
