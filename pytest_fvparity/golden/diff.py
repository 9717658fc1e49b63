"""What one recording changes against another: per check key in words, per leaf as a file for people and programs."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fvcore import artifacts
from fvcore.artifacts import Artifact
from fvcore.compare import changes, compare
from fvcore.formats import FormatError, json_text, read_json, read_safetensors
from fvcore.gates import Verdict
from fvcore.profile import Strict
from pytest_fvparity.golden import manifest as manifests
from pytest_fvparity.golden.manifest import DIGEST, FULL, MANIFEST, DamagedGolden
from pytest_fvparity.golden.part import Part
from pytest_fvparity.parity.implementation import CHECK_KEYS

MAX_LEAVES = 100
MAX_SHOWN = 200  # characters of a value

KEYS = (*CHECK_KEYS, "manifest")

# Fields of a manifest that say where the recording lies, and nothing of what it is.
STORAGE = {"files", "full", DIGEST}


class LeafChange(Strict):
    """One leaf: the first place where it changes, both values there, how many of its values change and by how much."""

    leaf: str
    where: str
    old: Any
    new: Any
    n_changed: int
    n_compared: int
    max_abs_diff: float | str | None = None


class KeyDiff(Strict):
    """One check key, or the manifest beside its hashes. The first leaves that change are listed, the rest counted."""

    state: Literal["unchanged", "changed", "new", "unreadable"]
    n_changed: int = 0
    n_compared: int = 0
    max_abs_diff: float | str | None = None
    leaves: list[LeafChange] = Field(default=[])
    n_leaves_left_out: int = 0

    def __str__(self) -> str:
        if self.state == "unreadable":
            return "the old one cannot be read"
        if self.state != "changed":
            return self.state
        largest = self.max_abs_diff
        by = f", by up to {f'{largest:.3g}' if isinstance(largest, float) else largest}" if largest else ""
        return f"{self.n_changed} of {self.n_compared} values change{by}"


def differences(old: Path, new: Path) -> dict[str, KeyDiff]:
    """Check key -> what it changes from the golden in `old`, if there is one, to the recording in `new`."""
    if not (old / MANIFEST).is_file():
        return {key: KeyDiff(state="new") for key in KEYS}
    return {key: _difference(old, new, key) for key in KEYS}


def _difference(old: Path, new: Path, key: str) -> KeyDiff:
    after = _read(new, key)
    try:
        before = _read(old, key)
        if key in CHECK_KEYS:
            before, after = _cut(old, key, before, after)
    except FormatError:
        return KeyDiff(state="unreadable")
    n_values = 0
    if key not in CHECK_KEYS:
        n_values, pairs = _n_values(before), changes(before, after, separator="/")
        before, after = ({path: pair[side] for path, pair in pairs.items()} for side in (0, 1))
    verdict = compare(before, after)
    counted = _counted(verdict) | {"n_compared": max(n_values, verdict.compared)}
    if verdict.passed:
        return KeyDiff(state="unchanged", n_compared=counted["n_compared"])
    changed = [found for leaf in dict.fromkeys([*before, *after]) if (found := _leaf(leaf, before, after))]
    left_out = max(0, len(changed) - MAX_LEAVES)
    return KeyDiff(state="changed", leaves=changed[:MAX_LEAVES], n_leaves_left_out=left_out, **counted)


def _counted(verdict: Verdict) -> dict[str, Any]:
    largest = verdict.measurements.get("max_abs_diff")
    shown = largest if largest is None or math.isfinite(largest) else str(largest)
    return {"n_changed": verdict.mismatch_count, "n_compared": verdict.compared, "max_abs_diff": shown}


def _leaf(leaf: str, before: Artifact, after: Artifact) -> LeafChange | None:
    old, new = ({leaf: side[leaf]} if leaf in side else {} for side in (before, after))
    verdict = compare(old, new)
    if (first := verdict.first_mismatch) is None:
        return None
    shown = {"old": _short(first.expected), "new": _short(first.actual)}
    return LeafChange(leaf=leaf, where=first.where, **shown, **_counted(verdict))


def _cut(old: Path, key: str, before: Artifact, after: Artifact) -> tuple[Artifact, Artifact]:
    """Both sides whole if the old golden's full tier is here, else cut to what its core holds."""
    if (old / f"{key}{FULL}").is_file():
        return {**before, **read_safetensors(old / f"{key}{FULL}")}, after
    try:
        full = manifests.read(old).full
    except DamagedGolden:
        return before, after
    return Part(full.slices if full else {}).cut(key, before, after, lambda leaf: ())[:2]


def _read(golden: Path, key: str) -> Artifact:
    if key in CHECK_KEYS:
        return artifacts.load(golden / key)
    manifest = read_json(golden / MANIFEST)
    if not isinstance(manifest, dict):
        raise FormatError(f"{golden / MANIFEST}: expected an object, found {type(manifest).__name__}")
    return {name: value for name, value in manifest.items() if name not in STORAGE}


def _n_values(value: Any) -> int:
    """How many values a nested one holds; nothing is a statement, too."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max(1, sum(map(_n_values, inside)))


def _short(value: Any) -> Any:
    """A value as JSON holds it, or the head of it where it is long."""
    text = value if isinstance(value, str) else json_text(value)
    return value if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
