"""A run on Ray actors: the bytes of a local run, also when an actor is killed, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from fvcore.experiments.errors import OtherSettings
from fvcore.experiments.folder import Folder
from fvcore.experiments.model_choice import ModelChoice
from fvcore.experiments.relation import files
from fvcore.experiments.relation.gates import QIdStatus
from fvcore.experiments.status import Outcome
from fvcore.experiments.workers import ATTEMPTS, LOCAL, Actor, Local, RayError, RayWorkers, ray_workers
from fvcore.model.spec import ModelError
from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.relation.run import Summary, run
    from fvcore.experiments.relation.unit import ModelFacts, Unit
    from fvcore.model.model import LanguageModel
    from tests.fvcore.experiments.relation.worlds import SMALL, small, tree


pytestmark = pytest.mark.slow

OUT = Path("out")
LOAD = ModelChoice(model="tiny-llama").loader(0)


def facts(**changes: Any) -> Any:
    return partial(ModelFacts.of, settings=SMALL.model_copy(update=changes))


@pytest.fixture(scope="module", autouse=True)
def _no_times() -> Iterator[None]:
    """All files of all processes say the same time, so that their bytes can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "0")
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def expected(llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory, _no_times: None) -> dict[str, bytes]:
    """What a local run writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("local"))
        run(small(Path()), OUT, SMALL, Local(llama))
        return tree(OUT, files.LOG)


def run_on(workers: RayWorkers, **how: Any) -> Summary:
    return run(small(Path()), OUT, SMALL, workers, **how)


def require_same(expected: dict[str, bytes]) -> None:
    found = tree(OUT, files.LOG)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def processes() -> list[str]:
    living = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return [" ".join(child.cmdline()) for child in living]


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Other processes start and end a Ray of their own meanwhile. The path is short: sockets lie in it."""
    tmp_path_factory.getbasetemp()  # made now, or it would lie in this folder
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


def sessions() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("fvcore-ray-*"))


# ---------------------------------------------------------------- the same as a local run


def test_two_actors_give_the_bytes_of_a_local_run_and_leave_nothing(here: Path, expected: dict[str, bytes]) -> None:
    import ray

    before, home = sessions(), {path.name for path in Path.home().iterdir()}
    with ray_workers(LOCAL, LOAD) as workers:
        assert len(sessions() - before) == 1
        summary = run_on(Seen(workers.load))
        # A part of Ray's head bears the dashboard's name; nobody is served.
        heads = [command for command in processes() if "dashboard.py" in command]
        assert all("--disable-frontend" in command for command in heads)
        assert not ray.get_runtime_context().worker.node.address_info["webui_url"]

    assert summary.q_ids("completed") == ["Q1", "Q10", "Q2"]
    assert summary.q_ids("skipped") == ["Q3"]
    require_same(expected)
    assert Seen.n_made == 2
    assert not ray.is_initialized()
    assert sessions() == before
    assert {path.name for path in Path.home().iterdir()} == home
    assert not [command for command in processes() if "raylet" in command or "gcs_server" in command]


class Seen(RayWorkers):
    """Two actors, however many CPUs there are, and how many were made."""

    n_made = 0

    @property
    def n_actors(self) -> int:
        return min(2, super().n_actors)

    def _new_actor(self) -> Any:
        Seen.n_made += 1
        return super()._new_actor()


# ---------------------------------------------------------------- what dies, and what is wrong


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    """One Ray for the tests below; each takes actors of its own."""
    with ray_workers(LOCAL, LOAD):
        yield


class DiesOnce(Actor):
    """An actor that is killed in the middle of a file of one q_id; the next one is not."""

    def run(self, unit: Unit) -> Outcome:
        _ = self.tool  # with it the actor is in the run's folder
        mark = Path("killed")
        if unit.name == "Q10" and not mark.exists():
            mark.touch()
            _kill_at_file(8)
        return super().run(unit)


class Deadly(Actor):
    """An actor that dies of one q_id, as often as it is asked."""

    def run(self, unit: Unit) -> Outcome:
        if unit.name == "Q10":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(unit)


