"""run_meta.json: which stage has run, with which settings, on which files and to which files, by their digests.

Only this record is believed. A stage counts as done while what it read and what it wrote have the digests that stand
here; a folder that holds other settings is refused. Settings are recorded before anything is computed, so that a run
that was killed cannot be continued as another one.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fvcore.experiments.errors import OtherSettings
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.layout import Folder
from fvcore.fast.chunks import Advance
from fvcore.formats import FormatError, read_json, sha256, sha256_file, write_json


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a run. `name` may have a part behind a slash: stages of one group share their settings.

    work: computes and writes, and returns the files     total: how many rows it will tell of, if it does
    covered_by: a stage that writes the same files and more
    """

    name: str
    settings: Mapping[str, Any]
    reads: tuple[str, ...]
    work: Callable[[Advance], Sequence[Path]]
    total: Callable[[], int] | None = None
    covered_by: str = ""

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]


class StageRecord(BaseModel):
    """Files by their name relative to the run's folder -> sha256. `writes` is empty until the stage is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any]
    reads: dict[str, str] = {}
    writes: dict[str, str] = {}


class RunRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    settings_digest: str = ""
    versions: dict[str, str] = {}
    stages: dict[str, StageRecord] = {}


def digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def read(folder: Folder) -> RunRecord:
    """The record of a folder; an empty one where there is none."""
    path = folder / layout.RUN_META
    if not path.is_file():
        return RunRecord()
    try:
        return RunRecord.model_validate(read_json(path))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise FormatError(f"{path}: not the record of a run (key {where!r}: {problem['msg'].lower()})") from None


def begin(folder: Folder, stages: Sequence[Stage]) -> RunRecord:
    """Record the settings of stages that will run; raises OtherSettings, naming what differs, if the folder has others."""
    record = read(folder)
    plain = {stage.name: json.loads(json.dumps(dict(stage.settings))) for stage in stages}
    if differences := _differences(record, {stage.group: plain[stage.name] for stage in stages}):
        raise OtherSettings(
            f"{folder.root} holds results of other settings: {'; '.join(differences)}. Results of different settings are "
            "never mixed: use another --out, or remove the folder"
        )
    known = {name: StageRecord(settings=settings) for name, settings in plain.items()} | record.stages
    return _write(folder, record, known)


def _differences(record: RunRecord, groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each setting that differs, once, with the stages that depend on it."""
    found: dict[str, list[str]] = {}
    for name, there in record.stages.items():
        group = name.partition("/")[0]
        now = groups.get(group, there.settings)
        for key in dict.fromkeys((*there.settings, *now)):
            before, after = there.settings.get(key), now.get(key)
            if before != after:
                found.setdefault(f"{key} is {before!r}, now {after!r}", []).append(group)
    return [f"{what} ({', '.join(dict.fromkeys(stages))})" for what, stages in found.items()]


def is_done(folder: Folder, stage: Stage) -> bool:
    """Whether the stage, or one that covers it, has left what it says it wrote, from what is there now."""
    stages, reads = read(folder).stages, _digests(folder, stage.reads)
    found = [stages[name] for name in (stage.name, stage.covered_by) if name in stages]
    return any(bool(one.writes) and one.reads == reads and _digests(folder, one.writes) == one.writes for one in found)


def _digests(folder: Folder, names: Iterable[str]) -> dict[str, str]:
    """Of the files that are there."""
    return {name: sha256_file(folder / name) for name in names if (folder / name).is_file()}


def finish(folder: Folder, stage: Stage, files: Sequence[Path]) -> None:
    """Record a stage as done. Records of its group that claim the same files are taken back."""
    record = read(folder)
    writes = _digests(folder, [path.relative_to(folder.root).as_posix() for path in files])
    reads = _digests(folder, stage.reads)
    done = StageRecord(settings=record.stages[stage.name].settings, reads=reads, writes=writes)
    kept = {
        name: one.model_copy(update={"writes": {}}) if one.writes.keys() & writes.keys() else one
        for name, one in record.stages.items()
    }
    _write(folder, record, kept | {stage.name: done})


def _write(folder: Folder, record: RunRecord, stages: dict[str, StageRecord]) -> RunRecord:
    import torch
    import transformers

    found = record.model_copy(
        update={
            "settings_digest": digest({name: one.settings for name, one in stages.items()}),
            "stages": stages,
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "transformers": str(transformers.__version__),
            },
        }
    )
    if found != record or not (folder / layout.RUN_META).is_file():
        write_json(folder / layout.RUN_META, found.model_dump(mode="json"))
    return found
