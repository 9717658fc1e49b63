"""Step 3: the pathways of every chosen feature, found by gradients and proven by replay.

Work comes in batches: targets of a layer are attributed, sources of a layer are replayed, and of each layer random features
are ablated. A batch leaves one whole file, so that a run that was killed goes on with the first batch that is not there, on
this machine or on others, and ends in the same bytes. What was validated is divided among the heads that carry it, and for
some targets a bound is found on what screening passed over.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fvcore.exits import in_one_line
from fvcore.experiments.errors import Cause, StepError, cause_of
from fvcore.experiments.folder import Folder, locked
from fvcore.experiments.progress import Watched
from fvcore.experiments.sae import bench as benches
from fvcore.experiments.sae import features, heads, missed
from fvcore.experiments.sae.batches import Batch, attributions, by_layer, nulls, replays
from fvcore.experiments.sae.bench import Bench
from fvcore.experiments.sae.heads import HEADS
from fvcore.experiments.sae.missed import MISSED
from fvcore.experiments.sae.pathways import (
    CANDIDATES,
    NULLS,
    PATHWAYS,
    REPLAYS,
    RESCORED,
    Node,
    NullRow,
    Pathway,
    ReplayRow,
    TargetRow,
    ValidatedPathways,
)
from fvcore.experiments.sae.schemas import Row
from fvcore.experiments.sae.verdicts import judge, summary_of
from fvcore.experiments.status import Outcome
from fvcore.experiments.workers import Local, Workers, ray_workers
from fvcore.formats import digest, read_json, read_jsonl, validated, write_jsonl

if TYPE_CHECKING:
    from fvcore.experiments.progress import Progressing
    from fvcore.experiments.sae.attribution import Sources
    from fvcore.experiments.sae.config import PathwaysConfig

UNITS = "results/pathways/units"
ERRORS = "results/pathways/errors.jsonl"
MOST_FAILED = 0.01
"""Share of the batches of a kind that may fail before the step does."""
Kind = TypeVar("Kind", bound=Row)


@dataclass(frozen=True)
class Unit:
    """A batch and the folder that its file is left in."""

    folder: Path
    batch: Batch

    @property
    def name(self) -> str:
        return f"{self.batch.kind}-L{self.batch.layer:02d}-{self.batch.number:04d}"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    def run(self, tool: Bench, progress: Progressing) -> Outcome:
        if self.path.is_file():
            return Outcome(self.name, "completed", "", ran=False)
        try:
            rows = self.batch.work(tool)
        except Exception as error:  # told by the step, which says how many may fail
            return self.give_up(cause_of(error), f"{in_one_line(error)}\n{traceback.format_exc()}")
        write_jsonl(self.path, (row.model_dump(mode="json") for row in rows))
        return Outcome(self.name, "completed", "")

    def give_up(self, cause: Cause, reason: str) -> Outcome:
        return Outcome(self.name, "failed", f"{cause}: {reason}", cause=cause)


def discover(settings: PathwaysConfig, progress: Progressing | None = None, *, limit: int | None = None) -> list[Path]:
    """Write candidates, nulls, replays, and all pathways with their verdicts; returns the files. limit: only the first targets

    Raises StepError where more than a few batches failed: they are listed, and the others are kept.
    """
    folder = Folder(settings.paths.out)
    about = _compute(settings, folder, limit, Watched(progress))
    made = [folder / name for name in (CANDIDATES, NULLS, REPLAYS, HEADS, MISSED)]
    return made + _judge(settings, folder, about, PATHWAYS)


def rescore(settings: PathwaysConfig) -> list[Path]:
    """Judge what is there by other thresholds, into a file beside the run's own; no model is loaded."""
    folder = Folder(settings.paths.out)
    with locked(folder.root):
        return _judge(settings, folder, read_json(folder / PATHWAYS)["metadata"], RESCORED)


def _judge(settings: PathwaysConfig, folder: Folder, about: dict[str, Any], name: str) -> list[Path]:
    rows, pathways = _read(folder / CANDIDATES, TargetRow), _verdicts(settings, folder)
    file = ValidatedPathways(
        metadata=about | _metadata(settings, rows, pathways), summary=summary_of(pathways, rows), pathways=pathways
    )
    return folder.write({name: file.model_dump(mode="json")})


