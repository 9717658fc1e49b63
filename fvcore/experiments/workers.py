"""Who computes a run's units: this process, or Ray actors, each with what all units need (a model) loaded once.

A unit is brought to its end by its own `run`, in its own folder, here as there. An actor that dies leaves its unit as a
killed process leaves it: another actor takes it up where it stands. Whoever lost its device computes nothing more: an actor
makes room for another, and this process stops. Ray is imported only here, and only when it is asked
for.
"""

import os
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fvcore.exits import in_one_line
from fvcore.experiments.errors import Cause, DeviceLost
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.status import Outcome
from fvcore.model.spec import ModelError

LOCAL = "local"
"""In an address's place: a Ray of this run's own, on this machine."""

ATTEMPTS = 3
"""How many actors may die of one unit before it counts as failed: a unit that kills whoever takes it must not go on."""

LOW_MEMORY = "running low on memory"
"""What Ray says of a process that it killed itself for its memory."""

TOKEN = secrets.token_hex(32)  # one a process: Ray remembers the first it has seen
OWN = {"RAY_AUTH_TOKEN": TOKEN, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""The environment of a Ray of this run's own. It lets in who knows the token: where it finds none it writes one into the
home folder, and that one stays. And it listens on loopback alone, as it does by itself where it knows no clusters; an
address of loopback that it is given it takes for the network's. It reads this when it is imported, which may be long ago:
what it read is set as well.
"""

SHOWN = 300  # characters of what Ray says

Tool = TypeVar("Tool")
Answer = TypeVar("Answer")
Taken = TypeVar("Taken", contravariant=True)
Held = TypeVar("Held", covariant=True)


class Unit(Protocol[Taken]):
    """One part of a run, in a folder of its own: plain values, so that it can be sent anywhere."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    def run(self, tool: Taken, progress: Progressing) -> Outcome:
        """Take the unit up where it stands and end it; what is wrong with it is an outcome, not an exception."""

    def give_up(self, cause: Cause, reason: str) -> Outcome:
        """Say in the unit's status that nobody could bring it to an end."""


class Workers(Protocol[Held]):
    """Who computes: one process, or many."""

    def ask(self, question: Callable[[Held], Answer]) -> Answer:
        """What is said of the tool where it is loaded; raises what `question` raises."""

    def map(self, units: Sequence[Unit[Held]]) -> Generator[Outcome]:
        """`run` of every unit, an outcome as each ends, in any order. Closing the generator stops what is left.

        Raises DeviceLost behind the outcome of a unit at which this process lost its device.
        """


@dataclass(frozen=True, slots=True)
class Local(Generic[Tool]):
    """This process, one unit after the other."""

    tool: Tool
    progress: Callable[[str], Progressing] = field(default=lambda name: Watched())

    def ask(self, question: Callable[[Tool], Answer]) -> Answer:
        return question(self.tool)

    def map(self, units: Sequence[Unit[Tool]]) -> Generator[Outcome]:
        for unit in units:
            yield (outcome := unit.run(self.tool, self.progress(unit.name)))
            _require_device(outcome)


def _require_device(outcome: Outcome) -> None:
    """Raises DeviceLost where this process has lost its device: whatever unit it took next would fail as well."""
    if outcome.cause == "device":
        raise DeviceLost(
            f"{outcome.name}: this process lost its device; start the same command again: {outcome.reason}"
        )


class RayError(ModelError):
    """There is no Ray, or it offers nothing to run on."""


class Actor(Generic[Tool]):
    """One process. Its tool is loaded when it is first needed, so that what is wrong with it is a plain error."""

    def __init__(self, load: Callable[[], Tool], folder: str, n_threads: int) -> None:
        import torch

        torch.set_num_threads(n_threads)
        self.load, self.folder = load, folder

    @cached_property
    def tool(self) -> Tool:
        try:
            os.chdir(self.folder)  # where the run was started; names of files are relative to it on every machine
        except OSError as error:
            raise RayError(
                f"{self.folder} is not on {os.uname().nodename} ({error.strerror}); all machines of a run must share the "
                "folder that it is started in"
            ) from None
        return self.load()

    def ask(self, question: Callable[[Tool], Answer]) -> Answer:
        return question(self.tool)

    def run(self, unit: Unit[Tool]) -> Outcome:
        outcome = unit.run(self.tool, Watched())
        _require_device(outcome)
        return outcome


@dataclass
class RayWorkers(Generic[Tool]):
    """`Workers` on a Ray that is connected. `n_cpus` of each actor are its threads as well."""

    load: Callable[[], Tool]
    needs_gpu: bool = False
    n_cpus: int = 1
    folder: str = field(default_factory=os.getcwd)
    actors: list[Any] = field(default_factory=list)

    @property
    def n_actors(self) -> int:
        """One for each GPU, or for each `n_cpus` CPUs; raises RayError where there is none."""
        import ray

        there = ray.cluster_resources()
        n = int(there.get("GPU", 0)) if self.needs_gpu else int(there.get("CPU", 0)) // self.n_cpus
        if n < 1:
            wanted = "a GPU" if self.needs_gpu else f"{self.n_cpus} CPUs"
            have = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
            raise RayError(f"--ray: an actor needs {wanted}, Ray has {have} (--device, --ray-cpus)")
        return n

    def ask(self, question: Callable[[Tool], Answer]) -> Answer:
        """As an actor sees it: this process loads nothing, and may have no device for it."""
        actor = self._new_actor()
        self.actors.append(actor)
        answer: Answer = _got(actor.ask.remote(question))
        return answer

    def map(self, units: Sequence[Unit[Tool]]) -> Generator[Outcome]:
        """An outcome as each unit ends. A unit whose actor died is taken up by another, before those that wait."""
        waiting, deaths = deque(units), dict.fromkeys((unit.name for unit in units), 0)
        running: dict[Any, tuple[Any, Unit[Tool]]] = {}
        self.actors += [self._new_actor() for _ in range(min(self.n_actors, len(units)) - len(self.actors))]
        idle = list(self.actors)
        try:
            while waiting or running:
                while idle and waiting:
                    actor, unit = idle.pop(), waiting.popleft()
                    running[actor.run.remote(unit)] = (actor, unit)
                actor, unit, ended = self._next(running)
                if isinstance(ended, Outcome):
                    idle.append(actor)
                    yield ended
                    continue
                # A new actor takes its place. One that is only out of reach must not write beside it.
                _kill(actor)
                self.actors.remove(actor)
                self.actors.append(self._new_actor())
                idle.append(self.actors[-1])
                deaths[unit.name] += 1
                if deaths[unit.name] < ATTEMPTS:
                    waiting.appendleft(unit)
                    continue
                words = in_one_line(ended)
                # A process that was merely killed is said to have run out of memory perhaps: that is no cause.
                lost = isinstance(ended, DeviceLost)
                cause: Cause = "device" if lost else "memory" if LOW_MEMORY in words else "code"
                how = "lost its device {} times" if lost else "ended {} times without a word"
                yield unit.give_up(cause, f"its process {how.format(ATTEMPTS)}: {words:.{SHOWN}}")
        finally:
            # What still runs is stopped as by kill -9, and left for the next run to take up.
            for actor in self.actors:
                _kill(actor)
            self.actors.clear()

    def _next(self, running: dict[Any, tuple[Any, Unit[Tool]]]) -> tuple[Any, Unit[Tool], Outcome | BaseException]:
        """The actor that ends first, its unit, and what became of it, or what the actor died of."""
        import ray
        from ray import exceptions as of

        (done,), _ = ray.wait(list(running), num_returns=1)
        actor, unit = running.pop(done)
        try:
            outcome: Outcome = _got(done)
        # These say that a process ended, and nothing of what it was doing; or that it can do nothing more.
        except (of.RayActorError, of.WorkerCrashedError, of.NodeDiedError, of.OutOfMemoryError, DeviceLost) as death:
            return actor, unit, death
        return actor, unit, outcome

    def _new_actor(self) -> Any:
        import ray

        gpus = 1 if self.needs_gpu else 0
        made = ray.remote(num_cpus=self.n_cpus, num_gpus=gpus, max_restarts=0)(Actor)
        return made.remote(self.load, self.folder, self.n_cpus)


@contextmanager
def ray_workers(
    address: str, load: Callable[[], Tool], device: str | None = None, n_cpus: int = 1
) -> Iterator[RayWorkers[Tool]]:
    """Workers on the Ray at an address, or on one of their own: that one is gone with all its files when this ends.

    No dashboard is served, nothing is reported to anybody, and what actors print stays with Ray.
    """
    if device == "auto":
        raise RayError("--device auto does not say what an actor needs; with --ray say cuda or cpu")
    needs_gpu = (device or "cpu").startswith("cuda")
    if needs_gpu and device != "cuda":
        raise RayError(f"--device {device} is one GPU of one machine; with --ray each actor has its own: cuda")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    scratch, before = None, dict(os.environ)
    os.environ |= OWN if address == LOCAL else {}
    try:
        import ray
    except ImportError as error:
        raise RayError(f"--ray needs Ray ({error}): pip install 'pytest-fvparity[ray]'") from None
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        # Sockets lie in this folder, and their paths must be short.
        scratch = Path(tempfile.mkdtemp(prefix="fvcore-ray-"))
        how |= {"include_dashboard": False, "_temp_dir": str(scratch)}
        # Those that this process may use: inside an allocation not all that the machine has.
        how["num_cpus"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        try:
            with _knowing_no_clusters() if address == LOCAL else nullcontext():
                ray.init(address=address, **how)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RayError(f"--ray {address}: no Ray there ({in_one_line(error)})") from error
        if address == LOCAL and not ip_address(here := ray.util.get_node_ip_address()).is_loopback:
            raise RayError(f"--ray: this version of Ray listens at {here}, and not on loopback alone; none is started")
        yield RayWorkers(load, needs_gpu, n_cpus)
    finally:
        ray.shutdown()
        if scratch:
            for name in ("RAY_AUTH_MODE", *OWN):
                os.environ.pop(name, None)
                os.environ |= {name: before[name]} if name in before else {}
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _knowing_no_clusters() -> Iterator[None]:
    from ray._private import ray_constants

    known = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known


def _got(answer: Any) -> Any:
    """What a method of the actor returned; what it raised, as it raised it."""
    import ray

    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _kill(actor: Any) -> None:
    import ray

    with suppress(Exception):  # it may be dead, or Ray gone
        ray.kill(actor, no_restart=True)
