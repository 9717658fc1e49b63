"""How fast all heads of a model are swept, by every library on the same model, prompt and heads.

    python benchmarks/sweep.py --size 12x768 --fv-src PATH --peers-python PATH --out docs/performance.json

One process a library, rounds interleaved: each library measures once while the others wait, then the next round, so that a
machine whose speed drifts treats all alike. Libraries that make one pass for each head are timed on the heads of the first
layers, and scaled by passes and tokens. Effects of all libraries are compared with the fast engine's; how far they are
apart is part of the figures, and nothing is asserted of time. `sweep_page.py` makes the page.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import sweep_page
import torch
import typer
from rich.console import Console
from sweep_lanes import Failed, Lane, Task
from sweep_results import LIBRARIES, About, Curve, Figures, Machine, Run
from sweep_world import Size, fixed_trials

from fvcore.model.model import DTYPES
from fvcore.trials import fixed as trials
from pytest_fvparity.reference.reference import RecordingError, require_checkout

PEERS = ("transformer_lens", "nnsight")
N_PRODUCTS = 20
"""How often the bare matrix products are timed, over all rounds."""

app = typer.Typer(add_completion=False)
console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 180)
err = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Plan:
    """What is measured on every size, and how."""

    pythons: Mapping[str, str]  # library -> the interpreter that has it
    job: Mapping[str, str | int]  # device, dtype, threads, fv_src: handed to every process
    rounds: int
    n_trials: int
    heads_timed: int
    whole: bool
    curves: bool
    n_products: int = N_PRODUCTS

    def layers_timed(self, size: Size) -> int:
        return min(size.n_layers, -(-self.heads_timed // size.n_heads))

    def counts(self) -> list[int]:
        """Numbers of trials: one and the most, or four (1, 4, 7, 10)."""
        n_points = 4 if self.curves else 2
        return sorted({1 + (self.n_trials - 1) * k // (n_points - 1) for k in range(n_points)})

    def shapes(self, size: Size) -> list[Size]:
        """Half as many heads, as many, twice and four times, in matrices of the same size."""
        drawn = self.curves and not size.shipped
        return [size.with_heads(size.n_heads * k // 2) for k in (1, 2, 4, 8)] if drawn else []


def measure(size: Size, plan: Plan) -> Run:
    """All libraries on one model, round after round."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trials.write(Path(folder) / "trials.json", fixed_trials(plan.n_trials).file)
        size.config().save_pretrained(folder)
        busy = psutil.cpu_percent(interval=1) / 100

        def lane(library: str, size: Size, tasks: list[Task]) -> Lane:
            found = Lane(library, size, tasks, plan.pythons[library], {**plan.job, "folder": folder})
            stack.callback(found.process.close)
            return found

        part: Task = (1, plan.layers_timed(size))
        lanes = {library: lane(library, size, [part]) for library in plan.pythons if library != "fast"}
        lanes["fast"] = lane("fast", size, [(n, size.n_layers) for n in plan.counts()])
        by_heads = [
            lanes["fast"] if shape == size else lane("fast", shape, [(1, size.n_layers)]) for shape in plan.shapes(size)
        ]
        every = [*lanes.values(), *(one for one in by_heads if one is not lanes["fast"])]
        _load([one for one in every if one.stays])
        for number in range(plan.rounds):
            err.print(f"{size.name}: round {number + 1} of {plan.rounds}")
            for one in every:
                one.round(-(-plan.n_products // plan.rounds))
        agreement, whole_s = _agreement(lanes, part, plan)
        return Run(
            date=datetime.date.today().isoformat(),
            size=size,
            dtype=str(plan.job["dtype"]),
            machine=Machine(busy=busy, **lanes["fast"].facts["machine"]),
            libraries={library: About(**lanes[library].facts["about"]) for library in plan.pythons},
            lengths=lanes["fast"].facts["lengths"],
            timed=tuple(one.timed(task) for one in lanes.values() for task in one.tasks),
            products=tuple(lanes["fast"].bound(n) for n in plan.counts()),
            looser=tuple(lanes["fast"].bound(n, "looser") for n in plan.counts()),
            plain=tuple(lanes["fast"].bound(n, "plain") for n in plan.counts()),
            agreement=agreement,
            whole_exact_s=whole_s,
            curves=_curves(lanes["fast"], by_heads, plan) if plan.curves else (),
        )


def _load(lanes: Sequence[Lane]) -> None:
    """All at once: nothing is timed yet."""
    for lane in lanes:
        lane.process.send("take")
    for lane in lanes:
        lane.facts = lane.process.answer()


def _agreement(lanes: Mapping[str, Lane], part: Task, plan: Plan) -> tuple[dict[str, float], float | None]:
    """How far each library is from engine fast, and how long engine exact took for all heads, if it was asked.

    Engine exact is asked more than it was timed on: the same heads on all trials, and all heads on one.
    """
    fast, exact = lanes["fast"], lanes["exact"]
    one_trial, all_trials = (fast.effects((n, fast.size.n_layers)) for n in (1, plan.n_trials))
    apart = {library: _apart(lanes[library].effects(part), one_trial) for library in lanes if library != "fast"}
    err.print(f"{fast.size.name}: engine exact on more trials and heads")
    with exact.turn() as process:
        more = process.ask("look", task=(plan.n_trials, part[1]))
        apart["exact"] = max(apart["exact"], _apart(torch.tensor(more["effects"]), all_trials))
        if not plan.whole:
            return apart, None
        whole = process.ask("look", task=(1, fast.size.n_layers))
        apart["exact"] = max(apart["exact"], _apart(torch.tensor(whole["effects"]), one_trial))
        return apart, whole["seconds"]


def _apart(found: torch.Tensor, fast: torch.Tensor) -> float:
    """The largest difference on the heads that both have, relative to the fast engine's largest effect."""
    n_trials, n_layers, _ = found.shape
    return float((found - fast[:n_trials, :n_layers]).abs().max() / fast.abs().max())


def _curves(fast: Lane, by_heads: Sequence[Lane], plan: Plan) -> tuple[Curve, ...]:
    n_layers = fast.size.n_layers
    trials = [(fast.timed((n, n_layers)), fast.bound(n)) for n in plan.counts()]
    heads = [(lane.timed((1, n_layers)), lane.bound(1)) for lane in by_heads]
    curves = {"trials": trials, "heads": heads}
    return tuple(Curve(of=of, points=tuple(points)) for of, points in curves.items() if points)


@app.command()
def main(
    size: Annotated[list[str], typer.Option(help="12x768, 24x1024, tiny-llama, llama-3.1-8b; may be given again.")],
    fv_src: Annotated[
        Path | None, typer.Option(help="A checkout of the public reference; without, it is left out.")
    ] = None,
    peers_python: Annotated[
        Path | None, typer.Option(help="An interpreter with nnsight and TransformerLens; without, they are left out.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    n_trials: Annotated[int, typer.Option("--trials", min=2, help="The most trials that are swept together.")] = 10,
    heads_timed: Annotated[
        int, typer.Option(min=1, help="Libraries with one pass a head are timed on so many heads, or a few more.")
    ] = 12,
    whole: Annotated[bool, typer.Option(help="Compare with engine exact on every head of a trial, once.")] = True,
    curves: Annotated[bool, typer.Option(help="Time engine fast on four numbers of trials and of heads.")] = False,
    n_products: Annotated[
        int, typer.Option("--products", min=1, help="How often the bare products are timed, over all rounds.")
    ] = N_PRODUCTS,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    out: Annotated[Path | None, typer.Option(help="A JSON file that the runs are added to.")] = None,
) -> None:
    """Time the sweep over all heads, by every library."""
    if dtype not in DTYPES:
        raise typer.BadParameter(f"expected one of {', '.join(DTYPES)}, found {dtype!r}", param_hint="--dtype")
    try:
        sizes = [Size.named(name) for name in size]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from None
    try:
        fv_src = fv_src and require_checkout(fv_src)
    except RecordingError as error:
        raise typer.BadParameter(str(error), param_hint="--fv-src") from None
    absent = {"reference"} if fv_src is None else set()
    absent |= set(PEERS) if peers_python is None else set()
    pythons = dict.fromkeys(LIBRARIES, sys.executable) | dict.fromkeys(PEERS, str(peers_python))
    plan = Plan(
        pythons={name: python for name, python in pythons.items() if name not in absent},
        job={"device": device, "dtype": dtype, "threads": threads, "fv_src": str(fv_src)},
        rounds=rounds,
        n_trials=n_trials,
        heads_timed=heads_timed,
        whole=whole,
        curves=curves,
        n_products=n_products,
    )
    for one in sizes:
        try:
            run = measure(one, plan)
        except Failed as error:
            err.print(str(error), style="red", markup=False)
            raise typer.Exit(1) from None
        console.print(sweep_page.terminal_table(run))
        if out is not None:
            before = Figures.read(out) if out.exists() else Figures()
            before.having(run).write(out)


if __name__ == "__main__":
    app()