def _compute(settings: PathwaysConfig, folder: Folder, limit: int | None, progress: Watched) -> dict[str, Any]:
    """All that needs a model; returns what is to be said of it."""
    own, runtime = settings.discover, settings.runtime
    targets, sources = _asked(settings, folder, limit)
    with _workers(settings) as workers:
        run = partial(_run, folder, workers, progress)
        run(CANDIDATES, "Gradient", attributions(targets, sources, own, runtime.flush_every))
        rows = _read(folder / CANDIDATES, TargetRow)
        run(NULLS, "Null", nulls(rows, own, runtime.seed))
        run(REPLAYS, "Replay", replays(rows, own, runtime.seed, runtime.flush_every))
        run(HEADS, "Heads", heads.batches(_verdicts(settings, folder)))
        run(MISSED, "Missed", missed.batches(rows, list(sources), own, runtime.seed))
        return workers.ask(_about)


def _verdicts(settings: PathwaysConfig, folder: Folder) -> list[Pathway]:
    rows = _read(folder / CANDIDATES, TargetRow)
    replayed, nulled = _read(folder / REPLAYS, ReplayRow), _read(folder / NULLS, NullRow)
    return judge(rows, replayed, nulled, benches.contexts_of(settings), settings.discover)


def _asked(settings: PathwaysConfig, folder: Folder, limit: int | None) -> tuple[list[Node], Sources]:
    """The chosen features as targets, in their file's order, and what may be a source of them.

    limit: the first ones of those that have a layer before them
    """
    nodes = [Node(one.layer, one.feature_id) for one in features.read(folder)]
    whole = settings.discover.source_scope == "all"
    asked = nodes if limit is None else [node for node in nodes if node.layer > min(nodes).layer][:limit]
    return asked, {layer: None if whole else [node.id for node in of] for layer, of in by_layer(nodes).items()}


def _run(
    folder: Folder, workers: Workers[Bench], progress: Watched, name: str, step: str, batches: Sequence[Batch]
) -> None:
    """Bring batches to an end and join their files; raises StepError where too many failed."""
    units = [Unit(folder / UNITS, batch) for batch in batches]
    failed = {}
    with progress.running(step, len(units)) as advance:
        layers = {unit.name: unit.batch.layer for unit in units}
        for outcome in workers.map(units):
            advance(layers[outcome.name], 1)
            if outcome.status == "failed":
                failed[outcome.name] = outcome.reason
    before = read_jsonl(folder / ERRORS) if (folder / ERRORS).is_file() else []
    others = [row for row in before if row["batch"] not in layers]  # of other kinds
    write_jsonl(folder / ERRORS, others + [{"batch": one, "reason": failed[one]} for one in sorted(failed)])
    if len(failed) > MOST_FAILED * len(units):
        first = failed[min(failed)].partition("\n")[0]
        raise StepError(f"{folder / ERRORS}: {len(failed)} of {len(units)} batches failed, the first of {first}")
    write_jsonl(folder / name, (row for unit in units if unit.path.is_file() for row in read_jsonl(unit.path)))


@contextmanager
def _workers(settings: PathwaysConfig) -> Iterator[Workers[Bench]]:
    runtime = settings.runtime
    if runtime.ray is None:
        yield Local(benches.of(settings))
        return
    with ray_workers(runtime.ray, partial(benches.of, settings), settings.model.device, runtime.ray_cpus) as workers:
        yield workers


def _about(bench: Bench) -> dict[str, Any]:
    return {"model": bench.lm.name, "dtype": bench.lm.dtype, "n_contexts": len(bench.contexts)}


def _metadata(settings: PathwaysConfig, rows: Sequence[TargetRow], pathways: Sequence[Pathway]) -> dict[str, Any]:
    own = settings.discover
    chosen = own.model_dump(mode="json")
    return {
        "schema_version": 1,
        "sae": {"source": settings.sae.source, "format": settings.sae.format, "units": "canonical"},
        "config_hash": digest(chosen),
        "batch_size": own.batch_size,
        "n_targets": len(rows),
        "n_tested": len(pathways),
        "n_without_test": sum(one.p_value is None for one in pathways),
        "fdr": {"method": "BH", "q": own.fdr.q, "family": own.fdr.family},
        "null": {"directions": own.replay.control_directions, "contexts": own.replay.control_contexts},
    }


def _read(path: Path, kind: type[Kind]) -> list[Kind]:
    return [validated(kind, row, path) for row in read_jsonl(path)]
