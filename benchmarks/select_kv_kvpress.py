"""What NVIDIA's kvpress keeps of the same demos, at the same numbers of kept tokens: ON accuracy, and how far OFF prompts move.

    python benchmarks/select_kv.py --episodes episodes.json          # here: demos, queries and OFF prompts, as token ids
    python benchmarks/select_kv_kvpress.py episodes.json out.json    # in an environment of kvpress, which pins transformers

kvpress replaces the attention functions of transformers when it is imported, so it never shares an environment with the
rest. A press compresses the demo while it runs once; queries then see what is left at their own places behind the whole
demo, as kvpress itself continues a text. Every budget is the sink and so many tokens more, for every method; FINCH keeps
the question besides, which it was shown.
"""

import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    BasePress,
    ExpectedAttentionPress,
    FinchPress,
    KeyDiffPress,
    ObservedAttentionPress,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

FINCH = "FINCH (question in the cache)"
WINDOW = 8  # tokens at the demo's end that SnapKV scores with; it needs fewer than it keeps
Made = Callable[[float, int], Any]
PRESSES: dict[str, Made] = {
    "H2O (ObservedAttention)": lambda ratio, k: ObservedAttentionPress(ratio),
    "SnapKV": lambda ratio, k: SnapKVPress(ratio, window_size=min(WINDOW, k)),
    "TOVA": lambda ratio, k: TOVAPress(ratio),
    "ExpectedAttention": lambda ratio, k: ExpectedAttentionPress(ratio, n_future_positions=16, n_sink=1),
    "KeyDiff": lambda ratio, k: KeyDiffPress(ratio),
    "StreamingLLM": lambda ratio, k: StreamingLLMPress(ratio, n_sink=1),
    "Random": lambda ratio, k: RandomPress(ratio, seed=7),
    FINCH: lambda ratio, k: FinchPress(ratio),
}


class Asked:
    """The model, its demos compressed one by one, and what it says behind them."""

    def __init__(self, path: str) -> None:
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()

    def compressed(self, make: Made, ids: Sequence[int], question: Sequence[int], n_kept: int) -> DynamicCache:
        """The cache of a demo in which `n_kept` slots are left in every head of every layer."""
        cache, window = DynamicCache(config=self.model.config), 0
        press = make(0.0, n_kept)
        if isinstance(press, FinchPress):
            window, ids = len(question), [*ids, *question]
        # Half a slot more than wanted: the press rounds down.
        press = make(1 - (n_kept + window + 0.5) / len(ids), n_kept)
        if window:
            press.window_size = window
        with BasePress.__call__(press, self.model):  # FINCH's own looks for a token between demo and question
            self.model(torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, output_attentions=True)
        there = {layer.keys.shape[-2] for layer in cache.layers}
        if there != {n_kept + window}:
            raise SystemExit(f"{type(press).__name__} left {sorted(there)} slots; expected {n_kept + window}")
        return cache

    def next_logits(self, cache: DynamicCache | None, queries: Sequence[Sequence[int]], start: int) -> Tensor:
        """(query, vocab) in fp32 behind each, its first token at position `start`; the cache stays as it was."""
        n, longest = len(queries), max(map(len, queries))
        ids = torch.tensor([[*query, *[0] * (longest - len(query))] for query in queries])
        real = torch.tensor([[1] * len(query) + [0] * (longest - len(query)) for query in queries])
        kept = [(layer.keys, layer.values) for layer in cache.layers] if cache else []
        own = DynamicCache(
            [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in kept], config=self.model.config
        )
        seen = torch.ones(n, kept[0][0].shape[-2] if kept else 0, dtype=torch.long)
        given = {
            "attention_mask": torch.cat([seen, real], 1),
            "position_ids": torch.arange(start, start + longest)[None],
        }
        found = self.model(ids, past_key_values=own if kept else None, use_cache=True, **given).logits.float()
        return found[torch.arange(n), real.sum(1) - 1]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) over the vocabulary, nats."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


@torch.inference_mode()
def measured(asked: Asked, given: dict[str, Any], make: Made | None, k: int) -> dict[str, float]:
    """A row of the table: k tokens kept of every demo; without a press the whole demo."""
    sink, hits, groups = given["sink"], [], [off["group"] for off in given["off"]]
    base = asked.next_logits(None, [[*sink, *off["ids"]] for off in given["off"]], 0)
    moved = torch.zeros(len(groups), dtype=torch.float64)
    for on in given["on"]:
        ids = [*sink, *on["demo_ids"]]
        take = make or (lambda ratio, k: RandomPress(0.0))
        cache = asked.compressed(take, ids, on["query_ids"], len(sink) + k if make else len(ids))
        # FINCH moves what it keeps together; all others leave it where it stood.
        start = cache.get_seq_length() if make is PRESSES[FINCH] else len(ids)
        hits.append(int(asked.next_logits(cache, [on["query_ids"]], start)[0].argmax()) in on["answer_ids"])
        unrelated = [at for at, group in enumerate(groups) if not group or group != on["group"]]
        after = asked.next_logits(cache, [given["off"][at]["ids"] for at in unrelated], start)
        moved[unrelated] = torch.maximum(moved[unrelated], kl(after, base[unrelated]))
    ranked = moved.sort().values
    return {"on_acc": sum(hits) / len(hits), "off_p99": float(ranked[-(-99 * len(ranked) // 100) - 1])}


def main(source: Path, out: Path) -> None:
    given = json.loads(source.read_text(encoding="utf-8"))
    asked, rows = Asked(given["model"]), []
    rows.append({"method": "whole demo", "kept": None} | measured(asked, given, None, 0))
    for k in given["budgets"]:
        for name, make in PRESSES.items():
            rows.append({"method": name, "kept": k} | measured(asked, given, make, k))
            print(rows[-1], flush=True)
    versions = {name: version(name) for name in ("kvpress", "transformers", "torch")}
    out.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
