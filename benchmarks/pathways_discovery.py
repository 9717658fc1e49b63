"""What a discovery costs: targets of one pass, replays from the cached layer, and many targets; as ratios, within one run.

    python benchmarks/pathways_discovery.py               # a random model of 12 layers, 768 wide; minutes

Seconds are those of the processor, in one thread, so that other work on the machine does little to them. Each figure is the
best of some repeats, which take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fvcore.experiments.sae.attribution import attribute
from fvcore.experiments.sae.autoencoder import SAE
from fvcore.experiments.sae.bench import Bench, Held
from fvcore.experiments.sae.config import Discover
from fvcore.experiments.sae.pathways import Node
from fvcore.experiments.sae.replay import ZERO, Edit, Readers, run_edits
from fvcore.experiments.sae.schemas import Context
from fvcore.model.model import LanguageModel
from fvcore.model.residual import Cached, residual_stream

N_LAYERS, D_MODEL, VOCABULARY, FEATURES = 12, 768, 1000, 50
SHORT, LONG = 8, 24  # tokens of a context


def bench(n_tokens: int = SHORT) -> Bench:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=4 * D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=12,
        num_key_value_heads=12,
        initializer_range=0.05,
    )
    lm = LanguageModel.wrap(LlamaForCausalLM(config).float(), name="random")
    drawn = torch.randint(0, VOCABULARY, (n_tokens,)).tolist()
    context = Context(
        id="random", type="bare", prompt_type="random", text_sha="", source=None, n_tokens=n_tokens,
        input_ids=tuple(drawn), special=(False,) * n_tokens,
    )  # fmt: skip
    return Bench(lm, Held({layer: _sae(layer) for layer in range(N_LAYERS)}), [context])


def _sae(layer: int) -> SAE:
    rows = torch.randn(FEATURES, D_MODEL, generator=torch.Generator().manual_seed(layer))
    rows /= rows.norm(dim=1, keepdim=True)
    zeros = torch.zeros(FEATURES)
    return SAE(layer, rows.T.contiguous(), zeros, rows, torch.zeros(D_MODEL), zeros, zeros + 1)


def best(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of the processor for each, the ways taking turns."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, do in ways.items():
            started = time.process_time()
            do()
            took[name].append(time.process_time() - started)
    return {name: min(times) for name, times in took.items()}


def batches(repeats: int, n_tokens: int) -> None:
    one, targets = bench(n_tokens), [Node(N_LAYERS - 1, number) for number in range(10)]
    sources = {layer: range(FEATURES) for layer in range(N_LAYERS - 1)}

    def way(size: int) -> Callable[[], object]:
        return lambda: attribute(one, targets, sources, Discover(batch_size=size))

    seconds = best({"1": way(1), "5": way(5), "10": way(10)}, repeats)
    for name, took in seconds.items():
        print(
            f"| attribution, {name} targets a pass | {len(targets) / took:.1f} targets/s | {seconds['1'] / took:.2f} |"
        )


def replays(repeats: int) -> None:
    one = bench(LONG)
    context, ids = one.contexts[0], one.ids(one.contexts[0])
    layer, last = N_LAYERS // 2, N_LAYERS - 1
    hidden = residual_stream(one.lm, ids, last=layer)[layer][0]
    lengths, directions = torch.ones(LONG), one.columns(layer).directions
    edits = [Edit(at, ZERO, lengths, directions[at]) for at in range(15)]
    readers = Readers(one, [Node(last, 0)])
    added = torch.stack([torch.zeros_like(hidden), *(lengths[:, None] * edit.direction for edit in edits)])

    def whole() -> object:
        rows = ids.expand(len(added), -1)
        return residual_stream(one.lm, rows, {layer: lambda stream: stream + added}, last=last)

    def cached() -> object:
        return run_edits(one, context, Cached(layer, hidden), edits, readers)

    seconds = best({"whole": whole, "cached": cached}, repeats)
    for name, took in seconds.items():
        print(
            f"| replay, {name}, layer {layer} of {N_LAYERS} | {len(edits) / took:.1f} edits/s | {seconds['whole'] / took:.2f} |"
        )


def growth(repeats: int) -> None:
    one, sources = bench(), {layer: range(FEATURES) for layer in range(N_LAYERS - 1)}

    def way(n: int) -> Callable[[], object]:
        targets = [Node(N_LAYERS - 1, number) for number in range(n)]
        return lambda: attribute(one, targets, sources, Discover())

    sizes: Sequence[int] = (5, 10, 20, 40)
    seconds = best({str(n): way(n) for n in sizes}, repeats)
    for n in sizes:
        share = seconds[str(n)] / n / (seconds[str(sizes[0])] / sizes[0])
        print(f"| attribution of {n} targets | {seconds[str(n)]:.2f} s | {share:.2f} of the first's time a target |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| | speed | ratio |\n|---|---|---|")
    batches(repeats, SHORT)
    batches(repeats, LONG)
    replays(repeats)
    growth(repeats)


if __name__ == "__main__":
    main()
