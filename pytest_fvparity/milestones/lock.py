"""The lock profile: what a plan fixes, and what it takes where nothing else is said. A YAML file, shipped or one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from fvcore.formats import FormatError, read_yaml, validated
from fvcore.trials import Meta, TemplatePart

SHIPPED = {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}


class Locked(FormatError):
    """A run differs from its lock profile."""


class _LockPart(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Fixed(_LockPart):
    """Fields that a run must not change."""

    seed: int
    n_shots: int
    n_trials: int
    prefixes: TemplatePart
    separators: TemplatePart
    reference_profile: str


class Defaults(_LockPart):
    n_top_heads: int
    token_class_idx: int
    edit_layer: int
    max_trials: int


class Lock(_LockPart):
    name: str
    locked: Fixed
    defaults: Defaults

    @classmethod
    def load(cls, name: str) -> Lock:
        """A shipped profile by name, or a file. Raises FormatError naming the field that is wrong."""
        path = SHIPPED.get(name, Path(name).expanduser())
        if not path.is_file():
            raise FormatError(f"--profile {name}: no such file, and none ships under that name ({', '.join(SHIPPED)})")
        return validated(cls, read_yaml(path), path, "a lock profile")

    def require(self, meta: Meta, n_trials: int, reference_profile: str) -> None:
        """Refuse trials or a target rule of another plan, naming every field that differs."""
        beside = {"n_trials": n_trials, "reference_profile": reference_profile}
        found = {name: beside.get(name, getattr(meta, name, None)) for name in Fixed.model_fields}
        wrong = [
            f"{name}: {_shown(wanted)} is locked, found {_shown(found[name])}"
            for name, wanted in self.locked
            if found[name] != wanted
        ]
        if wrong:
            raise Locked(
                f"profile {self.name} refuses this run: {'; '.join(wrong)}. Another value is another plan, whose results "
                "are not comparable; give that plan a profile of its own (--profile FILE)"
            )


def _shown(value: Any) -> str:
    return str(value.model_dump()) if isinstance(value, BaseModel) else repr(value)
