"""The lock profile: what a plan fixes, and what it takes where nothing else is said. A YAML file, shipped or one's own."""

from __future__ import annotations

from pathlib import Path

from fvcore.formats import FormatError, read_yaml, validated
from fvcore.profile import Strict
from fvcore.trials.fixed import Meta, TemplatePart

SHIPPED = {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}


class Locked(FormatError):
    """A run differs from its lock profile."""


class Fixed(Strict):
    """Fields that a run must not change."""

    seed: int
    n_shots: int
    n_trials: int
    prefixes: TemplatePart
    separators: TemplatePart
    reference_profile: str


class Defaults(Strict):
    n_top_heads: int
    token_class_idx: int
    edit_layer: int
    max_trials: int


class Lock(Strict):
    name: str
    locked: Fixed
    defaults: Defaults

    @classmethod
    def load(cls, name: str) -> Lock:
        """A shipped profile by name, or a file. Raises FormatError naming the field that is wrong."""
        if not (path := SHIPPED.get(name, Path(name).expanduser())).is_file():
            raise FormatError(f"--profile {name}: no such file, and none ships under that name ({', '.join(SHIPPED)})")
        return validated(cls, read_yaml(path), path, "a lock profile")

    def require(self, meta: Meta, n_trials: int, reference_profile: str) -> None:
        """Refuse trials or a target rule of another plan, naming every field that differs."""
        found = meta.model_dump() | {"n_trials": n_trials, "reference_profile": reference_profile}
        locked = self.locked.model_dump().items()
        if wrong := [
            f"{name}: {value!r} is locked, found {found[name]!r}" for name, value in locked if found[name] != value
        ]:
            raise Locked(
                f"profile {self.name} refuses this run: {'; '.join(wrong)}. Another value is another plan, whose results "
                "are not comparable; give that plan a profile of its own (--profile FILE)"
            )
