"""Ray actors as a run's workers: each keeps the model it has loaded, and takes the next q_id when it has ended one.

What an actor does with a q_id is `unit.run_unit`, as a local run does it, on files that all machines see. An actor that
dies leaves its q_id as a killed process leaves it: another actor takes it up where it stands. Ray itself is imported only
here, and only when it is asked for.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from fvcore.experiments.relation import files, status
from fvcore.experiments.relation.causes import Cause, Failure
from fvcore.experiments.relation.settings import RelationSettings
from fvcore.experiments.relation.unit import ModelFacts, Outcome, Unit, run_unit
from fvcore.experiments.steps.layout import Folder
from fvcore.formats import write_text
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError

LOCAL = "local"
"""In an address's place: a Ray of this run's own, on this machine."""

ATTEMPTS = 3
"""How many actors may die of one q_id before it counts as failed: a q_id that kills whoever takes it must not go on."""


LOW_MEMORY = "running low on memory"
"""What Ray says of a process that it killed itself for its memory."""

SHOWN = 300  # characters of what Ray says


class RayError(ModelError):
    """There is no Ray, or it offers nothing to run on."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What each actor loads: the options of `models.load`, as plain values.

    folder: where the run was started; names of files are relative to it on every machine
    """

    name: str
    spec: str | None = None
    device: str | None = None
    dtype: str | None = None
    quant: str | None = None
    seed: int = 0
    folder: str = field(default_factory=os.getcwd)

    @property
    def needs_gpu(self) -> bool:
        return (self.device or "cpu").startswith("cuda")

    def load(self) -> LanguageModel:
        from fvcore.model import model as models

        try:
            os.chdir(self.folder)
        except OSError as error:
            raise RayError(
                f"{self.folder} is not on {os.uname().nodename} ({error.strerror}); all machines of a run must share the "
                "folder that it is started in"
            ) from None
        return models.load(self.name, self.device, self.dtype, seed=self.seed, spec=self.spec, quant=self.quant)


class ModelActor:
    """One process with its model. It is loaded when it is first needed, so that what is wrong with it is a plain error."""

    def __init__(self, choice: ModelChoice, n_threads: int) -> None:
        import torch

        torch.set_num_threads(n_threads)
        self.choice = choice

    @cached_property
    def lm(self) -> LanguageModel:
        return self.choice.load()

    def facts(self, settings: RelationSettings) -> ModelFacts:
        return ModelFacts.of(self.lm, settings)

    def run(self, unit: Unit) -> Outcome:
        return run_unit(self.lm, unit)


@dataclass
class RayWorkers:
    """`Workers` on a Ray that is connected. `n_cpus` of each actor are its threads as well."""

    choice: ModelChoice
    n_cpus: int = 1
    actors: list[Any] = field(default_factory=list)

    @property
    def n_actors(self) -> int:
        """One for each GPU, or for each `n_cpus` CPUs; raises RayError where there is none."""
        import ray

        there = ray.cluster_resources()
        n = int(there.get("GPU", 0)) if self.choice.needs_gpu else int(there.get("CPU", 0)) // self.n_cpus
        if n < 1:
            wanted = "a GPU" if self.choice.needs_gpu else f"{self.n_cpus} CPUs"
            have = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
            raise RayError(f"--ray: an actor needs {wanted}, Ray has {have} (--device, --ray-cpus)")
        return n

    def facts(self, settings: RelationSettings) -> ModelFacts:
        """As an actor sees the model: this process loads none, and may have no device for it."""
        import ray

        actor = self._new_actor()
        self.actors.append(actor)
        with _own_errors():
            found: ModelFacts = ray.get(actor.facts.remote(settings))
        return found

    def map(self, units: Sequence[Unit]) -> Generator[Outcome]:
        """An outcome as each q_id ends. A q_id whose actor died is taken up by another, before those that wait."""
        import ray

        waiting, deaths = deque(units), dict.fromkeys((unit.q_id for unit in units), 0)
        running: dict[Any, tuple[Any, Unit]] = {}
        n = min(self.n_actors, len(units))
        self.actors += [self._new_actor() for _ in range(n - len(self.actors))]
        idle = list(self.actors)
        try:
            while waiting or running:
                while idle and waiting:
                    actor, unit = idle.pop(), waiting.popleft()
                    running[actor.run.remote(unit)] = (actor, unit)
                (done,), _ = ray.wait(list(running), num_returns=1)
                actor, unit = running.pop(done)
                try:
                    with _own_errors():
                        outcome: Outcome = ray.get(done)
                except _deaths() as death:
                    idle.append(self._replaced(actor))
                    deaths[unit.q_id] += 1
                    if deaths[unit.q_id] < ATTEMPTS:
                        waiting.appendleft(unit)
                        continue
                    outcome = _given_up(unit, death)
                else:
                    idle.append(actor)
                yield outcome
        finally:
            # What still runs is stopped as by kill -9, and left for the next run to take up.
            for actor in self.actors:
                _kill(actor)
            self.actors.clear()

    def _new_actor(self) -> Any:
        import ray

        gpus = 1 if self.choice.needs_gpu else 0
        made = ray.remote(num_cpus=self.n_cpus, num_gpus=gpus, max_restarts=0)(ModelActor)
        return made.remote(self.choice, self.n_cpus)

    def _replaced(self, dead: Any) -> Any:
        """A new actor in a dead one's place. One that is only out of reach must not write beside it."""
        _kill(dead)
        self.actors.remove(dead)
        self.actors.append(self._new_actor())
        return self.actors[-1]


