"""qwise_orchestrator.log: a line for each thing that happened to the run, later runs behind earlier ones."""

from __future__ import annotations

from pathlib import Path

from fvcore.formats import read_text, write_text
from fvcore.provenance import now


class Log:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = read_text(path) if path.is_file() else ""

    def line(self, text: str) -> None:
        """Written at once; the file is whole at any moment."""
        self.text += f"{now()} {' '.join(text.split())}\n"
        write_text(self.path, self.text)
