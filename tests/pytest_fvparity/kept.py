"""A rig whose failures are kept in files, as a run with --fv-bundle keeps them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from pytest_fvparity.bundle.keeping import Keeper
from pytest_fvparity.parity.checks import ParityRun
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.selftest.rig import Rig


@dataclass(frozen=True)
class Kept(Rig):
    folder: Path = Path()

    @classmethod
    def of(cls, rig: Rig, folder: Path) -> Kept:
        return cls(**{field.name: getattr(rig, field.name) for field in fields(Rig)}, folder=folder)

    def run(self, candidate: Implementation, repeat: int = 1) -> ParityRun:
        keep = Keeper(self.folder, self.trials, self.profile, self.profile, "planted")
        return replace(super().run(candidate, repeat), keep=keep)

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.safetensors"))
