"""How a milestone ended: what it says, and a file beside the deliverables that tells others what they may build on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from fvcore.formats import FormatError, read_json, sha256_file, validated, write_json
from fvcore.provenance import now


class NotReady(FormatError):
    """A milestone was asked for before the one it builds on passed."""


@dataclass(frozen=True)
class MilestoneOutcome:
    """Whether its criterion is met, a sentence, and its deliverables."""

    passed: bool
    message: str
    files: list[Path]


class Ended(BaseModel):
    """How a milestone ended, on which settings, and the digests of what it delivered."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    passed: bool
    message: str
    settings: dict[str, Any]
    files: dict[str, str]  # path under the root -> sha256
    ended_at: str

    @classmethod
    def of(cls, outcome: MilestoneOutcome, settings: Mapping[str, Any], root: Path) -> Ended:
        digests = {file.relative_to(root).as_posix(): sha256_file(file) for file in sorted(set(outcome.files))}
        known = {"settings": dict(settings), "files": digests, "ended_at": now()}
        return cls.model_validate({"passed": outcome.passed, "message": outcome.message, **known})


def read(path: Path) -> dict[str, Ended]:
    if not path.is_file():
        return {}
    what = "a record of milestones; remove it and run them again from M0"
    return validated(dict[str, Ended], read_json(path), path, what)


def write(path: Path, milestone: str, ended: Ended) -> None:
    known = read(path) | {milestone: ended}
    write_json(path, {name: known[name].model_dump(mode="json") for name in sorted(known)})


def require(path: Path, milestone: str, needed: str, settings: Mapping[str, Any], root: Path) -> Ended:
    """What `needed` left behind; raises NotReady where it did not pass on these settings, or its files changed."""
    ended = read(path).get(needed)
    if ended is None:
        raise NotReady(f"{milestone} builds on {needed}, which was not run here: fvparity milestone {needed.lower()}")
    if not ended.passed:
        raise NotReady(f"{milestone} builds on {needed}, which failed ({ended.message}): mend that first")
    different = [
        f"{name}: {ended.settings.get(name)} there, {value} here"
        for name, value in settings.items()
        if ended.settings.get(name) != value
    ]
    if different:
        raise NotReady(f"{milestone} builds on {needed}, which ran on other settings ({'; '.join(different)})")
    files = {name: root / name for name in ended.files}
    changed = [name for name, file in files.items() if not (file.is_file() and sha256_file(file) == ended.files[name])]
    if changed:
        raise NotReady(f"{milestone} builds on {needed}, and {changed[0]} is not what it wrote: run {needed} again")
    return ended
