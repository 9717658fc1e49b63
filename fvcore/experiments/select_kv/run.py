"""A run in its folder: the ON side, the OFF side, the verdict and what is drawn of them, each a stage that is done once.

A run that was killed goes on where it stood, to the same bytes; a folder of other settings, or of something else, is
refused. What stops a run before its verdict leaves a report that says so, and no gate a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.exits import FAILED, PASSED, UNJUDGED, USAGE
from fvcore.experiments.config import ConfigError, dotted
from fvcore.experiments.errors import OtherSettings, StepError
from fvcore.experiments.folder import LOCK, Folder, locked
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.record import Record, Stage
from fvcore.experiments.select_kv import files, reading, verdict
from fvcore.formats import digest, read_json, write_json
from fvcore.names import names_a_folder
from fvcore.provenance import git_state, now

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.runtime import Runtime
    from fvcore.experiments.select_kv.stages import Asking
    from fvcore.fast.chunks import Advance

RUN_ID = "--run-id"
"""How the command is told where a run's folder is."""

UNDECIDING = ("runtime.output_root",)
"""Settings that no result depends on."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to. report: as `report_phase2.json` holds it"""

    run_id: str
    folder: Path
    report: dict[str, Any]

    @property
    def final_pass(self) -> bool:
        return bool(self.report.get("final_pass", False))

    @property
    def gateA_pass(self) -> bool:  # noqa: N802  the plan's name
        return bool(self.report["gateA_pass"])

    @property
    def gateB_pass(self) -> bool:  # noqa: N802
        return bool(self.report["gateB_pass"])

    @property
    def exit_code(self) -> int:
        if self.report["status"] == "error":
            return UNJUDGED
        return PASSED if self.final_pass else FAILED


def run_phase2(
    settings: Phase2,
    *,
    runtime: Runtime | None = None,
    run_id: str | None = None,
    overwrite: bool = False,
    report_path: Path | None = None,
    progress: Progressing | None = None,
) -> Result:
    """Do what of a run is not done yet, in `<runtime.output_root>/<run_id>`, and judge it.

    runtime: what answers in the model's place     report_path: where another copy of the report is written
    Raises ConfigError for a run id that names no folder, OtherSettings for a folder of another run or of something else,
    FolderInUse for one that is written; whatever else stops a run is told by its report.
    """
    name = _new_run_id() if run_id is None else run_id
    if not names_a_folder(name):
        raise ConfigError(f"{RUN_ID} {name!r}: expected the name of a folder, without slashes and a leading dot")
    folder = Folder(settings.runtime.output_root / name)
    with locked(folder.root, RUN_ID):
        _make_room(folder, overwrite)
        try:
            report = _Run.of(settings, folder, name, runtime).report(progress)
        except StepError as error:
            if error.status == USAGE:
                raise
            report = verdict.error_report(name, settings, error).model_dump(mode="json")
            if not _is_judged(folder):
                write_json(folder / files.REPORT, report)
    if report_path is not None:
        write_json(report_path, report)
    return Result(name, folder.root, report)


def _new_run_id() -> str:
    """Moment and commit, `20260102_030405_1a2b3c4`; `nogit` outside of a checkout."""
    moment = datetime.fromisoformat(now()).strftime("%Y%m%d_%H%M%S")
    return f"{moment}_{git_state().sha or 'nogit'}"


def _make_room(folder: Folder, overwrite: bool) -> None:
    """Take away an earlier run's files if that is asked for; refuse what is no run of ours."""
    there = [name for name in folder.names("*") if name != LOCK]
    if overwrite:
        for name in (*folder.names("artifacts/*.json*"), *folder.names(f"{files.STATES}/*.safetensors"), *files.AT_TOP):
            (folder / name).unlink(missing_ok=True)
    elif there and not any((folder / name).is_file() for name in (files.CONFIG, files.RECORD, files.REPORT)):
        raise OtherSettings(f"{folder.root} holds {there[0]} and no run of Select-KV: take another {RUN_ID}")
    folder.remove_unfinished()


def _is_judged(folder: Folder) -> bool:
    """Whether there is a verdict, which no later mishap takes back."""
    stages = Record(folder, files.RECORD).read().stages
    return "verdict" in stages and bool(stages["verdict"].writes)


