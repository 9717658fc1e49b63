"""What Select-KV costs, as ratios in one process: OFF prompts in batches beside one by one, and an ON sample beside its own
forward passes. And the episodes that other libraries are asked on.

    python benchmarks/select_kv.py                              # a table, on tiny-llama and on random 12x768
    python benchmarks/select_kv.py --episodes episodes.json     # demos, queries and OFF prompts of tiny.yaml, as token ids
    python benchmarks/select_kv.py --beside kvpress.json        # a table of what kvpress gave on them beside ours

What is claimed are the ratios, of the best of some repetitions on both sides, on an idle machine. A small model computes in one
thread, as a run of it does, any other in all that are given.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from sweep_world import Size, model

from fvcore import embedded
from fvcore.experiments.config import resolve
from fvcore.experiments.model_choice import one_thread_if_small
from fvcore.experiments.select_kv.bench import Bench
from fvcore.experiments.select_kv.budgets import METHODS, with_budget
from fvcore.experiments.select_kv.compute import Chosen, on_row
from fvcore.experiments.select_kv.config import TINY, Phase2, SelectKVConfig
from fvcore.experiments.select_kv.data import off_samples, on_samples
from fvcore.experiments.select_kv.metrics import is_hit, kl, p99
from fvcore.experiments.select_kv.model_runtime import ModelRuntime, load_runtime
from fvcore.experiments.select_kv.selection import recent, select

SIZES = ("tiny-llama", "12x768")
BUDGETS = (2, 4, 16, 40)
N_ON, N_OFF = 18, 24  # of the episodes
REPEATS = 2
PROMPTS = 256  # OFF prompts, as many as a run asks, in batches as large as its
console = Console(highlight=False)


def settings(**changes: Any) -> Phase2:
    return resolve(SelectKVConfig, {}, TINY).resolve().changed(changes)


def best(work: Callable[[], object]) -> float:
    """Seconds of the cheapest of some repetitions; the first warms up and does not count."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def counting_passes() -> Iterator[list[float]]:
    """The seconds of every forward pass that a runtime makes."""
    called, seconds = ModelRuntime._called, list[float]()

    def timed(self: ModelRuntime, *args: Any, **more: Any) -> Any:
        start = time.perf_counter()
        found = called(self, *args, **more)
        seconds.append(time.perf_counter() - start)
        return found

    with patch.object(ModelRuntime, "_called", timed):
        yield seconds


def on_ratio(bench: Bench, sample: Any) -> tuple[int, float]:
    """Forward passes of a whole ON sample, and its time over theirs."""
    ratios = []
    for _ in range(REPEATS + 1):
        with counting_passes() as seconds:
            start = time.perf_counter()
            on_row(bench, sample)
            ratios.append((time.perf_counter() - start) / sum(seconds))
    return len(seconds), min(ratios[1:])


def off_speedup(bench: Bench, sample: Any, prompts: Sequence[Any]) -> float:
    """One by one over in batches, of the same prompts on the same state."""
    chosen = Chosen.of(bench, sample)
    prefix, ids = bench.kept(sample, chosen.demo, chosen.selection.indices), [one.ids for one in prompts]

    def loop() -> list[torch.Tensor]:
        return [bench.runtime.next_logits([one], prefix) for one in ids]

    apart, together = torch.cat(loop()), bench.runtime.next_logits(ids, prefix)
    if float((apart - together).abs().max()) > 1e-3 * float(apart.abs().max()):
        raise SystemExit("prompts in a batch are answered otherwise than one by one; nothing is timed")
    return best(loop) / best(lambda: bench.runtime.next_logits(ids, prefix))


