"""Which tolerance a leaf is compared with: `tolerances.yaml`, or the user's file in its place.

The defaults are a floor: where the golden's own noise allows more, that counts. What a user says is never widened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator
from torch import Tensor

from fvcore.artifacts import Artifact
from fvcore.compare import EXACT, Tolerance
from fvcore.formats import FormatError, read_yaml, validated
from fvcore.profile import NOT_RECORDED
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.parity.noise import Noise, is_number

DEFAULTS = Path(__file__).with_name("tolerances.yaml")
DEFAULT = "default"
HOOK = "hook pytest_fvparity_tolerances"


class Rule(BaseModel, extra="forbid", frozen=True):
    """One row. `leaf`, `dtype`, `device` and `processor` are regular expressions that must fit wholly; absent ones fit all.

    processor: the golden's beside this run's, `same`, `other` or `not recorded`
    """

    key: str
    leaf: str = ".*"
    dtype: str = ".*"
    device: str = ".*"
    processor: str = ".*"
    atol: float = Field(0.0, ge=0, allow_inf_nan=False)
    rtol: float = Field(0.0, ge=0, allow_inf_nan=False)
    of_max: float = Field(0.0, ge=0, allow_inf_nan=False)
    of_norm: float = Field(0.0, ge=0, allow_inf_nan=False)

    @field_validator("leaf", "dtype", "device", "processor")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
        return value

    def fits(self, key: str, **found: str) -> bool:
        return self.key == key and all(re.fullmatch(getattr(self, name), value) for name, value in found.items())


class _RuleFile(BaseModel, extra="forbid"):
    rules: list[Rule]


@dataclass(frozen=True)
class Tolerances:
    """The rules in force, each with its name, for one dtype and device, and a golden of this processor or another."""

    rules: tuple[tuple[str, Rule], ...]
    dtype: str
    device: str
    # Where rules come from, if not from the defaults alone.
    sources: tuple[str, ...] = ()
    # Of the golden; it widens the default rules alone.
    noise: Noise = field(default_factory=Noise)
    processor: str = NOT_RECORDED
    # Leaf -> the one whose rules and noise it is held to, where that is another.
    held_to: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        path: Path | None,
        added: Sequence[Mapping[str, Any]],
        dtype: str,
        device: str,
        noise: Noise | None = None,
        processor: str = NOT_RECORDED,
    ) -> Tolerances:
        """The rules that hooks added come first, then those of `path`, or the defaults."""
        hooks = _named(HOOK, {"rules": list(added)})
        rules = _shipped() if path is None else _named(path.name, read_yaml(path, as_text=True))
        sources = ((HOOK,) if hooks else ()) + ((path.name,) if path else ())
        measured = noise if noise is not None and path is None else Noise()
        return cls((*hooks, *rules), dtype, device, sources, measured, processor)

    def of(self, key: str) -> Callable[[str], Tolerance]:
        """leaf -> tolerance, for one check key; a leaf's trial key is not part of its name here."""

        def tolerance_of(leaf: str) -> Tolerance:
            short = leaf.rpartition("/")[2]
            short = self.held_to.get(short, short)
            for name, rule in self.rules:
                if rule.fits(key, leaf=short, dtype=self.dtype, device=self.device, processor=self.processor):
                    measured = None if name.startswith(HOOK) else self.noise.tolerance(key, short)
                    return Tolerance(rule.rtol, rule.atol, rule.of_max, rule.of_norm, name, measured)
            return EXACT

        return tolerance_of

    def table(self, key: str, artifact: Artifact) -> list[dict[str, Any]]:
        """What each numeric leaf of an artifact is compared with: one row a leaf name, trials aside."""
        return [{"leaf": name, **_row(self.of(key)(name), values)} for name, values in _by_name(artifact).items()]

    def proving_nothing(self, key: str, artifact: Artifact) -> list[str]:
        """The leaf names whose tolerance is as large as the values themselves: zeros would pass there."""
        return [name for name, values in _by_name(artifact).items() if _zeros_pass(self.of(key)(name), values)]


def _by_name(artifact: Artifact) -> dict[str, list[Tensor]]:
    """The numeric leaves by name, trials folded, in float64 on the CPU."""
    import torch

    by_name: dict[str, list[Tensor]] = {}
    for leaf, value in artifact.items():
        if is_number(value):
            numbers = torch.as_tensor(value).detach().double().cpu()
            by_name.setdefault(leaf.rpartition("/")[2], []).append(numbers)
    return by_name


def _zeros_pass(tolerance: Tolerance, values: Sequence[Tensor]) -> bool:
    sizes = [value.abs() for value in values]
    allowed = (bool((size <= tolerance.allowed(size)).all()) for size in sizes)
    return any(bool(size.any()) for size in sizes) and all(allowed)


def _row(tolerance: Tolerance, values: Sequence[Tensor]) -> dict[str, Any]:
    """The numbers in force for leaves of one name, and the rule that gave them."""
    shown = tolerance.own
    if (measured := tolerance.measured) is not None:
        widened = [tolerance.widened(value) for value in values]
        if all(bool(where.all()) for where in widened):
            shown = measured
        elif any(bool(where.any()) for where in widened):
            shown = replace(shown, rule=f"{shown.rule}; {measured.rule} ({measured.atol:.3g}) where that is larger")
    return {name: getattr(shown, name) for name in ("rtol", "atol", "of_max", "of_norm", "rule")}


@cache
def _shipped() -> list[tuple[str, Rule]]:
    return _named(DEFAULT, read_yaml(DEFAULTS, as_text=True))


def _named(source: str, value: Any) -> list[tuple[str, Rule]]:
    rules = validated(_RuleFile, value, source).rules
    for number, rule in enumerate(rules, start=1):
        if rule.key not in CHECK_KEYS:
            known = ", ".join(CHECK_KEYS)
            raise FormatError(f"{source}: rule {number}: unknown key {rule.key!r:.80}; expected one of {known}")
    return [(f"{source} rule {number}", rule) for number, rule in enumerate(rules, start=1)]
