"""What Select-KV asks of a model: read a demo into keys and values, and answer queries that stand on some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from fvcore.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.prefix import Prefix

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, each (1, kv_heads, slot, d_head)."""


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What a model is and how it runs, as `hf_runtime_meta.json` says it."""

    model_id: str
    revision: str | None
    architecture: str
    position_scheme: str  # rope | learned | other
    rope_type: str | None
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab: int
    max_positions: int
    device: str
    dtype: str  # fp32 | fp16 | bf16
    attn_implementation: str
    torch_version: str
    transformers_version: str
    tokenizers_version: str
    cache_class: str
    sliding_layers: tuple[int, ...] = ()
    window: int | None = None  # of the sliding layers, in tokens
    weights_sha: str = ""
    tokenizer_sha: str = ""


@dataclass(frozen=True, slots=True)
class KV:
    """What a model keeps of some tokens."""

    layers: Layers  # keys are rotated at `positions`
    positions: tuple[int, ...]
    sink_len: int = 0  # how many of the first slots are the sink


class Runtime(Protocol):
    """Ids are plain numbers, logits float32 on the CPU."""

    @property
    def info(self) -> RuntimeInfo: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def inv_freq(self) -> Tensor | None:
        """Frequencies (pair,) by which keys are rotated; None where there is no one set of them."""

    def prefill(self, ids: Sequence[int], positions: Sequence[int] | None = None, *, sink_len: int = 0) -> KV:
        """Keys and values of some tokens, at positions 0, 1, ... if none are given."""

    def next_logits(self, queries: Sequence[Sequence[int]], prefix: Prefix | None = None) -> Tensor:
        """(query, vocab): what follows each query, on one prefix; without one a sink belongs to the ids."""

    def next_logits_of_prefixes(self, query: Sequence[int], prefixes: Sequence[Prefix]) -> Tensor:
        """(prefix, vocab): what follows one query on each of the prefixes, in one pass."""

    def read_demo(
        self, sink_and_demo: KV, query: Sequence[int], layers: Sequence[int], reduce: str
    ) -> tuple[Tensor, Tensor]:
        """What follows a query on the whole demo (vocab,), and how much it attends to each token of the demo (token,).

        layers: whose attention counts     reduce: "mean" of all tokens of the query, or its "last" one's
        """

    def drop(self, sink_and_demo: KV, query: Sequence[int], spans: Sequence[tuple[int, int]]) -> Tensor:
        """(span, vocab): what follows a query when one span [start, end) of the demo is hidden from it."""

    def greedy(self, query: Sequence[int], prefix: Prefix | None, n: int) -> tuple[int, ...]:
        """The `n` tokens that follow a query, each the likeliest."""
