"""Names that become a part of a path. They come from files that anybody may have written, so each is made here or refused.

A part lies where it is joined: it is no `..`, holds no slash, can be printed, and is as short as file systems ask.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from urllib.parse import quote

from fvcore.formats import FormatError, sha256

MOST_BYTES = 200
"""Of a part: file systems take 255, and a name gets endings."""


def is_part(name: str) -> bool:
    """Whether a name is one part of a path."""
    plain = name not in {"", ".", ".."} and name.isprintable() and not set("/\\") & set(name)
    return plain and len(name.encode()) <= MOST_BYTES


def part(name: str, what: str, raises: type[FormatError] = FormatError) -> str:
    """The name, if it is one part of a path; raises an error that says `what` it is of."""
    if not is_part(name):
        raise raises(
            f"{what} {name!r:.80} cannot name a file or a folder: expected 1 to {MOST_BYTES} bytes that can be printed, "
            "without a slash or a backslash, and neither . nor .."
        )
    return name


def made(name: str) -> str:
    """A part of a path for any name: itself, or with what cannot stand there written as in a URL."""
    if is_part(name):
        return name
    written = quote(name.encode(errors="surrogatepass"), safe=" ").replace(".", "%2E")
    return written[:MOST_BYTES] or "%"


def word_of_directory(name: str) -> str:
    """What tells a model's directory from another of its name; nothing of a model that is known by its name alone."""
    path = Path(name).expanduser()
    return f"{sha256(str(path.resolve()).encode()):.8}" if name and path.is_dir() else ""


def of_model(name: str) -> str:
    """A model's name, which may be an id with its owner, as a part of a path; of a directory its own name and a word that no
    other directory of that name has."""
    path = Path(name).expanduser()
    if "/" in name and is_part(path.name) and path.is_dir():
        return made(f"{path.resolve().name}_{word_of_directory(name)}")
    return made(name.replace("/", "_").replace(":", "_"))


def names_a_folder(name: str) -> bool:
    """Whether a folder of this name is taken for none of a run's own, on any system."""
    return is_part(name) and name[0] not in "._" and ":" not in name


def below(root: Path, name: str) -> Path:
    """A file under `root` by a relative name, which may have several parts; raises FormatError where it lies elsewhere."""
    pure = PurePath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise FormatError(f"{name!r:.80}: expected the name of a file below {root}")
    return root / pure
