"""A run in its folder: the ON side, the OFF side, the verdict and what is drawn of them, each a stage that is done once.

A run that was killed goes on where it stood, to the same bytes; a folder of other settings, or of something else, is
refused. What stops a run before its verdict leaves a report that says so, and no gate a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.exits import FAILED, PASSED, UNJUDGED, USAGE
from fvcore.experiments.errors import OtherSettings, StepError
from fvcore.experiments.folder import LOCK, Folder, locked
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.record import Record, Stage, digest
from fvcore.experiments.select_kv import files, gates, records, start, verdict
from fvcore.experiments.select_kv.schemas import OffRow, OnRow
from fvcore.experiments.select_kv.summary import Summary
from fvcore.formats import read_json, read_jsonl, validated, write_json, write_jsonl
from fvcore.provenance import now

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.bench import Bench
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.data import OffSample, OnSample
    from fvcore.experiments.select_kv.runtime import Runtime
    from fvcore.fast.chunks import Advance

UNDECIDING = ("runtime.output_root",)
"""Settings that no result depends on."""

NAMES = {"n_layers": "layers", "n_heads": "heads", "n_kv_heads": "kv_heads", "d_head": "head_dim"}
"""Of a runtime's facts -> as the plan's file calls them."""


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
    name = start.new_run_id() if run_id is None else run_id
    start.require_run_id(name)
    folder = Folder(settings.runtime.output_root / name)
    with locked(folder.root):
        _make_room(folder, overwrite)
        try:
            report = _Run.of(settings, folder, name, runtime).report(progress)
        except StepError as error:
            if error.status == USAGE:
                raise
            report = verdict.error_report(name, settings, error).model_dump(mode="json")
            write_json(folder / files.REPORT, report)
    if report_path is not None:
        write_json(report_path, report)
    return Result(name, folder.root, report)


def measured(root: Path) -> gates.Measured:
    """What the gates judge of the run in a folder, from its files alone."""
    return summary_of(root).measured()


def summary_of(root: Path) -> Summary:
    """Raises FormatError where the folder holds no run that came to its OFF side."""
    folder = Folder(root)
    rotation = read_json(folder / files.RUNTIME_META)["rotation"]
    return Summary(start.read_settings(folder), on_rows_of(folder), off_rows_of(folder), rotation)


def on_rows_of(folder: Folder) -> list[OnRow]:
    path = folder / files.ON_ROWS
    return validated(list[OnRow], read_jsonl(path), path, "the ON rows of a run")


def off_rows_of(folder: Folder) -> list[OffRow]:
    path = folder / files.OFF_ROWS
    return validated(list[OffRow], read_jsonl(path), path, "the OFF rows of a run")


def _make_room(folder: Folder, overwrite: bool) -> None:
    """Take away an earlier run's files if that is asked for; refuse what is no run of ours."""
    there = [name for name in folder.names("*") if name != LOCK]
    if overwrite:
        _remove_run(folder)
    elif there and not any((folder / name).is_file() for name in (files.CONFIG, files.RECORD, files.REPORT)):
        raise OtherSettings(f"{folder.root} holds {there[0]} and no run of Select-KV: take another --run-id")
    folder.remove_unfinished()


