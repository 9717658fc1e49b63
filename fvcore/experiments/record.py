"""Which stage of a run has run, with which settings, on which files and to which files, by their digests.

Only this record is believed. A stage counts as done while what it read and what it wrote have the digests that stand
here; a folder that holds other settings is refused. Settings are recorded before anything is computed, so that a run
that was killed cannot be continued as another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from fvcore.experiments.folder import OUT, Folder, differences, refuse_others
from fvcore.experiments.progress import Progressing, Watched
from fvcore.formats import digest, read_json, validated, write_json
from fvcore.provenance import versions

if TYPE_CHECKING:
    from fvcore.fast.chunks import Advance


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


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a folder, in the file of this name in it.

    option: by which the command is given another folder
    """

    folder: Folder
    file: str
    option: str = OUT

    def run(self, stages: Sequence[Stage], progress: Progressing | None = None) -> RunRecord:
        """Do the stages that are not done yet, in order, each recorded before the next; returns the whole record.

        Raises OtherSettings, before anything is computed, if the folder holds results of other settings.
        """
        self.begin(stages)
        shown = progress or Watched()
        for stage in stages:
            if self.is_done(stage):
                shown.already(stage.name)
                continue
            with shown.running(stage.name, stage.total() if stage.total else None) as advance:
                files = stage.work(advance)
            self.finish(stage, files)
        return self.read()

    def read(self) -> RunRecord:
        """An empty one where there is none."""
        path = self.folder / self.file
        if not path.is_file():
            return RunRecord()
        return validated(RunRecord, read_json(path), path, "the record of a run")

    def begin(self, stages: Sequence[Stage]) -> None:
        """Record the settings of stages that will run; raises OtherSettings, naming what differs, if there are others."""
        record = self.read()
        plain = {stage.name: json.loads(json.dumps(dict(stage.settings))) for stage in stages}
        groups = {stage.name.partition("/")[0]: plain[stage.name] for stage in stages}
        # Each setting that differs is named once, with the stages that depend on it.
        different: dict[str, list[str]] = {}
        for name, there in record.stages.items():
            group = name.partition("/")[0]
            for what in differences(there.settings, groups.get(group, there.settings)):
                different.setdefault(what, []).append(group)
        said = [f"{what} ({', '.join(dict.fromkeys(of))})" for what, of in different.items()]
        refuse_others(self.folder.root, said, self.option)
        self._write(record, {name: StageRecord(settings=one) for name, one in plain.items()} | record.stages)

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage, or one that covers it, has left what it says it wrote, from what is there now."""
        stages, reads = self.read().stages, self.folder.digests(stage.reads)
        done = [stages[name] for name in (stage.name, stage.covered_by) if name in stages]
        return any(
            bool(one.writes) and one.reads == reads and self.folder.digests(one.writes) == one.writes for one in done
        )

    def finish(self, stage: Stage, files: Sequence[Path]) -> None:
        """Record a stage as done. Records of its group that claim the same files are taken back."""
        record = self.read()
        writes = self.folder.digests([path.relative_to(self.folder.root).as_posix() for path in files])
        settings = record.stages[stage.name].settings
        kept = {
            name: one.model_copy(update={"writes": {}}) if one.writes.keys() & writes.keys() else one
            for name, one in record.stages.items()
        }
        done = StageRecord(settings=settings, reads=self.folder.digests(stage.reads), writes=writes)
        self._write(record, kept | {stage.name: done})

    def forget(self, name: str) -> None:
        """A stage as if it had never begun; what it wrote is the caller's to remove."""
        record = self.read()
        self._write(record, {other: one for other, one in record.stages.items() if other != name})

    def _write(self, record: RunRecord, stages: dict[str, StageRecord]) -> None:
        settings = digest({name: one.settings for name, one in stages.items()})
        now = record.model_copy(update={"settings_digest": settings, "stages": stages, "versions": versions()})
        if now != record or not (self.folder / self.file).is_file():
            write_json(self.folder / self.file, now.model_dump(mode="json"))
