"""A runtime without a model: it looks up keys in what it can see of a demo, by a rule that is written down here.

A slot holds the token and the key that was last named before it, as a model's own slots hold what they read. A query
that names a key is answered by the value whose slot holds that key; whatever else is asked is answered by its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.embedded import wired
    from fvcore.experiments.select_kv.runtime import KV, RuntimeInfo

if TYPE_CHECKING:
    import torch

    from fvcore.experiments.select_kv.prefix import Prefix
    from fvcore.experiments.select_kv.runtime import KV, RuntimeInfo

SURE = 12.0
NO_KEY = -1


class FakeRuntime:
    """poison: added to every answer on a prefix, such as NaN     leak: how much of what it sees it says unasked, more of later tokens"""

    inv_freq = None

    def __init__(self, poison: float = 0.0, leak: float = 0.0, max_positions: int = 512) -> None:
        self.tokenizer: Any = wired.tokenizer()
        self.poison, self.leak, self.max_positions = poison, leak, max_positions
        self.keys = set(self.tokenizer.convert_tokens_to_ids(list(wired.KEYS)))
        self.values = set(self.tokenizer.convert_tokens_to_ids(list(wired.VALUES)))
        self.asked = 0

    @property
    def info(self) -> RuntimeInfo:
        sizes = {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_head": 2, "vocab": len(self.tokenizer)}
        versions = {"torch_version": "0", "transformers_version": "0", "tokenizers_version": "0"}
        return RuntimeInfo(
            model_id="fake", revision=None, architecture="Fake", position_scheme="learned", rope_type=None,
            max_positions=self.max_positions, device="cpu", dtype="fp32", attn_implementation="eager", cache_class="Fake", **sizes,
            **versions,
        )  # fmt: skip

    def prefill(self, ids: Sequence[int], positions: Sequence[int] | None = None, *, sink_len: int = 0) -> KV:
        held = torch.tensor([list(pair) for pair in self._bound(ids)], dtype=torch.float32)
        at = tuple(range(len(ids))) if positions is None else tuple(positions)
        return KV(((held[None, None], held[None, None].clone()),), at, sink_len)

    def next_logits(self, queries: Sequence[Sequence[int]], prefix: Prefix | None = None) -> torch.Tensor:
        self.asked += len(queries)
        return torch.stack([self._answer(query, prefix) for query in queries])

    def next_logits_of_prefixes(self, query: Sequence[int], prefixes: Sequence[Prefix]) -> torch.Tensor:
        return torch.cat([self.next_logits([query], prefix) for prefix in prefixes])

    def read_demo(
        self, sink_and_demo: KV, query: Sequence[int], layers: Sequence[int], reduce: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slots = self._slots(sink_and_demo.layers)
        key = self._key(query)
        scores = [float(held == key and token in self.values) for token, held in slots[sink_and_demo.sink_len :]]
        return self._said(query, slots), torch.tensor(scores) + 1e-3

    def drop(self, sink_and_demo: KV, query: Sequence[int], spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        slots, sink = self._slots(sink_and_demo.layers), sink_and_demo.sink_len
        return torch.stack([self._said(query, slots[: sink + a] + slots[sink + b :]) for a, b in spans])

    def greedy(self, query: Sequence[int], prefix: Prefix | None, n: int) -> tuple[int, ...]:
        return tuple(int(self._answer(query, prefix).argmax()) for _ in range(n))

    def _answer(self, query: Sequence[int], prefix: Prefix | None) -> torch.Tensor:
        if prefix is None:
            return self._said(query, self._bound(query))
        seen = [slot for slot, shown in zip(self._slots(prefix.layers), prefix.mask, strict=True) if shown]
        return self._said(query, seen) + self.poison

    def _said(self, query: Sequence[int], slots: Sequence[tuple[int, int]]) -> torch.Tensor:
        logits = torch.zeros(len(self.tokenizer))
        logits[query[-1]] = SURE / 2
        for token, held in slots:
            if token in self.values:
                logits[token] += self.leak * token / len(logits) + (SURE if held == self._key(query) else 0.0)
        return logits

    def _key(self, query: Sequence[int]) -> int:
        """The last key that is named."""
        return next((token for token in reversed(query) if token in self.keys), NO_KEY - 1)

    def _bound(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        found, key = [], NO_KEY
        for token in ids:
            key = token if token in self.keys else key
            found.append((token, key))
        return found

    def _slots(self, layers: Any) -> list[tuple[int, int]]:
        return [(int(token), int(key)) for token, key in layers[0][1][0, 0].tolist()]
