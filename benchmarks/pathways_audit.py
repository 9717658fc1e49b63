"""What an audit of response logs costs, each way in a process of its own: with msgspec, with the standard library, and by the
plan's own text, which reads a file whole.

    python benchmarks/pathways_audit.py                  # 199 files, 1.8 million records, 1.8 GB (which must be free on disk)
    python benchmarks/pathways_audit.py --files 20       # a tenth

Seconds and memory are those of this machine, and where it is busy those of the processor say more. The logs are made up
(`fvcore/experiments/sae/generate.py`), with the fields, the white space and the length of the plan's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from fvcore.experiments.config import resolve
from fvcore.experiments.sae.audit import audit, files_of
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.generate import CHECKPOINTS, LOGS, Size, write
from fvcore.provenance import peak_rss

FEATURES_A_FILE, TRIALS, REPEAT = 50, 30, 5
WAYS = ("msgspec", "standard library", "the plan's text")


def make(root: Path, n_files: int) -> None:
    """About 9,000 records a file, of about a kilobyte each."""
    layers = (1, n_files)  # as many features as wanted, whatever layer they are said to be of
    write(root, Size(layers, FEATURES_A_FILE, TRIALS, n_checkpoints=3, n_logs=n_files, repeat=REPEAT))


def by_plan(root: Path) -> int:
    """The plan's loop over logs; returns the records."""
    counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    n = 0
    for path in files_of([str(root / LOGS)]):
        with path.open() as file:
            responses = json.load(file)
        for response in responses:
            n += 1
            if "feature" not in response or "condition" not in response or not response.get("response"):
                raise ValueError(f"{path}: record {n}")
            counts[response["feature"]][response["condition"]] += 1
    return n


def measure(root: Path, way: str) -> None:
    """In this process; prints one line of JSON."""
    started, cpu = time.perf_counter(), time.process_time()
    if way == "the plan's text":
        n = by_plan(root)
    else:
        if way == "standard library":
            sys.modules["msgspec"] = None  # type: ignore[assignment]  # as where it is not installed
        paths = {"paths.checkpoints": str(root / CHECKPOINTS), "paths.response_logs": str(root / LOGS)}
        found = audit(resolve(PathwaysConfig, paths))
        if not found.validated or any(group.severity == "warning" for group in found.issues):
            raise SystemExit(f"the audit found something in data that is right: {found.issues}")
        n = found.total_trials
    spent = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    print(json.dumps({"n": n, "peak": peak_rss()} | spent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=199)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        measure(given.root, given.way)
        return
    with tempfile.TemporaryDirectory() as root:
        make(Path(root), given.files)
        size = sum(path.stat().st_size for path in files_of([str(Path(root) / LOGS)]))
        print(f"{given.files} files, {size / 1e9:.2f} GB; the best of {given.repeats}\n")
        print(
            "| | records | seconds | of the processor | records a second of it | peak MB |\n|---|---|---|---|---|---|"
        )
        for way in WAYS:
            command = [sys.executable, __file__, "--root", root, "--way", way]
            runs = [
                json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                for _ in range(given.repeats)
            ]
            best = min(runs, key=lambda run: run["seconds"])
            print(
                f"| {way} | {best['n']:,} | {best['seconds']:.1f} | {best['cpu']:.1f} | {best['n'] / best['cpu']:,.0f} "
                f"| {max(run['peak'] for run in runs) / 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
