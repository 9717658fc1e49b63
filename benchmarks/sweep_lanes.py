"""A lane: one library's process, and what it measured round after round."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sweep_results as results
import torch
from sweep_world import Size

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("sweep_worker.py")

Task = tuple[int, int]
"""How many trials, and the heads of how many layers, counted from the first."""


class Failed(Exception):
    """A library gave no measurement."""


class Process:
    """A worker, and the lines to and from it.

    Its threads wait as they do by default: those of a worker whose turn is over sleep after a moment, and threads that are made
    to sleep at once take as long to wake as a small operation takes.
    """

    def __init__(self, name: str, python: str, job: Mapping[str, Any], folder: Path) -> None:
        self.name = name
        path = folder / f"{name}.json"
        path.write_text(json.dumps(job))
        environment = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": str(job["threads"]),
            "MKL_NUM_THREADS": str(job["threads"]),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = (folder / f"{name}.log").open("w+")
        try:
            self.popen = subprocess.Popen(
                [python, str(WORKER), str(path)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
            )
        except OSError as error:
            self.log.close()
            raise Failed(f"{name}: cannot start {python!r} ({error.strerror})") from None

    def send(self, do: str, **options: Any) -> None:
        assert self.popen.stdin is not None
        try:
            print(json.dumps({"do": do, **options}), file=self.popen.stdin, flush=True)
        except BrokenPipeError:
            raise self.ended() from None

    def answer(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise self.ended()
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Failed(f"{self.name}: {found['error']}")
        return found

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        self.send(do, **options)
        return self.answer()

    def ended(self) -> Failed:
        self.log.seek(0)
        return Failed(f"{self.name}: the process ended\n{self.log.read()[-3000:]}")

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()
        self.log.close()


class Lane:
    """One library on one model. What it measures: each task, and for engine fast the bare products of its trials."""

    def __init__(self, library: str, size: Size, tasks: list[Task], python: str, job: Mapping[str, Any]) -> None:
        self.library, self.size, self.tasks = library, size, tasks
        # A GPU does not hold the weights of all libraries at once: there each has them in its turn alone.
        self.stays = job["device"] == "cpu"
        name, folder = f"{library}-{size.n_heads}", Path(job["folder"])
        self.process = Process(name, python, {**job, "library": library, "size": size.model_dump()}, folder)
        self.facts: dict[str, Any] = {}
        self.looks: dict[Task, dict[str, Any]] = {}
        self.seconds: dict[Task, list[float]] = {task: [] for task in tasks}
        self.products: dict[int, list[dict[str, Any]]] = {n_trials: [] for n_trials, _ in tasks}

    @contextmanager
    def turn(self) -> Iterator[Process]:
        if not self.stays:
            self.facts = self.process.ask("take")
        yield self.process
        if not self.stays:
            self.process.ask("release")

    def round(self, n_products: int) -> None:
        with self.turn() as process:
            for task in self.tasks:
                # Before its first time a task is run to see what it gives and takes; then it is warm, too.
                if task not in self.looks:
                    self.looks[task] = process.ask("look", task=task)
                self.seconds[task].append(process.ask("time", task=task)["seconds"])
                if self.library == "fast":
                    found = process.ask("products", n_trials=task[0], n_times=n_products)
                    self.products[task[0]].append(found)

    # ------------------------------------------------------------ what was measured

    def timed(self, task: Task) -> results.Timed:
        n_trials, n_layers = task
        return results.Timed(
            library=self.library,
            n_trials=n_trials,
            n_heads=n_layers * self.size.n_heads,
            seconds=tuple(self.seconds[task]),
            flops=self.looks[task]["flops"],
            memory=self.looks[task]["memory"],
        )

    def bound(self, n_trials: int, which: str = "least") -> results.Products:
        found = [one[which] for one in self.products[n_trials]]
        return results.Products(
            n_trials=n_trials,
            n_heads=self.size.all_heads,
            seconds=tuple(second for one in found for second in one["seconds"]),
            flops=found[0]["flops"],
        )

    def effects(self, task: Task) -> torch.Tensor:
        """(trial, layer, head)"""
        return torch.tensor(self.looks[task]["effects"])
