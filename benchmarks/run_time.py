"""How long a person waits: the plugin's share of `pytest --version`, and a whole `pytest -m parity`.

    python benchmarks/run_time.py [rounds]

Rounds are interleaved, with and without the plugin in turn, so that a machine whose speed drifts treats both alike.
Medians are printed; nothing is asserted.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

PYTEST = [sys.executable, "-m", "pytest"]
COMMANDS = {
    "pytest --version, plugin off": [*PYTEST, "-p", "no:fvparity", "--version"],
    "pytest --version, plugin on": [*PYTEST, "--version"],
}
PARITY = {"pytest -m parity (tiny-llama)": [*PYTEST, "-q", "-m", "parity"]}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def measure(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """One warm-up, then `rounds` of every command in turn."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            wall = seconds(command)
            if number:
                taken[name].append(wall)
    return taken


def main(rounds: int) -> None:
    taken = measure(COMMANDS, 4 * rounds) | measure(PARITY, rounds)
    table = Table("command", "median s", "min s", "max s", "runs")
    for name, walls in taken.items():
        table.add_row(name, *(f"{x:.3f}" for x in (statistics.median(walls), min(walls), max(walls))), str(len(walls)))
    console = Console()
    console.print(table)
    off, on = (statistics.median(taken[name]) for name in COMMANDS)
    console.print(f"the plugin adds {1000 * (on - off):.0f} ms to pytest --version")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
