"""`timings.json`: how long each stage took, on this machine and this time, and so outside of every digest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from fvcore.experiments.folder import Folder
from fvcore.experiments.progress import Progressing
from fvcore.experiments.select_kv import files
from fvcore.fast.chunks import Advance
from fvcore.formats import read_json, write_json
from fvcore.provenance import now


def times(folder: Folder) -> dict[str, float]:
    """Stage -> seconds."""
    path = folder / files.TIMES
    return dict(read_json(path)) if path.is_file() else {}


@dataclass(frozen=True, slots=True)
class Timed:
    """Tells who is behind, and writes down how long each stage took, by the project's clock, which can be made to stand."""

    folder: Folder
    behind: Progressing

    @contextmanager
    def running(self, step: str, total: int | None) -> Iterator[Advance]:
        began = datetime.fromisoformat(now())
        with self.behind.running(step, total) as advance:
            yield advance
        seconds = (datetime.fromisoformat(now()) - began).total_seconds()
        write_json(self.folder / files.TIMES, times(self.folder) | {step: seconds})

    def already(self, step: str) -> None:
        self.behind.already(step)
