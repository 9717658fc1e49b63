"""Which families and library versions the project has run: what the support matrix wrote, and what is new to it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fvcore.formats import read_json

TESTED = Path(__file__).with_name("tested.json")


@cache
def tested(path: Path) -> dict[str, Any]:
    """{"families": [...], "transformers": ["5.23", ...]}; empty where no matrix was written."""
    return dict(read_json(path)) if path.is_file() else {}


def untested(family: str, version: str, path: Path = TESTED) -> list[str]:
    """What has not been tested about a family under a version of transformers, one sentence each."""
    found, minor = tested(path), minor_of(version)
    if not found:
        return []
    said = []
    if family not in found["families"]:
        said.append(f"family {family!r} has not been tested (docs/support.md lists those that have): audit it first")
    if minor not in found["transformers"]:
        versions = ", ".join(found["transformers"])
        said.append(f"transformers {version} has not been tested (tested: {versions}): compare both engines first")
    return said


def minor_of(version: str) -> str:
    return ".".join(version.split(".")[:2])