def _remove_run(folder: Folder) -> None:
    for name in (*folder.names("artifacts/*.json*"), *folder.names(f"{files.STATES}/*.safetensors"), *files.AT_TOP):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Run:
    """A run that may begin: its model is there, and its samples are made.

    settings: as resolved, with what `auto` came to
    """

    settings: Phase2
    folder: Folder
    run_id: str
    bench: Bench
    on: Sequence[OnSample]
    off: Sequence[OffSample]

    @classmethod
    def of(cls, settings: Phase2, folder: Folder, run_id: str, runtime: Runtime | None) -> _Run:
        from fvcore.experiments.select_kv.bench import Bench
        from fvcore.experiments.select_kv.data import off_samples, on_samples

        settings.require_hf()
        asked = _loaded(settings) if runtime is None else runtime
        bench = Bench.of(asked, settings)
        came_to = {
            "injection.kv_source": bench.builder.kv_source,
            "injection.positioning_mode": bench.builder.positioning_mode,
        }
        on, off = on_samples(settings, asked.tokenizer), off_samples(settings, asked.tokenizer)
        return cls(settings.changed(came_to), folder, run_id, bench, on, off)

    def report(self, progress: Progressing | None) -> dict[str, Any]:
        """Do the stages that are not done, and return the report that they end with."""
        record = Record(self.folder, files.RECORD)
        record.begin(self.stages)
        start.write_config(self.folder, self.run_id, self.settings, self.bench.runtime.info.device)
        record.run(self.stages, _Timed(self.folder, progress or Watched()))
        return dict(read_json(self.folder / files.REPORT))

    @cached_property
    def stages(self) -> list[Stage]:
        reporting, both = self.settings.reporting, (files.ON_ROWS, files.OFF_ROWS)
        found = [
            self._stage("on", (), self._ask_on, len(self.on)),
            self._stage("off", (files.ON_ROWS,), self._ask_off),
        ]
        if reporting.save_states:
            found.append(self._stage("states", (files.ON_ROWS,), self._save_states))
        if reporting.layer_curve:
            found.append(self._stage("layers", (files.ON_ROWS,), self._layers))
        if reporting.budget_curve:
            found.append(self._stage("budgets", both, self._budgets))
        found.append(self._stage("verdict", (*both, files.RUNTIME_META), self._judge))
        return [*found, self._stage("pages", (files.REPORT, *both, *self._curves), self._draw)]

    def _stage(
        self, name: str, reads: tuple[str, ...], work: Callable[[Advance], Sequence[Path]], total: int | None = None
    ) -> Stage:
        return Stage(name, self.deciding, reads, work, None if total is None else lambda: total)

    @cached_property
    def deciding(self) -> dict[str, Any]:
        """All that results depend on, by dotted key: settings, the model, and the samples themselves."""
        info = asdict(self.bench.runtime.info)
        found = dict(_dotted(self.settings.model_dump(mode="json")))
        found |= {f"model.{name}": info[name] for name in info if not name.endswith("_version")}
        found |= {"on samples": digest([asdict(one) for one in self.on])}
        found |= {"off samples": digest([asdict(one) for one in self.off])}
        return {name: value for name, value in found.items() if name not in UNDECIDING}

    def _ask_on(self, advance: Advance) -> list[Path]:
        from fvcore.experiments.select_kv.compute import on_rows, rotation_checks

        rows = on_rows(self.bench, self.on, advance)
        meta = self._runtime_meta(rows[0]) | {"rotation": rotation_checks(self.bench, self.on[0])}
        return self.folder.write(
            {
                files.ON_ROWS: [row.model_dump(mode="json") for row in rows],
                files.SELECTION: [row.selection.model_dump(mode="json") for row in rows],
                files.PREFIX_META: [row.prefix.model_dump(mode="json") for row in rows],
                files.RUNTIME_META: meta,
            }
        )

    def _ask_off(self, advance: Advance) -> list[Path]:
        from fvcore.experiments.select_kv.off import off_rows

        rows = off_rows(self.bench, self.on, on_rows_of(self.folder), self.off, advance)
        return self.folder.write(
            {files.OFF_ROWS: [row.model_dump(mode="json") for row in rows], files.OFF_STRESS: _stress(rows)}
        )

    def _save_states(self, advance: Advance) -> list[Path]:
        from fvcore.experiments.select_kv import states
        from fvcore.experiments.select_kv.off import state_prefixes

        paths = []
        for sample, row in zip(self.on, on_rows_of(self.folder), strict=True):
            prefix = state_prefixes(self.bench, sample, row)["select"]
            about = {"sample_id": sample.sample_id, "episode_id": sample.episode_id, "query": sample.query_text}
            path = self.folder / files.state(sample.sample_id)
            paths.append(states.save(path, prefix, self.bench.runtime.info, about))
            advance(0, 1)
        return paths

    def _layers(self, advance: Advance) -> list[Path]:
        from fvcore.experiments.select_kv import layers, reuse

        curves = {
            files.LAYER_CURVE: layers.curve(self.bench, self.on, advance),
            files.REUSE: reuse.curve(self.bench, self.on, advance),
        }
        return self.folder.write(curves)

    def _budgets(self, advance: Advance) -> list[Path]:
        from fvcore.experiments.select_kv import budgets

        return self.folder.write({files.BUDGET_CURVE: budgets.curve(self.bench, self.on, self.off, advance)})

    def _judge(self, advance: Advance) -> list[Path]:
        summary = summary_of(self.folder.root)
        began, times = start.began(self.folder), _times(self.folder)
        runtime = read_json(self.folder / files.RUNTIME_META)
        header = records.Header(
            self.run_id, self.settings.seed, began["start_time"], runtime["model_id"], self.settings.prefix_len
        )
        write_jsonl(self.folder / files.METRICS, records.rows(records.records(header, summary)))
        report = verdict.report(
            self.run_id, self.settings, summary, runtime, times, [*verdict.ARTIFACTS, *self._curves]
        )
        write_json(self.folder / files.REPORT, report.model_dump(mode="json"))
        return [self.folder / files.METRICS, self.folder / files.REPORT]

    def _draw(self, advance: Advance) -> list[Path]:
        from fvcore.experiments.select_kv import report

        return report.write(self.folder.root)

    @property
    def _curves(self) -> tuple[str, ...]:
        """The files of those that were asked for."""
        reporting = self.settings.reporting
        layers = (files.LAYER_CURVE, files.REUSE) if reporting.layer_curve else ()
        return (*layers, files.BUDGET_CURVE) if reporting.budget_curve else layers

    def _runtime_meta(self, first: OnRow) -> dict[str, Any]:
        """The model as it ran, and how the first sample met it."""
        info, prefix = asdict(self.bench.runtime.info), first.prefix
        return {
            **{NAMES.get(name, name): value for name, value in info.items()},
            "first_sample": {
                "sample_id": first.sample_id,
                "demo_len": first.selection.demo_len,
                "query_len": first.selection.query_len,
                "past_len": prefix.cache_len,
                "query_position_first": prefix.query_position_first,
                "query_position_last": prefix.query_position_last,
                "attention_mask_len": prefix.attention_mask_len,
                "attention_mask_sum": prefix.attention_mask_sum,
            },
            "warnings": list(self.bench.builder.warnings),
        }


def _loaded(settings: Phase2) -> Runtime:
    from fvcore.experiments.select_kv.model_runtime import load_runtime

    return load_runtime(settings)


def _stress(rows: Sequence[OffRow]) -> list[dict[str, Any]]:
    """Which state moves each OFF prompt most, and which one it falls to; the most moved first."""
    asked = [(row, row.arms["select"]) for row in rows if "select" in row.arms]
    asked.sort(key=lambda pair: -1.0 if pair[1].stress is None else pair[1].stress, reverse=True)
    return [
        {
            "sample_id": row.sample_id,
            "stress_state_id": arm.stress_state,
            "stress_delta": arm.stress,
            "typical_state_id": arm.typical_state,
            "typical_delta": arm.typical,
        }
        for row, arm in asked
    ]


def _dotted(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`{"select": {"mode": ...}}` -> `select.mode`, ..."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _times(folder: Folder) -> dict[str, float]:
    """Stage -> seconds."""
    path = folder / files.TIMES
    return dict(read_json(path)) if path.is_file() else {}


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
        write_json(self.folder / files.TIMES, _times(self.folder) | {step: seconds})

    def already(self, step: str) -> None:
        self.behind.already(step)
