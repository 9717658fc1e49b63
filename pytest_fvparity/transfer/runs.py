"""The q_ids of a relation run, told from its folders. Imports nothing heavy: this runs while tests are collected."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fvcore.experiments.relation.files import STATUS
from fvcore.experiments.steps.layout import SAMPLED
from fvcore.formats import FormatError, read_json


@dataclass(frozen=True)
class QId:
    """One q_id's folder. `state` is what its status says, `unreadable` where that cannot be told; `cause` of a failure."""

    name: str
    folder: Path
    state: str
    cause: str | None = None

    @property
    def status_file(self) -> Path:
        return self.folder / STATUS

    @property
    def trials_file(self) -> Path:
        return self.folder / SAMPLED

    @property
    def weights_sha(self) -> str:
        """Of the model that it was computed with; empty where its status does not say."""
        return str(read_json(self.status_file).get("settings", {}).get("weights_sha", ""))

    def has_golden(self, roots: Sequence[Path], reference_profile: str) -> bool:
        """Whether the reference was recorded on its frozen trials, with the model that it was computed with."""
        from pytest_fvparity.golden.golden import has_own, relative_path
        from pytest_fvparity.parity.place import place_of

        dataset, id = place_of(self.trials_file)
        return has_own(roots, relative_path(dataset or "", id, reference_profile), self.weights_sha)


Q_IDS_KEY = pytest.StashKey[list[QId]]()
"""The q_ids of this session."""


def q_ids_of(root: Path, chosen: Sequence[str] = ()) -> list[QId]:
    """Sorted as strings. Raises FormatError where there are none, or not those that were asked for."""
    found = {path.parents[1].name: path for path in sorted(root.glob(f"*/{STATUS}"))}
    if not found:
        raise FormatError(
            f"{root}: no relation run (no */{STATUS}); `fvcore relation run --dataset FILE --model MODEL` makes one"
        )
    if missing := [name for name in chosen if name not in found]:
        raise FormatError(f"{root}: no q_id {missing[0]!r}; there are {', '.join(found)}")
    return [QId(name, path.parents[1], *_said(path)) for name, path in found.items() if not chosen or name in chosen]


def _said(path: Path) -> tuple[str, str | None]:
    try:
        value = read_json(path)
    except FormatError:
        return "unreadable", None
    return (str(value.get("status")), value.get("cause")) if isinstance(value, dict) else ("unreadable", None)
