"""Small relation files, and runs over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fvcore.embedded.words import relations
from fvcore.experiments.relation import data
from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.relation.data import Relation
from fvcore.experiments.relation.run import Summary, run
from fvcore.experiments.workers import Local
from fvcore.formats import write_bytes
from fvcore.model.model import LanguageModel

Pairs = Sequence[tuple[str, str]]

SMALL = RelationSettings(n_trials=4, n_shots=3, top_heads=4, n_eval=3, n_random=2, pictures=False)
"""Fits `known`; every q_id takes a fraction of a second."""


def known(name: str, n: int) -> Pairs:
    """The first pairs of a relation that the shipped models know."""
    return list(relations()[name].items())[:n]


SMALL_PAIRS: Mapping[str, Pairs] = {
    "Q10": known("next_letter", 8),
    "Q2": known("antonym", 8),
    "Q3": known("prev_number", 3),  # too few
    "Q1": known("mirror_letter", 6),
}


def write_csv(path: Path, pairs: Mapping[str, Pairs], header: str = "id,ex_A,ex_B") -> Path:
    lines = [header, *(f"{q_id},{a},{b}" for q_id, rows in pairs.items() for a, b in rows)]
    write_bytes(path, "".join(f"{line}\r\n" for line in lines).encode())
    return path


def small(folder: Path) -> Relation:
    return data.read(write_csv(folder / "small.csv", SMALL_PAIRS))


def run_small(lm: LanguageModel, folder: Path, settings: RelationSettings = SMALL) -> Summary:
    return run(small(folder), folder / "out", settings, Local(lm))


def tree(root: Path, *without: str) -> dict[str, bytes]:
    """Every file below `root` by its name, hidden ones too."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name not in without}
