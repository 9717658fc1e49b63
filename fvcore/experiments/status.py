"""What has become of each unit of a run, with which settings, and the digests of its files.

pending -> skipped | running -> completed | failed. A status is written whole or not at all, before the next unit starts.
`completed` is a claim until it names every file that it must have, and each is there with its digest; a folder of other
settings is refused.
"""

from dataclasses import dataclass
from fnmatch import filter as matching
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from fvcore.experiments.folder import Folder
from fvcore.formats import digest, read_json, validated, write_json
from fvcore.provenance import now

State: TypeAlias = Literal["pending", "running", "completed", "failed", "skipped"]
Kind = TypeVar("Kind", bound="UnitStatus")


class UnitStatus(BaseModel):
    """settings: all that the results depend on     cause, step: of a failure
    files: name in the unit's folder -> sha256, once completed

    An experiment's own says in which `FILE` of a unit's folder it stands, and in which order (`KEYS`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    FILE: ClassVar[str] = "status.json"
    KEYS: ClassVar[tuple[str, ...]] = ()
    UNSEALED: ClassVar[tuple[str, ...]] = ()  # files that must be there, and have no digest

    status: State
    created_at: str
    updated_at: str
    reason: str = ""
    cause: str | None = None
    step: str | None = None
    settings_digest: str
    settings: dict[str, Any]
    files: dict[str, str] = {}

    @classmethod
    def read(cls: type[Kind], folder: Folder) -> Kind | None:
        path = folder / cls.FILE
        if not path.is_file():
            return None
        return validated(cls, read_json(path), path, "a unit's status")

    @classmethod
    def all_of(cls: type[Kind], root: Path) -> dict[str, Kind]:
        """The statuses below a run's folder by their units' folders, sorted as strings."""
        n_parts = len(Path(cls.FILE).parts)
        found = {
            path.parts[-n_parts - 1]: cls.read(Folder(path.parents[n_parts - 1])) for path in root.glob(f"*/{cls.FILE}")
        }
        return {name: one for name, one in sorted(found.items()) if one is not None}

    @classmethod
    def pending(cls: type[Kind], before: Kind | None, settings: dict[str, Any], **own: Any) -> Kind:
        """A unit's status before it runs, for the first time or again."""
        since = now() if before is None else before.created_at
        made: dict[str, Any] = {"created_at": since, "updated_at": now(), "settings": settings}
        return cls(status="pending", settings_digest=digest(settings), **made, **own)

    def write(self, folder: Folder, state: State, **changes: Any) -> None:
        """The status in another state; what belongs to one state alone is forgotten."""
        forgotten: dict[str, Any] = {"reason": "", "cause": None, "step": None, "files": {}}
        current = self.model_copy(update=forgotten | {"status": state, "updated_at": now()} | changes)
        value = current.model_dump(mode="json")
        write_json(folder / self.FILE, {key: value[key] for key in self.KEYS or value})

    def required(self) -> list[str]:
        """Files that a completed unit must name; a `*` stands for any part of a name."""
        return []

    def damage(self, folder: Folder) -> list[str]:
        """Files that a completed unit must have, or names, and that are missing or changed; empty if it is what it says."""
        there, required = folder.digests(self.files), self.required() if self.status == "completed" else []
        known = [*self.files, *(name for name in self.UNSEALED if (folder / name).is_file())]
        unnamed = [name for name in required if not matching(known, literally(name))]
        return [name for name, sha in self.files.items() if there.get(name) != sha] + unnamed


def literally(name: str) -> str:
    """A pattern in which a `*` is the only wild card: a unit's name may hold brackets."""
    return name.replace("[", "[[]").replace("?", "[?]")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a unit. `ran` is false where it was completed already; `cause` is that of a failure."""

    name: str
    status: State
    reason: str
    ran: bool = True
    cause: str | None = None
