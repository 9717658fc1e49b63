"""A discovery in files: killed and taken up it ends in the same bytes, here as on Ray, and short memory costs time alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fvcore.experiments.sae.pathways import CANDIDATES, NULLS, PATHWAYS, REPLAYS
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    import torch

    from fvcore.embedded.planted import build
    from fvcore.experiments.config import resolve
    from fvcore.experiments.errors import StepError
    from fvcore.experiments.progress import Watched
    from fvcore.experiments.sae import attribution, discover, replay
    from fvcore.experiments.sae.batches import Batch
    from fvcore.experiments.sae.bench import Bench
    from fvcore.experiments.sae.config import PathwaysConfig
    from fvcore.experiments.sae.contexts import CONTEXTS
    from fvcore.experiments.sae.discover import ERRORS, UNITS, Unit
    from fvcore.experiments.sae.features import FEATURES
    from fvcore.experiments.sae.pathways import Node, ValidatedPathways
    from fvcore.experiments.sae.schemas import CausalFeatures, Feature, FeaturesMetadata, PromptsSample
    from fvcore.experiments.sae.selftest import survey
    from fvcore.experiments.workers import Local
    from fvcore.formats import read_json, read_jsonl, validated, write_json


FILES = (CANDIDATES, NULLS, REPLAYS, PATHWAYS)
N_CONTEXTS = 6


def planted() -> Bench:
    # Also in a process of Ray's, where nothing has been imported late.
    from fvcore.embedded.planted import build
    from fvcore.experiments.sae import bench as benches

    return benches.planted(build(0, n_contexts=N_CONTEXTS))


def written(root: Path, **more: Any) -> PathwaysConfig:
    """The two files that a discovery reads, of the planted model; its settings."""
    world = build(0, n_contexts=N_CONTEXTS)
    chosen = [
        Feature(
            feature=Node(layer, number).name, layer=layer, feature_id=number, cohen_d=1.0, abs_d_rank_in_layer=1, joinable=True,
            direction="risky", safe_effect=None, risky_effect=None, p_values={}, q_causal=None, n_source_files=1,
        )
        for layer in (0, 1, 2)
        for number in world.names.values()
    ]  # fmt: skip
    about = FeaturesMetadata(
        rank_by="cohen_d", top_k_per_layer=50, layers=(0, 2), total_causal=len(chosen), total_filtered=len(chosen),
        per_layer={}, source_fingerprint="", forced=False,
    )  # fmt: skip
    sample = PromptsSample(tokenizer="planted", seed=0, contexts=list(planted().contexts))
    write_json(root / FEATURES, CausalFeatures(metadata=about, features=chosen).model_dump(mode="json"))
    write_json(root / CONTEXTS, sample.model_dump(mode="json"))
    return resolve(PathwaysConfig, {"paths.out": str(root)} | more)


@pytest.fixture(autouse=True)
def on_the_planted_model(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def workers(settings: PathwaysConfig) -> Iterator[Local[Bench]]:
        yield Local(planted())

    monkeypatch.setattr(discover, "_workers", workers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a whole discovery; read only."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        on_the_planted_model.__wrapped__(patch)  # type: ignore[attr-defined]
        discover.discover(written(root))
    return root


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, bytes]:
    return contents(folder)


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in FILES}


def test_all_files_of_the_plan_are_there_and_hold_every_pathway(whole: dict[str, bytes]) -> None:
    file = validated(ValidatedPathways, json.loads(whole[PATHWAYS]), "pathways")
    names = build(0).names
    found = {(row.source, row.target) for row in file.pathways if row.validated}
    for k in range(3):
        assert (f"L0-{names[f'A.{k}']}", f"L2-{names[f'B.{k}']}") in found
    lines = [json.loads(line) for line in whole[CANDIDATES].splitlines()]
    assert file.metadata["n_targets"] == len(lines) == 48
    assert file.metadata["n_tested"] == len(file.pathways) == sum(file.summary.by_status.values())
    assert file.summary.validated == sum(file.summary.by_layer_pair.values())
    assert file.summary.targets["target_inactive"] > 0  # E at layer 2, say: at the last token of no context
    assert len(whole[REPLAYS].splitlines()) == len(file.pathways)


class Killed(BaseException):
    """As a signal: no handler of errors sees it."""


@pytest.mark.parametrize("n", slow_but([9], [1, 9, 13]))
def test_a_discovery_that_was_killed_goes_on_and_ends_in_the_same_bytes(
    n: int, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, done, original = written(tmp_path), [0], Unit.run

    def run(unit: Unit, tool: Bench, progress: Any) -> Any:
        if done[0] == n:
            raise Killed
        outcome = original(unit, tool, progress)
        done[0] += outcome.ran
        return outcome

    monkeypatch.setattr(Unit, "run", run)
    with pytest.raises(Killed):
        discover.discover(settings)
    assert len(list((tmp_path / UNITS).glob("*.jsonl"))) == n
    (tmp_path / UNITS / ".replay-L00-0000.jsonl.abcdefgh").write_text('{"source": "L0')  # what a write leaves half done
    done[0] = -1000
    discover.discover(settings)
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_whole_files_alone(whole: dict[str, bytes], tmp_path: Path) -> None:
    settings = written(tmp_path)
    code = (
        "from tests.fvcore.experiments.sae import test_discover as t\n"
        "import sys, contextlib\nfrom tests.late import import_late\nimport_late(t)\n"
        "t.discover._workers = contextlib.contextmanager(lambda settings: iter([t.Local(t.planted())]))\n"
        "t.discover.discover(t.resolve(t.PathwaysConfig, {'paths.out': sys.argv[1]}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    until = time.monotonic() + 120
    while len(list((tmp_path / UNITS).glob("*.jsonl"))) < 3 and time.monotonic() < until:
        assert process.poll() is None  # it is killed, and does not end by itself
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for path in (tmp_path / UNITS).glob("[!.]*.jsonl"):
        assert all(isinstance(row, dict) for row in read_jsonl(path))
    discover.discover(settings)
    assert contents(tmp_path) == whole


def test_other_thresholds_need_no_model_and_leave_the_run_as_it_is(
    tmp_path: Path, folder: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = resolve(PathwaysConfig, {"paths.out": str(tmp_path)})
    monkeypatch.setattr(discover, "_workers", None)
    (path,) = discover.rescore(settings)
    assert path.read_bytes() == whole[PATHWAYS]
    strict = resolve(PathwaysConfig, {"paths.out": str(tmp_path), "discover.replay.min_rel_effect": 10.0})
    file = read_json(discover.rescore(strict)[0])
    assert file["summary"]["validated"] == 0
    assert file["summary"]["by_status"]["small_effect"] > 0
    assert file["metadata"]["model"] == "planted"
    assert contents(tmp_path) == whole


def test_only_the_first_targets_are_asked_for_where_there_is_a_limit(tmp_path: Path) -> None:
    discover.discover(written(tmp_path), limit=20)
    rows = read_jsonl(tmp_path / CANDIDATES)
    assert [row["target"] for row in rows][:2] == ["L1-0", "L1-1"]  # nothing lies before layer 0
    assert len(rows) == 20


def short_of_memory(original: Callable[..., Any], at_most: int, rows: Callable[..., int]) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        if rows(*args, **named) > at_most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **named)

    return call


def test_where_memory_is_short_batches_are_halved_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    world, tried = build(0, n_contexts=4), list[int]()
    monkeypatch.setattr("fvcore.fast.chunks.gc.collect", lambda: 0)  # it takes most of the time, and frees nothing here
    enough = survey(world).pathways

    def targets(bench: Any, context: Any, layer: int, read: Any, *rest: Any) -> int:
        tried.append(len(read.threshold))
        return tried[-1]

    slopes = short_of_memory(attribution.gradients, 2, targets)
    monkeypatch.setattr(attribution, "gradients", slopes)
    edits = short_of_memory(replay.run_edits, 40, lambda bench, context, cached, rows, readers: len(rows))
    monkeypatch.setattr(replay, "run_edits", edits)
    short = survey(world).pathways
    assert tried[:2] == [3, 1]
    assert 2 in tried
    assert [(row.source, row.target, row.status) for row in short] == [
        (row.source, row.target, row.status) for row in enough
    ]


def test_a_batch_that_fails_is_told_and_too_many_end_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench, targets: Sequence[Node], **how: Any) -> Any:
        raise ValueError(f"no good: {targets[0].name}")

    monkeypatch.setattr("fvcore.experiments.sae.batches.attribute", broken)
    with pytest.raises(StepError, match=r"errors\.jsonl: 12 of 12 batches failed, the first of code: no good: L0-0"):
        discover.discover(written(tmp_path))
    rows = read_jsonl(tmp_path / ERRORS)
    assert rows[0]["batch"] == "candidates-L00-0000"
    assert "Traceback" in rows[0]["reason"]
    assert not (tmp_path / CANDIDATES).is_file()


def test_a_pathway_whose_replay_failed_has_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "MOST_FAILED", 1.0)
    original = replay.replay

    def broken(bench: Bench, sources: Any, **how: Any) -> Any:
        if next(iter(sources)).layer == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(bench, sources, **how)

    monkeypatch.setattr("fvcore.experiments.sae.batches.replay", broken)
    discover.discover(written(tmp_path))
    rows = read_json(tmp_path / PATHWAYS)["pathways"]
    assert {row["status"] for row in rows if row["source_layer"] == 1} == {"numeric_error"}
    assert any(row["validated"] for row in rows if row["source_layer"] == 0)
    assert read_jsonl(tmp_path / ERRORS)[0]["reason"].startswith("memory: ")


@pytest.mark.slow
def test_ray_s_actors_leave_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from fvcore.experiments.workers import LOCAL, ray_workers

    monkeypatch.setattr(discover, "_workers", lambda settings: ray_workers(LOCAL, planted, "cpu", 1))
    discover.discover(written(tmp_path))
    assert contents(tmp_path) == whole


def test_a_batch_is_a_file_of_its_own_and_is_not_computed_twice(tmp_path: Path) -> None:
    taken: list[int] = []

    def work(bench: Any, number: int) -> list[Any]:
        taken.append(number)
        return []

    unit = Unit(tmp_path, Batch("replay", 3, 7, partial(work, number=7)))
    tool: Any = None
    assert unit.run(tool, Watched()).ran
    assert not unit.run(tool, Watched()).ran
    assert taken == [7]
    assert [path.name for path in tmp_path.iterdir()] == ["replay-L03-0007.jsonl"]
