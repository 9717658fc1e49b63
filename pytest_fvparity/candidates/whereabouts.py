"""Where a candidate is written: for each check key the file and the line at which a reader finds the method that answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_fvparity.candidates import driver
from pytest_fvparity.candidates.candidates import PLAN_FILES, Elsewhere, FromFolder
from pytest_fvparity.parity.implementation import CHECK_KEYS, Implementation

Places = list[tuple[Path, int | None]]
INSTALLED = {"site-packages", "dist-packages"}


def whereabouts(candidate: Implementation, root: Path, shown: Callable[[Path], str]) -> dict[str, dict[str, Any]]:
    """Check key -> `file`, as `shown` writes it, and `line`; a key is absent where nothing is known.

    Of a folder of artifacts it is the artifact, without a line. Of a method that a class below `root` inherits from a library
    it is the class.
    """
    found = {key: _places(candidate, key) for key in CHECK_KEYS}
    best = {key: _own_first(places, root) for key, places in found.items() if places}
    return {key: {"file": shown(path), "line": line} for key, (path, line) in best.items()}


def _places(candidate: Implementation, key: str) -> Places:
    if isinstance(candidate, FromFolder):
        named = [candidate.path / name for name in (PLAN_FILES.get(key), f"{key}.json") if name]
        return [(path, None) for path in named if path.is_file()]
    said = candidate.written if isinstance(candidate, Elsewhere) else driver.written(candidate, [key])
    return _believed(said.get(key))


def _believed(rows: Any) -> Places:
    """What another process says is anybody's word."""
    known: Places = []
    for row in rows if isinstance(rows, list) else ():
        match row:
            case [str(file), int(line)] if line > 0 and "\0" not in file:
                known.append((Path(file).absolute(), line))
    return known


def _own_first(places: Places, root: Path) -> tuple[Path, int | None]:
    def own(path: Path) -> bool:
        return path.is_relative_to(root) and not INSTALLED.intersection(path.parts)

    return next((place for place in places if own(place[0])), places[0])
