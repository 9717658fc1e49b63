"""What a milestone says when it has run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """Whether its criterion is met, a sentence, and its deliverables."""

    passed: bool
    message: str
    files: list[Path]