def per_row(bench: Bench, sample: Any, prompts: Sequence[Any]) -> list[float]:
    """Seconds of a prompt, asked with a quarter, half and all of the others."""
    chosen = Chosen.of(bench, sample)
    prefix = bench.kept(sample, chosen.demo, chosen.selection.indices)
    counts = [len(prompts) // 4, len(prompts) // 2, len(prompts)]
    asked = [[one.ids for one in prompts[:n]] for n in counts]
    return [best(lambda some=some: bench.runtime.next_logits(some, prefix)) / len(some) for some in asked]


def measured(name: str, n_threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        lm = model(Size.named(name), "cpu", "fp32", Path(scratch))
    torch.set_num_threads(n_threads)
    one_thread_if_small(lm)
    lm.hf.set_attn_implementation(settings().runtime.attn_implementation)
    short = settings(**{"data.off.n_shots": 1, "eval.on_samples": 1, "eval.off_samples": PROMPTS})
    runtime = ModelRuntime(lm, name, None, short.eval.off_batch_size)
    bench = Bench.of(runtime, short)
    (sample,), prompts = on_samples(short, runtime.tokenizer), off_samples(short, runtime.tokenizer)
    passes, ratio = on_ratio(bench, sample)
    rows = per_row(bench, sample, prompts)
    return {
        "model": name,
        "off_speedup": off_speedup(bench, sample, prompts),
        "on_passes": passes,
        "on_ratio": ratio,
        "row_growth": max(rows) / min(rows),
        "row_mib": runtime.row_bytes(short.prefix_len + 1, max(len(one.ids) for one in prompts)) / 2**20,
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    lines = [
        "| model | OFF: loop / batches | ON: passes | ON: whole / passes | OFF: dearest / cheapest row | a row |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = f"{row['off_speedup']:.1f} | {row['on_passes']} | {row['on_ratio']:.2f} | {row['row_growth']:.2f}"
        lines.append(f"| {row['model']} | {ratios} | {row['row_mib']:.1f} MiB |")
    console.print("\n".join(lines), soft_wrap=True)


def asked_episodes() -> tuple[Bench, list[Any], list[Any]]:
    """The shipped run's first demos, each relation once, and OFF prompts."""
    asked = settings(**{"eval.on_samples": N_ON, "eval.off_samples": N_OFF})
    runtime = load_runtime(asked)
    return Bench.of(runtime, asked), on_samples(asked, runtime.tokenizer), off_samples(asked, runtime.tokenizer)


def episodes(path: Path) -> None:
    """Write them as token ids, for a program that knows nothing of this one."""
    bench, demos, prompts = asked_episodes()
    on = [
        {"demo_ids": one.demo.ids, "query_ids": one.query_ids, "answer_ids": one.answer_ids, "group": one.group}
        for one in demos
    ]
    off = [{"ids": one.ids, "group": one.group} for one in prompts]
    given = {"model": str(embedded.path_of("tiny-llama")), "sink": bench.sink, "on": on, "off": off, "budgets": BUDGETS}
    path.write_text(json.dumps(given) + "\n", encoding="utf-8")
    console.print(f"wrote {path}: {len(on)} demos, {len(off)} OFF prompts")


def ours(bench: Bench, demos: Sequence[Any], prompts: Sequence[Any], budget: int, method: str) -> dict[str, Any]:
    """ON accuracy, and the 99th percentile over OFF prompts of what the worst state does to each."""
    chosen_with, moved, hits = with_budget(bench.settings, budget), torch.zeros(len(prompts), dtype=torch.float64), []
    bases = torch.stack([bench.base(one.ids) for one in prompts])
    for sample in demos:
        chosen = Chosen.of(bench, sample)
        if method == "recent":
            selection = recent(sample.demo, budget)
        else:
            selection = select(chosen_with, sample.demo, chosen.scores, trial=0, index=sample.index, mode=method)
        prefix = bench.builder.build(chosen.demo, sample.demo.ids, selection.indices, prefix_len=budget)
        hits.append(is_hit(bench.runtime.next_logits([sample.query_ids], prefix)[0], sample.answer_ids))
        others = [at for at, one in enumerate(prompts) if one.group != sample.group]
        after = bench.runtime.next_logits([prompts[at].ids for at in others], prefix)
        moved[others] = torch.maximum(moved[others], kl(after, bases[others]))
    return {
        "method": f"{method} (ours)",
        "kept": budget,
        "on_acc": sum(hits) / len(hits),
        "off_p99": p99(moved.tolist()),
    }


def beside(path: Path) -> None:
    """A Markdown table: a row a method, ON accuracy and OFF p99 at each number of kept tokens."""
    given, (bench, demos, prompts) = json.loads(path.read_text(encoding="utf-8")), asked_episodes()
    rows = [ours(bench, demos, prompts, k, method) for method in METHODS for k in BUDGETS] + given["rows"]
    whole = next(row for row in rows if row["kept"] is None)
    at = {(row["method"], row["kept"]): f"{row['on_acc']:.2f} / {row['off_p99']:.2f}" for row in rows}
    lines = [
        f"| ON accuracy / OFF p99 | {' | '.join(f'{k} tokens' for k in BUDGETS)} |",
        "|---" * (1 + len(BUDGETS)) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows if row["kept"] is not None):
        lines.append(f"| {method} | {' | '.join(at[method, k] for k in BUDGETS)} |")
    console.print("\n".join(lines), soft_wrap=True, markup=False)
    console.print(f"whole demo: {at[whole['method'], None]}; {given['versions']}", soft_wrap=True, markup=False)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=Path, help="write the episodes to this file, and time nothing")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="tiny-llama, or layers x width such as 12x768")
    parser.add_argument("--threads", type=int, default=2, help="of a model that is not small")
    parser.add_argument("--beside", type=Path, help="what select_kv_kvpress.py wrote; time nothing")
    given = parser.parse_args(words)
    if given.episodes is not None:
        episodes(given.episodes)
        return
    if given.beside is not None:
        beside(given.beside)
        return
    show([measured(name, given.threads) for name in given.sizes])


if __name__ == "__main__":
    main()