@contextmanager
def ray_workers(address: str, choice: ModelChoice, n_cpus: int = 1) -> Iterator[RayWorkers]:
    """Workers on the Ray at an address, or on one of their own: that one is gone with all its files when this ends.

    No dashboard is served, nothing is reported to anybody, and what actors print stays with Ray.
    """
    if choice.device == "auto":
        raise RayError("--device auto does not say what an actor needs; with --ray say cuda or cpu")
    if choice.needs_gpu and choice.device != "cuda":
        raise RayError(f"--device {choice.device} is one GPU of one machine; with --ray each actor has its own: cuda")
    ray, scratch, before = _ray(), None, dict(os.environ)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        # Ray lets in who knows a token. Where it finds none it writes one into the home folder, and that one stays.
        os.environ["RAY_AUTH_TOKEN"] = _token()
        # Sockets lie in this folder, and their paths must be short.
        scratch = Path(tempfile.mkdtemp(prefix="fvcore-ray-"))
        how |= {"include_dashboard": False, "_temp_dir": str(scratch), "num_cpus": _cpus()}
    try:
        try:
            ray.init(address=address, **how)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RayError(f"--ray {address}: no Ray there ({' '.join(str(error).split())})") from error
        yield RayWorkers(choice, n_cpus)
    finally:
        ray.shutdown()
        if scratch:
            for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
                os.environ.pop(name, None)
                os.environ |= {name: before[name]} if name in before else {}
            shutil.rmtree(scratch, ignore_errors=True)


@cache
def _token() -> str:
    """One a process: Ray remembers the first it has seen."""
    return secrets.token_hex(32)


def _cpus() -> int:
    """Those that this process may use: inside an allocation not all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise RayError(f"--ray needs Ray ({error}): pip install 'pytest-fvparity[ray]'") from None
    return ray


@contextmanager
def _own_errors() -> Iterator[None]:
    """What a method of the actor raised, as it raised it."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise error.cause from None


def _deaths() -> tuple[type[BaseException], ...]:
    """What says that a process ended, and nothing of what it was doing."""
    from ray import exceptions

    names = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")
    return tuple(getattr(exceptions, name) for name in names)


def _kill(actor: Any) -> None:
    import ray

    with suppress(Exception):  # it may be dead, or Ray gone
        ray.kill(actor, no_restart=True)


def _given_up(unit: Unit, death: BaseException) -> Outcome:
    """A q_id that nobody could bring to an end: its status says so, as it would of an exception."""
    words = " ".join(str(death).split())
    reason = f"its process ended {ATTEMPTS} times without a word: {words:.{SHOWN}}"
    # A process that was merely killed is said to have run out of memory perhaps: that is no cause.
    cause: Cause = "memory" if LOW_MEMORY in words else "code"
    folder = Folder(unit.folder)
    write_text(folder / files.FAILURE_LOG, f"{reason}\n")
    if (current := status.read(folder)) is not None:
        status.write(folder, current, "failed", reason=reason, cause=cause, step="actor")
    return Outcome(
        unit.q_id, "failed", reason, failure=Failure(unit.q_id, cause, "actor", type(death).__name__, reason, words)
    )