@dataclass(frozen=True)
class _Run:
    """A run that may begin: its model is there, and its samples are made.

    settings: as resolved, with what `auto` came to
    """

    settings: Phase2
    run_id: str
    asking: Asking

    @classmethod
    def of(cls, settings: Phase2, folder: Folder, run_id: str, runtime: Runtime | None) -> _Run:
        from fvcore.experiments.select_kv.stages import Asking

        settings.require_hf()
        asking = Asking.of(settings, folder, runtime)
        return cls(settings.changed(asking.came_to), run_id, asking)

    @property
    def folder(self) -> Folder:
        return self.asking.folder

    def report(self, progress: Progressing | None) -> dict[str, Any]:
        """Do the stages that are not done, and return the report that they end with."""
        record, stages = Record(self.folder, files.RECORD, RUN_ID), list(self.stages())
        record.begin(stages)
        reading.write_config(self.folder, self.run_id, self.settings, self.asking.bench.runtime.info.device)
        record.run(stages, _Timed(self.folder, progress or Watched()))
        return dict(read_json(self.folder / files.REPORT))

    def stages(self) -> Iterator[Stage]:
        asking, reporting, both = self.asking, self.settings.reporting, (files.ON_ROWS, files.OFF_ROWS)
        yield Stage("on", self.deciding, (), asking.ask_on, lambda: len(asking.on))
        yield Stage("off", self.deciding, (files.ON_ROWS,), asking.ask_off)
        if reporting.save_states:
            yield Stage("states", self.deciding, (files.ON_ROWS,), asking.save_states)
        if reporting.layer_curve:
            yield Stage("layers", self.deciding, (files.ON_ROWS,), asking.layer_curves)
        if reporting.budget_curve:
            yield Stage("budgets", self.deciding, both, asking.budget_curve)
        yield Stage("verdict", self.deciding, (*both, files.RUNTIME_META), self._judge)
        yield Stage("pages", self.deciding, (files.REPORT, *both, *self._curves), self._draw)

    @cached_property
    def deciding(self) -> dict[str, Any]:
        """All that results depend on, by dotted key: settings, the model, and the samples themselves."""
        info = asdict(self.asking.bench.runtime.info)
        samples: dict[str, Any] = {"on samples": self.asking.on, "off samples": self.asking.off}
        found = {
            **dict(dotted(self.settings.model_dump(mode="json"))),
            **{f"model.{name}": info[name] for name in info if not name.endswith("_version")},
            **{name: digest([asdict(one) for one in those]) for name, those in samples.items()},
        }
        return {name: value for name, value in found.items() if name not in UNDECIDING}

    def _judge(self, advance: Advance) -> list[Path]:
        folder = self.folder
        judged = verdict.Verdict(
            self.run_id,
            reading.summary_of(folder),
            read_json(folder / files.RUNTIME_META),
            reading.began(folder)["start_time"],
        )
        report = judged.report(reading.times(folder), self._curves).model_dump(mode="json")
        return folder.write({files.METRICS: judged.records(), files.REPORT: report})

    def _draw(self, advance: Advance) -> list[Path]:
        from fvcore.experiments.select_kv import report

        return report.write(self.folder.root)

    @property
    def _curves(self) -> tuple[str, ...]:
        """The files of those that were asked for."""
        reporting = self.settings.reporting
        layers = (files.LAYER_CURVE, files.REUSE) if reporting.layer_curve else ()
        return (*layers, files.BUDGET_CURVE) if reporting.budget_curve else layers


@dataclass(frozen=True, slots=True)
class _Timed:
    """Tells who is behind, and writes down how long each stage took, by the project's clock, which can be made to stand."""

    folder: Folder
    behind: Progressing

    @contextmanager
    def running(self, step: str, total: int | None) -> Iterator[Advance]:
        began = datetime.fromisoformat(now())
        with self.behind.running(step, total) as advance:
            yield advance
        seconds = (datetime.fromisoformat(now()) - began).total_seconds()
        write_json(self.folder / files.TIMES, reading.times(self.folder) | {step: seconds})

    def already(self, step: str) -> None:
        self.behind.already(step)
