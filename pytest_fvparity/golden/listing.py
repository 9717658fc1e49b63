"""Every golden under some folders, and what has become of it: looked up in files alone, and nothing is ever removed.

What is used is told by the trials files that lie there, not by what a run happened to select.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from fvcore import escapes, shipped
from fvcore.formats import FormatError, sha256_file
from fvcore.gates import StageError
from fvcore.profile import Strict
from fvcore.trials.sampled import NAME as SAMPLED
from fvcore.trials.sampled import read_trials
from pytest_fvparity.golden import golden
from pytest_fvparity.golden import manifest as manifests
from pytest_fvparity.golden.golden import COMING, PREVIOUS, STAGING, Golden
from pytest_fvparity.golden.manifest import FULL, MANIFEST, SCHEMA_VERSION, OtherSchema
from pytest_fvparity.parity.implementation import CHECK_KEYS

State = Literal["current", "stale", "damaged", "unused", "leftover"]

Trials = Mapping[str, set[str]]
"""Fixed-trials id -> sha256 of every file of that name."""


class GoldenRow(Strict):
    """One golden, or what a recording that was killed left behind. Sizes are in bytes.

    `current` says that the trials file is the one the golden was recorded from; whether the model is, only a run can
    tell. `remove` is a line for a person to run.
    """

    path: str
    state: State
    what: str = ""
    model: str | None = None
    reference_profile: str | None = None
    schema_version: int | None = None
    core_bytes: int = 0
    full_bytes_here: int = 0
    full_bytes: int = 0
    remove: str | None = None


def of_ini(name: str) -> list[Path]:
    """What pytest's ini file of this project names, of trials files the folders: others beside them have goldens too."""
    from _pytest.config.findpaths import locate_config

    _, ini, values, *_ = locate_config(Path.cwd(), [])
    if ini is None or name not in values:
        return []
    given: Any = getattr(values[name], "value", values[name])  # of pytest 9 a value knows where it came from
    words = [line.strip() for line in (given.splitlines() if isinstance(given, str) else given)]
    paths = {word: ini.parent / Path(word).expanduser() for word in words if word}
    files = [
        path if path.exists() or not shipped.file(word).exists() else shipped.file(word) for word, path in paths.items()
    ]
    # The project's own folder is not searched through: a file there stands for itself.
    return list(dict.fromkeys(path.parent if path.is_file() and path.parent != ini.parent else path for path in files))


def trials_under(places: Iterable[Path]) -> Trials:
    """Trials files, and those in folders; raises FormatError for what is neither, or every golden looked unused."""
    found: dict[str, set[str]] = {}
    for place in places:
        if not place.exists():
            raise FormatError(f"{place}: no such folder of trials; name yours with --trials")
        for path in [place] if place.is_file() else sorted(file for file in place.rglob("*.json") if file.is_file()):
            id, digest = path.stem, sha256_file(path)
            if path.name == SAMPLED:  # the name of every run's frozen trials: they are told by their content
                with suppress(FormatError):
                    fixed = read_trials(path)
                    id, digest = fixed.id, fixed.sha256
            found.setdefault(id, set()).add(digest)
    return found


def rows(roots: Sequence[Path], trials: Trials) -> list[GoldenRow]:
    """One row a golden or leftover under `roots`, in the order of their paths."""
    for root in roots:
        if not root.is_dir():
            raise FormatError(f"{root}: no such folder of goldens; name yours with --root")
    return [_row(path, trials) for root in roots for path in _places(root)]


def _places(root: Path) -> Iterator[Path]:
    """Folders that hold a golden, or a part of one. What lies inside a leftover is no golden."""
    for name, folders, files in os.walk(root):
        here = Path(name)
        yield from (here / folder for folder in sorted(folders) if _is_leftover(folder))
        folders[:] = sorted(folder for folder in folders if not _is_leftover(folder))
        if MANIFEST in files or any(f"{key}.json" in files for key in CHECK_KEYS):
            yield here


def _is_leftover(folder: str) -> bool:
    return folder.startswith(STAGING) or (folder.startswith(".") and folder.endswith((PREVIOUS, COMING)))


def _row(path: Path, trials: Trials) -> GoldenRow:
    remove = escapes.shell(["rm", "-r", "--", path])
    if _is_leftover(path.name):
        return _leftover(path, remove)
    sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
    here = sum(size for name, size in sizes.items() if name.endswith(FULL))
    known = {"path": str(path), "state": "current", **_told(path, trials.get(path.parent.name, set()))}
    if path.parent.name not in trials and known["state"] != "damaged":
        what = f"there is no trials file {path.parent.name}.json"
        known |= {"state": "unused", "what": what, "remove": remove}
    return GoldenRow(**known, core_bytes=sum(sizes.values()) - here, full_bytes_here=here)


def _told(path: Path, digests: set[str]) -> dict[str, Any]:
    """What a golden says of itself, and whether that is still so; `digests` are those of the trials files of its id."""
    try:
        opened = Golden.open(path)
    except OtherSchema as error:
        what = f"manifest schema {error.found}, this version reads {SCHEMA_VERSION}"
        return {"state": "stale", "what": what, "schema_version": error.found}
    except (StageError, FormatError) as error:
        return {"state": "damaged", "what": str(error)}
    identity, full = opened.profile.identity, opened.manifest.full
    told: dict[str, Any] = {
        "model": opened.profile.conditions.model,
        "reference_profile": identity.reference_profile,
        "schema_version": opened.manifest.schema_version,
        "full_bytes": sum(stored.n_bytes for stored in full.files.values()) if full else 0,
    }
    home = golden.relative_path(identity.dataset, identity.fixed_trials_id, identity.reference_profile)
    if path.resolve().parts[-3:] not in {home.parts, golden.own_place(home, identity.weights_sha).parts}:
        return told | {"state": "damaged", "what": f"it was recorded as {home.as_posix()}, and lies elsewhere"}
    if identity.trials_sha256 not in digests:
        now = ", ".join(f"{digest:.12}..." for digest in sorted(digests))
        what = f"recorded from trials {identity.trials_sha256:.12}..., the file is now {now}"
        return told | {"state": "stale", "what": f"{what}; record again: {_again(opened)}"}
    return told


def _again(opened: Golden) -> str:
    """The command by what was recorded: the one that a manifest holds may be anybody's."""
    if opened.manifest.reference.origin == "imported":
        return f"fvparity golden import PATH {manifests.settings(opened.profile, '--')}"
    return golden.command(opened.profile)


def _leftover(path: Path, remove: str | None) -> GoldenRow:
    """An old golden that waits for its name to be given back is all there is of it: no line to remove that one."""
    what = "of a recording that was killed, unless one is running now"
    if path.name.endswith(PREVIOUS):
        target = path.with_name(path.name.removeprefix(".").removesuffix(PREVIOUS))
        what = f"what {target.name} was before its last recording, which was killed"
        if golden.waits(target):
            what = f"all there is of {target.name}: the next run or recording of it gives it back its name"
            remove = None
    return GoldenRow(path=str(path), state="leftover", what=what, remove=remove)
