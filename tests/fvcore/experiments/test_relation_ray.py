"""A run on Ray actors: the same files as a local run, also when an actor is killed, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import ray

from fvcore import models
from fvcore.experiments.relation import data, files, status
from fvcore.experiments.relation.ray_workers import (
    ATTEMPTS,
    LOCAL,
    ModelActor,
    ModelChoice,
    RayError,
    RayWorkers,
    ray_workers,
)
from fvcore.experiments.relation.run import Local, Summary, run
from fvcore.experiments.relation.settings import RelationSettings
from fvcore.experiments.relation.unit import Outcome, Unit
from fvcore.experiments.runtime.errors import OtherSettings
from fvcore.experiments.runtime.layout import Folder
from fvcore.model_spec import ModelError

SETTINGS = RelationSettings(n_trials=4, n_demos=4, topk=4, n_eval=4, n_random=1, pictures=False)
CHOICE = ModelChoice("tiny-llama")
Q_IDS = ["Q1", "Q10", "Q12", "Q13", "Q2"]
TIMES = re.compile(rb'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[^"\s]*')


@pytest.fixture(scope="module")
def relation() -> data.Relation:
    return data.read(Path("datasets", "relation", "relationA_ex.csv"))


@pytest.fixture(scope="module")
def local(relation: data.Relation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("local")
    run(relation, root, SETTINGS, Local(models.load("tiny-llama")), Q_IDS)
    return root


def on_ray(workers: RayWorkers, relation: data.Relation, root: Path, **how: Any) -> Summary:
    return run(relation, root, SETTINGS, workers, how.pop("q_ids", Q_IDS), **how)


def contents(root: Path) -> dict[str, bytes]:
    """Every file of every q_id and of the overview, times aside."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and "_status" not in path.parts)
    return {path.relative_to(root).as_posix(): TIMES.sub(b"(time)", path.read_bytes()) for path in found}


def require_same(root: Path, local: Path) -> None:
    # run_meta.json and qid_status.json hold digests of files that hold times; the files themselves are all compared.
    holds_digests = ("artifacts/run_meta.json", files.STATUS)
    one, two = contents(local), contents(root)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name] and not name.endswith(holds_digests)] == []


def children() -> set[str]:
    return {child.name() for child in psutil.Process().children(recursive=True) if child.status() != "zombie"}


# ---------------------------------------------------------------- the same as a local run


def test_two_actors_give_the_bytes_of_a_local_run_and_leave_nothing(
    relation: data.Relation, local: Path, tmp_path: Path
) -> None:
    before = set(Path(tempfile.gettempdir()).glob("fvcore-ray-*"))
    home = {path.name for path in Path.home().iterdir()}
    with ray_workers(LOCAL, CHOICE) as workers:
        session = set(Path(tempfile.gettempdir()).glob("fvcore-ray-*")) - before
        assert len(session) == 1
        assert not any("dashboard" in name and "agent" not in name for name in children())
        summary = on_ray(workers, relation, tmp_path)
        assert summary.q_ids("completed") == ["Q1", "Q10", "Q12", "Q13", "Q2"]

    require_same(tmp_path, local)
    assert not ray.is_initialized()
    assert set(Path(tempfile.gettempdir()).glob("fvcore-ray-*")) == before
    assert {path.name for path in Path.home().iterdir()} == home
    assert not [name for name in children() if "ray" in name or "gcs" in name]


# ---------------------------------------------------------------- what dies, and what is wrong


@pytest.fixture(scope="module")
def workers() -> Iterator[RayWorkers]:
    """One Ray for the tests below; each takes actors of its own."""
    with ray_workers(LOCAL, CHOICE) as found:
        yield found


class Slow(ModelActor):
    """An actor that says in a file which process it is, and waits a moment before it ends its q_id."""

    def run(self, unit: Unit) -> Outcome:
        where = Path(os.environ.get("FVCORE_TEST", "/nowhere"))
        if where.is_dir():
            (where / f"{unit.q_id}-{os.getpid()}").touch()
        outcome = super().run(unit)
        time.sleep(0.5)
        return outcome


class Doomed(ModelActor):
    """An actor that dies of one q_id, as often as it is asked."""

    def run(self, unit: Unit) -> Outcome:
        if unit.q_id == "Q10":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(unit)


