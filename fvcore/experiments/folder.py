"""A run's folder: how files in it are named, who may write in it, and that results of different settings never mix."""

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore import names
from fvcore.experiments.errors import FolderInUse, OtherSettings
from fvcore.formats import (
    make_folder,
    sha256_file,
    write_bytes,
    write_csv,
    write_json,
    write_jsonl,
    write_pt,
    write_text,
    writing,
)

LOCK = ".lock"
OUT = "--out"
"""How most commands are told where a run's folder is."""

UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    ".json": write_json, ".jsonl": write_jsonl, ".csv": lambda path, rows: write_csv(path, list(rows[0]), rows),
    ".pt": write_pt, ".png": write_bytes, ".log": write_text,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Folder:
    """Files are named relative to `root`, so that what is written does not depend on where it is written."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return names.below(self.root, name)

    def write(self, files: Mapping[str, Any]) -> list[Path]:
        """Write each file as its suffix says, in order; returns them. A table's columns are those of its first row."""
        for name, value in files.items():
            WRITERS[Path(name).suffix](self / name, value)
        return [self / name for name in files]

    def names(self, pattern: str) -> list[str]:
        """Files below the root that match, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))

    def digests(self, files: Iterable[str]) -> dict[str, str]:
        """Name -> sha256, of the files that are there."""
        return {name: sha256_file(self / name) for name in files if (self / name).is_file()}

    def remove_unfinished(self, pattern: str = "**/.*") -> None:
        """Files that a killed process was still writing: they bear the name of the file to be and eight characters."""
        for path in self.root.glob(pattern):
            if UNFINISHED.fullmatch(path.name) and path.is_file():
                path.unlink()


@contextmanager
def locked(root: Path, option: str = OUT) -> Iterator[None]:
    """Hold a run's folder while it is written; raises FolderInUse, naming who holds it, and the `option` of another folder.

    The system gives the lock back when its process ends, in whatever way. Where a file system knows no locks, nothing is
    held: to run is better than to refuse then.
    """
    make_folder(root)
    path = root / LOCK
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(root, descriptor, option) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
            raise _in_use(root, descriptor, option)  # it was given back, and taken by another, in between
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: whoever opened it before sees that it is gone
    finally:
        os.close(descriptor)


def _in_use(root: Path, descriptor: int, option: str) -> FolderInUse:
    holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
    return FolderInUse(f"{root} is being written by {holder}: wait for it to end, or use another {option}")


def require_same(where: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises OtherSettings naming each setting that differs."""
    refuse_others(where, differences(before, after))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is {before.get(name)!r}, now {after.get(name)!r}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def refuse_others(where: Path, different: Sequence[str], option: str = OUT) -> None:
    """option: by which a command is given another folder"""
    if different:
        raise OtherSettings(
            f"{where} holds results of other settings: {'; '.join(different)}. Results of different settings are never "
            f"mixed: use another {option}, or remove the folder"
        )