def _kill_at_file(n: int) -> None:
    """kill -9 when the n-th file is written and not yet under its name."""
    fsync, written = os.fsync, 0

    def counting(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == n:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = counting


def workers_of(actor: type[Actor]) -> RayWorkers:
    """Two actors of another kind, on the Ray that is connected."""

    class Others(RayWorkers):
        @property
        def n_actors(self) -> int:
            return min(2, super().n_actors)

        def _new_actor(self) -> Any:
            import ray

            made = ray.remote(num_cpus=1, max_restarts=0)(actor)
            return made.remote(self.load, self.folder, 1)

    return Others(LOAD)


def test_a_killed_actors_q_id_is_taken_up_again(here: Path, connected: None, expected: dict[str, bytes]) -> None:
    summary = run_on(workers_of(DiesOnce))

    assert (here / "killed").exists()
    assert summary.q_ids("completed") == ["Q1", "Q10", "Q2"]
    require_same(expected)


def test_a_q_id_that_kills_every_actor_fails_the_others_go_on_and_a_local_run_after_them(
    here: Path, connected: None, llama: LanguageModel, expected: dict[str, bytes]
) -> None:
    summary = run_on(workers_of(Deadly))

    assert (summary.q_ids("completed"), summary.q_ids("failed")) == (["Q1", "Q2"], ["Q10"])
    found = QIdStatus.read(Folder(OUT / "Q10"))
    assert found is not None
    assert (found.status, found.cause, found.step) == ("failed", "code", "actor")
    assert f"ended {ATTEMPTS} times" in found.reason

    run(small(Path()), OUT, SMALL, Local(llama))
    require_same(expected)


def test_stopping_at_the_first_failure_ends_all_actors(
    here: Path, connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fvcore.experiments.workers.ATTEMPTS", 1)
    own = workers_of(Deadly)
    summary = run_on(own, q_ids=["Q10"], stop_on_error=True)

    assert summary.stopped
    assert own.actors == []


def test_what_an_actor_refuses_is_said_as_a_local_run_says_it(
    here: Path, connected: None, llama: LanguageModel
) -> None:
    run(small(Path()), OUT, SMALL, Local(llama), q_ids=["Q1"])
    with pytest.raises(OtherSettings, match="seed is 0, now 1"):
        run(small(Path()), OUT, SMALL.model_copy(update={"seed": 1}), workers_of(Actor))
    with pytest.raises(ModelError, match="top 25 heads asked for"):
        RayWorkers(LOAD).ask(facts(top_heads=25))
    with pytest.raises(ModelError, match="no-such-model"):
        RayWorkers(ModelChoice(model="no-such-model").loader(0)).ask(facts())
    with pytest.raises(RayError, match="/no/such/folder is not on"):
        RayWorkers(LOAD, folder="/no/such/folder").ask(facts())


def test_an_actor_that_fits_nowhere_is_refused(connected: None) -> None:
    import ray

    with pytest.raises(RayError, match=r"an actor needs 999 CPUs, Ray has \d+ CPUs"):
        _ = RayWorkers(LOAD, n_cpus=999).n_actors
    if not ray.cluster_resources().get("GPU"):
        with pytest.raises(RayError, match="an actor needs a GPU"):
            _ = RayWorkers(LOAD, needs_gpu=True).n_actors


def test_one_gpu_by_number_is_refused() -> None:
    with pytest.raises(RayError, match="one GPU of one machine"), ray_workers(LOCAL, LOAD, "cuda:1"):
        raise AssertionError("not reached")


LISTENING = """
import psutil
from fvcore.experiments.workers import LOCAL, ray_workers

def load():
    return 1

if __name__ == "__main__":
    with ray_workers(LOCAL, load) as workers:
        workers.ask(str)
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            for one in process.net_connections(kind="inet"):
                if one.status == "LISTEN":
                    print(one.laddr.ip)
"""


@pytest.mark.parametrize("before", ["", "import ray"])
def test_a_ray_of_a_runs_own_listens_on_loopback_alone(tmp_path: Path, before: str) -> None:
    (tmp_path / "listening.py").write_text(before + LISTENING)

    done = subprocess.run([sys.executable, "listening.py"], cwd=tmp_path, capture_output=True, text=True, check=True)

    listening = {address.removeprefix("::ffff:") for address in done.stdout.split()}
    assert listening == {"127.0.0.1"}