def with_actors(workers: RayWorkers, actor: type[ModelActor], where: Path | None = None) -> RayWorkers:
    """The same Ray with other actors."""

    class Others(RayWorkers):
        def _new_actor(self) -> Any:
            env = {"env_vars": {"FVCORE_TEST": str(where)}} if where else {}
            made = ray.remote(num_cpus=1, max_restarts=0, runtime_env=env)(actor)
            return made.remote(self.choice, 1)

    return Others(workers.choice, workers.n_cpus)


def test_a_killed_actors_q_id_is_taken_up_again(
    workers: RayWorkers, relation: data.Relation, local: Path, tmp_path: Path
) -> None:
    root, marks = tmp_path / "run", tmp_path / "marks"
    marks.mkdir()
    killed: list[str] = []

    def kill_one() -> None:
        while not killed:
            for mark in marks.iterdir():
                q_id, _, pid = mark.name.partition("-")
                found = status.read(Folder(root / q_id))
                if found is not None and found.status == "running":
                    os.kill(int(pid), signal.SIGKILL)
                    killed.append(q_id)
                    return
            time.sleep(0.01)

    killer = Thread(target=kill_one, daemon=True)
    killer.start()
    summary = on_ray(with_actors(workers, Slow, marks), relation, root)
    killer.join(timeout=1)

    assert len(killed) == 1
    assert len({mark.name for mark in marks.iterdir() if mark.name.startswith(f"{killed[0]}-")}) == 2
    assert summary.q_ids("completed") == sorted(Q_IDS)
    require_same(root, local)


def test_a_q_id_that_kills_every_actor_fails_and_the_others_go_on(
    workers: RayWorkers, relation: data.Relation, tmp_path: Path
) -> None:
    summary = on_ray(with_actors(workers, Doomed), relation, tmp_path, q_ids=["Q1", "Q10", "Q13"])

    assert (summary.q_ids("completed"), summary.q_ids("failed")) == (["Q1", "Q13"], ["Q10"])
    found = status.read(Folder(tmp_path / "Q10"))
    assert found is not None
    assert (found.status, found.cause, found.step) == ("failed", "code", "actor")
    assert f"ended {ATTEMPTS} times" in found.reason


def test_what_an_actor_refuses_is_said_as_a_local_run_says_it(
    workers: RayWorkers, relation: data.Relation, local: Path
) -> None:
    with pytest.raises(OtherSettings, match="seed is 0, now 1"):
        run(relation, local, SETTINGS.model_copy(update={"seed": 1}), RayWorkers(CHOICE), Q_IDS)
    with pytest.raises(ModelError, match="top 25 heads asked for"):
        RayWorkers(CHOICE).facts(SETTINGS.model_copy(update={"topk": 25}))
    with pytest.raises(ModelError, match="no-such-model"):
        RayWorkers(ModelChoice("no-such-model")).facts(SETTINGS)
    with pytest.raises(RayError, match="/no/such/folder is not on"):
        RayWorkers(ModelChoice("tiny-llama", folder="/no/such/folder")).facts(SETTINGS)


def test_an_actor_that_nothing_fits_is_refused(workers: RayWorkers) -> None:
    with pytest.raises(RayError, match=r"an actor needs 999 CPUs, Ray has \d+ CPUs"):
        _ = RayWorkers(CHOICE, n_cpus=999).n_actors
    if not ray.cluster_resources().get("GPU"):
        with pytest.raises(RayError, match="an actor needs a GPU"):
            _ = RayWorkers(ModelChoice("tiny-llama", device="cuda")).n_actors


def test_stopping_at_the_first_error_ends_all_actors(
    workers: RayWorkers, relation: data.Relation, tmp_path: Path
) -> None:
    own = with_actors(workers, Doomed)
    summary = on_ray(own, relation, tmp_path, q_ids=["Q10"], stop_on_error=True)

    assert summary.stopped
    assert own.actors == []


def test_one_gpu_by_number_is_refused() -> None:
    choice = ModelChoice("tiny-llama", device="cuda:1")
    with pytest.raises(RayError, match="one GPU of one machine"), ray_workers(LOCAL, choice):
        raise AssertionError("not reached")
