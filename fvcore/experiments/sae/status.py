"""How far each step of a run's folder is: missing, partial, complete, stale or not passed, and why."""

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from fvcore.experiments.errors import StepError
from fvcore.experiments.folder import Folder, differences
from fvcore.experiments.record import Record, StageRecord
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.features import FEATURES
from fvcore.experiments.sae.run import OUT, RECORD
from fvcore.experiments.sae.steps import STEPS, UNITS, Step
from fvcore.formats import read_json, read_text

State: TypeAlias = Literal["missing", "partial", "complete", "stale", "not passed"]


def status(settings: PathwaysConfig) -> list[dict[str, str]]:
    """A row a step: its name, its state, and the reason where there is one."""
    folder = Folder(settings.paths.out)
    stages = Record(folder, RECORD, OUT).read().stages
    rows = []
    for step in STEPS:
        state, reason = _of(step, settings, folder, stages.get(step.name))
        rows.append({"step": step.name, "state": state, "reason": reason})
    return rows


def _of(step: Step, settings: PathwaysConfig, folder: Folder, before: StageRecord | None) -> tuple[State, str]:
    if before is None:
        return "missing", "not begun"
    depends = step.depends_on(settings, folder)
    if other := differences({name: before.settings.get(name) for name in depends}, depends):
        return "stale", "; ".join(other[:3]) + (f"; and {len(other) - 3} more" if len(other) > 3 else "")
    if not before.writes:
        return "partial", _progress(step, folder)
    if changed := [name for name, sha in before.writes.items() if folder.digests([name]).get(name) != sha]:
        return "stale", f"{changed[0]} is missing, or was changed since"
    try:
        step.passed(settings, folder)
    except StepError as error:
        return "not passed", str(error)
    return "complete", f"forced: {before.settings['forced']}" if "forced" in before.settings else ""


def _progress(step: Step, folder: Folder) -> str:
    """Units that are there, by their kind; of targets also how many there are to be."""
    if not step.units:
        return "begun, and left nothing"
    counts = dict(_lines(folder))
    n = len(read_json(folder / FEATURES)["features"]) if (folder / FEATURES).is_file() else None
    said = [
        f"{count} {kind}" + (f" of {n} targets at most" if kind == "candidates" and n else "")
        for kind, count in counts.items()
    ]
    return ", ".join(said) or "begun, no unit is done"


def _lines(folder: Folder) -> Iterator[tuple[str, int]]:
    kinds: dict[str, Any] = {}
    for name in folder.names(UNITS):
        kind = name.rpartition("/")[2].partition("-")[0]
        kinds[kind] = kinds.get(kind, 0) + read_text(folder / name).count("\n")
    yield from kinds.items()
