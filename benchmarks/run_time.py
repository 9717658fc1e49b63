"""How long a person waits: the plugin's share of `pytest --version`, and a whole `pytest -m parity` on the shipped model.

    python benchmarks/run_time.py [rounds]

The whole run stands beside a bare process that imports torch, transformers, the model's class and its tokenizer's, and loads
both. Rounds are interleaved, every command in turn, so that a machine whose speed drifts treats all alike; plugins of others
that are installed here are left out. Medians of wall and CPU seconds are printed; nothing is asserted.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from fvcore import embedded, shipped

MODEL = "tiny-llama"
PYTEST = [sys.executable, "-m", "pytest"]
OFF, ON, WHOLE, BARE = (
    "pytest --version, plugin off",
    "pytest --version, plugin on",
    f"pytest -m parity ({MODEL})",
    "bare",
)
QUICK = {OFF: [*PYTEST, "--version"], ON: [*PYTEST, "-p", "pytest_fvparity.plugin", "--version"]}
LOADS = """
import sys
import torch, transformers
from transformers import AutoTokenizer, LlamaForCausalLM
LlamaForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
"""


class Taken(NamedTuple):
    """Seconds of one process and its children: on the clock, and of the CPU."""

    wall: float
    cpu: float


def whole_and_bare(folder: Path) -> dict[str, list[str]]:
    """Both commands, in a folder that holds the trials and nothing else: there are no tests to collect."""
    trials = shutil.copy(str(shipped.trials_of(MODEL, folder)), folder)
    return {
        WHOLE: [*PYTEST, "-p", "pytest_fvparity.plugin", "-q", "-m", "parity", f"--fv-trials={trials}"],
        BARE: [sys.executable, "-c", LOADS, str(embedded.path_of(MODEL))],
    }


def seconds(command: list[str], folder: Path) -> Taken:
    before, start = os.times(), time.perf_counter()
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Taken(wall, cpu)


def measure(commands: dict[str, list[str]], rounds: int, folder: Path) -> dict[str, list[Taken]]:
    """One warm-up, then `rounds` of every command in turn."""
    taken: dict[str, list[Taken]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            found = seconds(command, folder)
            if number:
                taken[name].append(found)
    return taken


def medians(taken: list[Taken]) -> Taken:
    return Taken(*map(statistics.median, zip(*taken, strict=True)))


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        taken = measure(QUICK, 4 * rounds, folder) | measure(whole_and_bare(folder), rounds, folder)
    table = Table("command", "median s", "min s", "max s", "median CPU s", "runs")
    for name, runs in taken.items():
        walls = [run.wall for run in runs]
        figures = (statistics.median(walls), min(walls), max(walls), medians(runs).cpu)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures), str(len(runs)))
    console = Console()
    console.print(table)
    off, on, whole, bare = (medians(taken[name]) for name in (OFF, ON, WHOLE, BARE))
    console.print(f"the plugin adds {1000 * (on.wall - off.wall):.0f} ms to pytest --version")
    console.print(f"times bare: {whole.wall / bare.wall:.2f} (wall), {whole.cpu / bare.cpu:.2f} (CPU)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
