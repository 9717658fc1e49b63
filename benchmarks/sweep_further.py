"""What else engine fast makes faster, what `screened` skips and misses, and where the time of a sweep goes.

    python benchmarks/sweep_further.py --size 12x768 --out docs/performance.json

Both engines in one process and round after round, on the model and prompts of `sweep.py`, whose run in the file gets the
figures.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import sweep_page
import sweep_world
import torch
import typer
from rich.console import Console
from sweep_results import Figures, Further, Part, Screened, Station, Together
from sweep_world import Size
from torch import Tensor

from fvcore.activations import mean_head_activations
from fvcore.effects import TOKEN_CLASSES, head_replaced, target_probability, tokens_of_class
from fvcore.fast import engines, screening, sweep
from fvcore.heads import top_heads
from fvcore.injection import inject, inject_logits
from fvcore.model.model import LanguageModel

K = 10
HEADS_TIMED = 4

app = typer.Typer(add_completion=False)
console = Console(highlight=False)


@dataclass(frozen=True)
class World:
    lm: LanguageModel
    cases: Sequence[sweep.Case]
    means: Tensor
    vector: Tensor

    @property
    def prompts(self) -> list[Sequence[int]]:
        return [ids for ids, _, _ in self.cases]


@dataclass(frozen=True)
class Way:
    """One station's two engines. `exact` may do a part: then `share` is the part of fast's tensor, and `times` the scale."""

    name: str
    exact: Callable[[], Tensor]
    fast: Callable[[], Tensor]
    same: Callable[[Tensor], Tensor] = lambda found: found
    times: float = 1.0


def ways(world: World) -> list[Way]:
    lm, cases = world.lm, world.cases
    clean = [(ids, slots) for ids, _, slots in cases]
    heads = [(layer, head) for layer in range(lm.n_layers) for head in range(lm.n_heads)][:HEADS_TIMED]
    classes = [c for c in TOKEN_CLASSES if tokens_of_class(cases[0][2], c)]
    return [
        Way(
            f"mean head activations, {len(cases)} prompts",
            lambda: mean_head_activations(lm, clean),
            lambda: engines.mean_head_activations(lm, clean),
        ),
        Way(
            f"effects at all token classes, 1 trial, {len(classes)} classes",
            lambda: _exact_classes(world, heads, classes),
            lambda: engines.causal_indirect_effects(lm, cases[:1], world.means, all_token_classes=True),
            lambda found: found[0].flatten(0, 1)[: len(heads)][:, [list(TOKEN_CLASSES).index(c) for c in classes]],
            (lm.n_layers * lm.n_heads * len(classes) + 1) / (len(heads) * len(classes) + 1),
        ),
        Way(
            f"injection behind every layer, {len(cases)} prompts",
            lambda: _exact_injections(world),
            lambda: inject_logits(lm, world.prompts, [world.vector], range(lm.n_layers))[:, 1:],
        ),
        Way(
            f"next-token logits, {len(cases)} prompts",
            lambda: torch.stack([lm.logits(lm.ids(ids))[0, -1] for ids in world.prompts]),
            lambda: inject_logits(lm, world.prompts, [], [])[:, 0],
        ),
    ]


def _exact_classes(world: World, heads: Sequence[sweep.Head], classes: Sequence[str]) -> Tensor:
    ids, target, slots = world.cases[0]
    base, slot_of = target_probability(world.lm, ids, target), slots.full_idx_map
    rows = []
    for layer, head in heads:
        for name in classes:
            means = {token: world.means[layer, head, slot_of[token]] for token in tokens_of_class(slots, name)}
            with head_replaced(world.lm, layer, head, means):
                rows.append(target_probability(world.lm, ids, target) - base)
    return torch.stack(rows).view(len(heads), len(classes))


def _exact_injections(world: World) -> Tensor:
    lm = world.lm
    return torch.stack(
        [
            torch.stack([inject(lm, ids, target, world.vector, layer).with_logits for layer in range(lm.n_layers)])
            for ids, target, _ in world.cases
        ]
    )


@torch.inference_mode()
def stations(world: World, rounds: int) -> tuple[Station, ...]:
    found = []
    for way in ways(world):
        exact, fast = way.exact(), way.same(way.fast())
        apart = float((exact.float().cpu() - fast.float().cpu()).abs().max() / exact.float().abs().max().cpu())
        seconds: dict[str, list[float]] = {"exact": [], "fast": []}
        for _ in range(rounds):
            for engine, run in (("exact", way.exact), ("fast", way.fast)):
                seconds[engine].append(_seconds(world.lm, run))
        found.append(
            Station(
                name=way.name,
                exact=tuple(way.times * s for s in seconds["exact"]),
                fast=tuple(seconds["fast"]),
                apart=apart,
                scaled=way.times != 1.0,
            )
        )
    return tuple(found)


def screened(world: World, rounds: int) -> Screened:
    """How many of the best heads `screened` finds, what it did not compute, and how long it takes beside all heads."""
    lm, asked = world.lm, (world.cases, world.means)
    found = screening.screened_top_heads(lm, *asked, K)
    best = {(head.layer, head.head) for head in top_heads(engines.causal_indirect_effects(lm, *asked).mean(dim=0), K)}
    pairs = [
        (
            _seconds(lm, lambda: screening.screened_top_heads(lm, *asked, K).cie),
            _seconds(lm, lambda: engines.causal_indirect_effects(lm, *asked)),
        )
        for _ in range(rounds)
    ]
    some, every = zip(*pairs, strict=True)
    return Screened(
        k=K,
        n_heads=len(found.asked),
        n_skipped=found.n_skipped,
        recall=len(best & {(head.layer, head.head) for head in found.heads}) / K,
        seconds=median(some),
        all_seconds=median(every),
    )


ROWS = (512, 1024, 2048, 4096)


@torch.inference_mode()
def together(world: World, rounds: int) -> tuple[Together, ...]:
    """A sweep over all trials, by how many rows run together."""
    seconds: dict[int, list[float]] = {n_rows: [] for n_rows in ROWS}
    own = sweep.ROWS
    try:
        for _ in range(rounds):
            for sweep.ROWS in ROWS:
                taken = _seconds(world.lm, lambda: engines.causal_indirect_effects(world.lm, world.cases, world.means))
                seconds[sweep.ROWS].append(taken)
    finally:
        sweep.ROWS = own
    return tuple(Together(n_rows=n_rows, seconds=tuple(taken)) for n_rows, taken in seconds.items())


KINDS = {
    "products with the weights": ("mm", "addmm", "linear", "gemm"),
    "attention": ("scaled_dot_product", "flash", "bmm", "efficient_attention"),
    "softmax over the vocabulary": ("softmax",),
    "copies": ("copy_", "cat", "repeat", "clone", "index", "fill", "_to_copy"),
}


@torch.inference_mode()
def parts(world: World) -> tuple[Part, ...]:
    """Where the time of one sweep over one trial goes, by the kind of operation; the rest is Python and waiting."""
    from torch.profiler import ProfilerActivity, profile

    def run() -> Tensor:
        return engines.causal_indirect_effects(world.lm, world.cases[:1], world.means)

    run()
    gpu = world.lm.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as watched:
        whole = _seconds(world.lm, run)
    seconds = dict.fromkeys([*KINDS, "norms, activations and other elementwise work"], 0.0)
    for event in watched.key_averages():
        name = event.key.lower()
        kind = next((k for k, words in KINDS.items() if any(word in name for word in words)), list(seconds)[-1])
        seconds[kind] += (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6
    seconds["Python and waiting"] = max(0.0, whole - sum(seconds.values()))
    return tuple(Part(name=name, share=taken / whole) for name, taken in seconds.items())


def _seconds(lm: LanguageModel, run: Callable[[], Tensor]) -> float:
    return _timed(lm, run)[0]


def _timed(lm: LanguageModel, run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    found = run()
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


@app.command()
def main(
    size: Annotated[list[str], typer.Option(help="As for sweep.py; may be given again.")],
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    n_trials: Annotated[int, typer.Option("--trials", min=2)] = 10,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    out: Annotated[
        Path | None, typer.Option(help="The JSON file that sweep.py wrote: its runs get the figures.")
    ] = None,
) -> None:
    """Time the other stations on both engines, and measure `screened`."""
    torch.set_num_threads(threads)
    for name in size:
        shape = Size.named(name)
        with tempfile.TemporaryDirectory() as folder:
            lm = sweep_world.model(shape, device, dtype, Path(folder))
        cases, means = sweep_world.cases_and_means(lm, sweep_world.fixed_trials(n_trials))
        vector = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(sweep_world.SEED))
        world = World(lm, cases, means, vector.to(lm.device))
        further = Further(
            stations=stations(world, rounds),
            screened=screened(world, rounds),
            parts=parts(world),
            together=together(world, rounds),
        )
        console.print(*sweep_page.further_lines(further), sep="\n", soft_wrap=True, markup=False)
        if out is not None:
            figures = Figures.read(out)
            runs = [
                run.model_copy(update={"further": further})
                if (run.size.name, run.dtype, run.machine.device != "cpu") == (shape.name, dtype, device != "cpu")
                else run
                for run in figures.runs
            ]
            Figures(runs=tuple(runs)).write(out)


if __name__ == "__main__":
    app()
