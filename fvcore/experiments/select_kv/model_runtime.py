"""The runtime on a loaded model: every forward pass of Select-KV, with masks and positions always said outright.

Left to itself the library counts hidden slots as positions, and reads positions with gaps as several texts in one.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from fvcore.experiments.model_choice import one_thread_if_small
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.errors import HFBackendUnavailable, SelectKVRuntimeError, UnsupportedPositioning
from fvcore.experiments.select_kv.prefix import Prefix, hidden_slots, side_by_side
from fvcore.experiments.select_kv.runtime import KV, RuntimeInfo
from fvcore.experiments.select_kv.tokens import require_fast
from fvcore.model import positions
from fvcore.model.hooks import hide_slots, one_token_per_row
from fvcore.model.model import LanguageModel, ModelError
from fvcore.model.prefix import cache_given, prefix_cache
from fvcore.model.tokenizer import Tokenizer

TOKENS_ON_CPU = 1280
"""Of one pass on a processor. Long prompts in larger batches took a third longer, short ones are as quick."""


@dataclass(frozen=True)
class ModelRuntime:
    """`Runtime` on a model in memory.

    batch_size: rows of one forward pass     max_memory: bytes that a pass may take beside the weights, as far as known
    Raises SelectKVRuntimeError for a model whose cache is not keys and values of every token, or that takes no positions.
    """

    lm: LanguageModel
    model_id: str = ""
    revision: str | None = None
    batch_size: int = 64
    max_memory: int | None = None
    calls: dict[str, int] = field(default_factory=dict, compare=False)  # forward passes by the method that made them

    def __post_init__(self) -> None:
        require_fast(self.lm.tokenizer)
        _require_positions(self.lm)
        _require_plain(self._fresh_cache())
        if len(widths := sorted(set(self.lm.d_heads))) > 1:
            raise SelectKVRuntimeError(
                f"heads of {self.lm.name} are {', '.join(map(str, widths))} wide, by layer; a state holds keys and values of one "
                "width: take a model whose layers are alike"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer: Tokenizer = self.lm.tokenizer
        return tokenizer

    @cached_property
    def inv_freq(self) -> Tensor | None:
        return positions.inv_freq(self.lm)

    @cached_property
    def info(self) -> RuntimeInfo:
        import tokenizers
        import transformers

        lm, sliding = self.lm, self._sliding
        return RuntimeInfo(
            model_id=self.model_id or lm.name,
            revision=self.revision,
            architecture=type(lm.hf).__name__,
            position_scheme=positions.scheme(lm),
            rope_type=positions.rope_type(lm),
            n_layers=lm.n_layers,
            n_heads=lm.n_heads,
            n_kv_heads=lm.n_kv_heads or lm.n_heads,
            d_head=lm.d_head,
            vocab=lm.vocab_size,
            max_positions=positions.max_positions(lm),
            device=str(lm.device),
            dtype=lm.dtype,
            attn_implementation=lm.attn_implementation,
            torch_version=torch.__version__,
            transformers_version=transformers.__version__,
            tokenizers_version=tokenizers.__version__,
            cache_class=type(self._fresh_cache()).__name__,
            sliding_layers=tuple(sliding),
            window=min(sliding.values(), default=None),
            weights_sha=lm.weights_sha,
            tokenizer_sha=lm.tokenizer_sha,
        )

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], positions: Sequence[int] | None = None, *, sink_len: int = 0) -> KV:
        at = tuple(range(len(ids))) if positions is None else tuple(positions)
        self._require_room(at, len(ids))
        cache = self._fresh_cache()
        row = torch.tensor([list(ids)], device=self.lm.device)
        # Without the output head: nobody asks what follows.
        self._called("prefill", self.lm.hf.base_model, row, torch.tensor([at]), torch.ones_like(row), cache)
        return KV(_read(cache, self.lm.n_layers, len(ids)), at, sink_len)

    @torch.inference_mode()
    def next_logits(self, queries: Sequence[Sequence[int]], prefix: Prefix | None = None) -> Tensor:
        if not queries:
            raise ValueError("next_logits: no query")
        order, found = list[int](), list[Tensor]()
        for part in self._parts(queries, 0 if prefix is None else prefix.n_slots):
            order += part
            found.append(_numbers(self._ask("next_logits", [queries[at] for at in part], [prefix] * len(part))))
        return torch.cat(found)[torch.tensor(order).argsort()]

    @torch.inference_mode()
    def next_logits_of_prefixes(self, query: Sequence[int], prefixes: Sequence[Prefix]) -> Tensor:
        n_slots = max(prefix.n_slots for prefix in prefixes)
        rows = self.rows_at_once(n_slots, len(query))
        parts = [prefixes[start : start + rows] for start in range(0, len(prefixes), rows)]
        asked = (self._ask("next_logits_of_prefixes", [query] * len(part), part) for part in parts)
        return torch.cat([_numbers(output) for output in asked])

    @torch.inference_mode()
    def read_demo(
        self, sink_and_demo: KV, query: Sequence[int], layers: Sequence[int], reduce: str
    ) -> tuple[Tensor, Tensor]:
        prefix = _whole(sink_and_demo)
        with self._eager():
            output = self._ask("read_demo", [query], [prefix], output_attentions=True)
        attentions = _attentions(output, self.lm.n_layers)
        rows = slice(None) if reduce == "mean" else slice(-1, None)
        of_demo = slice(sink_and_demo.sink_len, prefix.n_slots)
        scores = torch.stack([attentions[layer][0, :, rows, of_demo].float().mean((0, 1)).cpu() for layer in layers])
        return _numbers(output)[0], scores.mean(0)

    @torch.inference_mode()
    def drop(self, sink_and_demo: KV, query: Sequence[int], spans: Sequence[tuple[int, int]]) -> Tensor:
        whole, sink = _whole(sink_and_demo), sink_and_demo.sink_len
        rows = self.rows_at_once(whole.n_slots, len(query))
        mask = torch.tensor([whole.mask]).repeat(len(spans), 1)
        for row, (start, end) in zip(mask, spans, strict=True):
            row[sink + start : sink + end] = 0
        logits = [
            _numbers(self._ask("drop", [query] * len(part), [whole] * len(part), masks=part))
            for part in torch.split(mask, rows)
        ]
        return torch.cat(logits)

    def greedy(self, query: Sequence[int], prefix: Prefix | None, n: int) -> tuple[int, ...]:
        ids = list(query)
        for _ in range(n):
            ids.append(int(self.next_logits([ids], prefix)[0].argmax()))
        return tuple(ids[len(query) :])

    def rows_at_once(self, n_slots: int, n_tokens: int) -> int:
        """Rows of one pass: `batch_size`, or fewer where memory is bounded or a processor's cache would overflow."""
        bounds = [self.batch_size]
        if self.lm.device.type == "cpu":
            bounds.append(TOKENS_ON_CPU // n_tokens)
        if self.max_memory is not None:
            bounds.append(self.max_memory // self.row_bytes(n_slots, n_tokens))
        return max(1, min(bounds))

    def row_bytes(self, n_slots: int, n_tokens: int) -> int:
        """What a row of a pass takes: its prefix in all layers; in one layer keys and values once more and for every head,
        attention, and the widest residual rows; logits twice."""
        lm, seen = self.lm, n_slots + n_tokens
        kv_heads = lm.n_kv_heads or lm.n_heads
        kept = 2 * lm.n_layers * kv_heads * n_slots * lm.d_head
        layer = 2 * (kv_heads + lm.n_heads) * seen * lm.d_head + 3 * lm.n_heads * n_tokens * seen
        return lm.itemsize * (kept + layer + 16 * n_tokens * lm.d_model) + 8 * lm.vocab_size

    def _parts(self, queries: Sequence[Sequence[int]], n_slots: int) -> Iterator[list[int]]:
        """Indices of queries that run together: of like length, so that little is padded."""
        order = sorted(range(len(queries)), key=lambda at: len(queries[at]))
        while order:
            # The last of a part is its longest; all parts are sized for the longest that is left.
            rows = self.rows_at_once(n_slots, len(queries[order[-1]]))
            yield order[-rows:]
            del order[-rows:]

    def _ask(
        self,
        name: str,
        queries: Sequence[Sequence[int]],
        prefixes: Sequence[Prefix | None],
        masks: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """One pass: each query on its own prefix, in rows padded on the right; what the head says of the last token of each.

        masks: (row, slot), in place of the prefixes' own
        """
        first, given = prefixes[0], [one for one in prefixes if one is not None]
        ids, real = _padded(queries, self.lm.device)
        start = torch.tensor([0 if one is None else one.next_position for one in prefixes])
        lengths = torch.tensor([len(query) for query in queries])
        # Padding has the last token's position: behind it there may be none.
        at = start[:, None] + torch.minimum(torch.arange(ids.shape[1]), lengths[:, None] - 1)
        n_slots = max((one.n_slots for one in given), default=0)
        self._require_room((int(at.max()),), n_slots + ids.shape[1])
        cache = None
        if first is not None:
            layers, own = side_by_side(given)
            mask = (own if masks is None else masks).to(real)
            real, cache = torch.cat([mask.expand(len(real), -1), real], dim=1), prefix_cache(layers, len(ids))
        with ExitStack() as around:
            around.enter_context(one_token_per_row(self.lm, lengths - 1))
            if any(one.visible_layers is not None for one in given):
                hidden = hidden_slots(given, self.lm.n_layers, n_slots)
                around.enter_context(hide_slots(self.lm, {at: slots.to(ids.device) for at, slots in hidden.items()}))
            return self._called(name, self.lm.hf, ids, at, real, cache, **more)

    def _called(
        self, name: str, module: Any, ids: Tensor, at: Tensor, mask: Tensor, cache: Cache | None, **more: Any
    ) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        if "cache_position" in self._parameters:
            # Of slots, and not of positions: older versions of the library ask for it, newer ones swallow it.
            more["cache_position"] = torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1], device=ids.device)
        return module(
            input_ids=ids,
            attention_mask=mask,
            position_ids=at.to(ids.device),
            **cache_given(module, cache),
            use_cache=cache is not None,
            **more,
        )

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.lm.hf.forward).parameters)

    def _fresh_cache(self) -> DynamicCache:
        return DynamicCache(config=self.lm.hf.config)

    @cached_property
    def _sliding(self) -> dict[int, int]:
        """Layers that see a window of the last tokens alone, and how many those are."""
        layers = enumerate(self._fresh_cache().layers)
        cached = {at: int(layer.sliding_window) for at, layer in layers if getattr(layer, "is_sliding", False)}
        kinds, window = getattr(self.lm.config, "attention_layers", ()), getattr(self.lm.config, "window_size", None)
        return cached | {at: int(window) for at, kind in enumerate(kinds) if window and kind == "local"}

    def _require_room(self, at: Sequence[int], n_slots: int) -> None:
        """Raise unless the model has the positions, and every layer sees all slots and tokens."""
        if self.info.max_positions and max(at, default=0) >= self.info.max_positions:
            raise SelectKVRuntimeError(
                f"{self.info.model_id}: position {max(at)} asked for, and the model has {self.info.max_positions}; take "
                "shorter demos or a model of longer texts"
            )
        if self.info.window is not None and n_slots > self.info.window:
            layers = ", ".join(map(str, sorted(self._sliding)))
            raise SelectKVRuntimeError(
                f"{self.info.model_id}: {n_slots} slots and tokens, and layers {layers} see the last "
                f"{self.info.window} alone, so that what is kept of a demo would not be seen; take shorter demos, a shorter "
                "prefix or a model without sliding windows"
            )

    @contextmanager
    def _eager(self) -> Iterator[None]:
        """Attention that says what it attends to; others return nothing, without a word."""
        before = self.lm.attn_implementation
        if before == "eager":
            yield
            return
        self.lm.hf.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.lm.hf.set_attn_implementation(before)


def load_runtime(settings: Phase2) -> ModelRuntime:
    """The model that the settings name, from disk and never from the network.

    Raises HFBackendUnavailable where it, its tokenizer or the device cannot be had: nothing takes their place.
    """
    from fvcore.model import model as models

    wanted = settings.runtime
    try:
        name = _revision(settings.model.id, settings.model.revision)
        dtype = wanted.dtype or models.dtype_on_disk(name)
        lm = models.load(name, wanted.device, dtype, wanted.attn_implementation, settings.seed)
    except ModelError as error:
        raise HFBackendUnavailable(str(error)) from error
    if wanted.threads is None:
        one_thread_if_small(lm)
    else:
        torch.set_num_threads(wanted.threads)
    rows, memory = settings.eval.off_batch_size, settings.eval.max_memory
    return ModelRuntime(lm, settings.model.id, settings.model.revision, rows, memory)


def _revision(model_id: str, revision: str | None) -> str:
    """A hub id, or the folder in the local cache that holds one revision of it."""
    if revision is None:
        return model_id
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    try:
        return str(snapshot_download(model_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, RevisionNotFoundError, OSError, ValueError) as error:
        raise HFBackendUnavailable(
            f"revision {revision!r} of {model_id!r} is not in the local cache, and nothing is downloaded; get it there with "
            f"`hf download {model_id} --revision {revision}`, or leave model.revision out"
        ) from error


def _require_positions(lm: LanguageModel) -> None:
    takes = "position_ids" in inspect.signature(lm.hf.forward).parameters
    if not takes or getattr(lm.config, "alibi", False):
        raise UnsupportedPositioning(
            f"{lm.name}: expected a model that is told the positions of its tokens; {type(lm.hf).__name__} counts slots "
            "itself, and would count hidden and left-out ones; take a model with rotary or learned positions"
        )


def _require_plain(cache: Cache) -> None:
    """Raise unless every layer keeps keys and values of every token; windows are looked at when it is known how much runs."""
    odd = {type(layer).__name__ for layer in cache.layers if not _plain(layer)}
    if odd:
        raise SelectKVRuntimeError(
            f"expected cache layers that hold keys and values of every token; found {', '.join(sorted(odd))}, whose state "
            "cannot be taken apart by tokens; take a model with plain attention in all layers"
        )


def _plain(layer: Any) -> bool:
    return type(layer) is DynamicLayer or (isinstance(layer, DynamicLayer) and bool(layer.is_sliding))


def _read(cache: Cache, n_layers: int, n_slots: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The keys and values in a filled cache; raises SelectKVRuntimeError unless all layers hold all tokens."""
    _require_plain(cache)
    found = [0 if layer.keys is None else layer.keys.shape[-2] for layer in cache.layers]
    if found != [n_slots] * n_layers:
        raise SelectKVRuntimeError(f"expected {n_slots} cached tokens in each of {n_layers} layers, found {found}")
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def _whole(demo: KV) -> Prefix:
    """Sink and demo as a prefix as they are."""
    n, sink = len(demo.positions), demo.sink_len
    chosen = tuple(range(n - sink))
    start = demo.positions[-1] + 1 if n else 0
    how = ("absolute", "shrink_to_selected", "gather")
    return Prefix(demo.layers, (1,) * n, start, sink, 0, chosen, demo.positions[sink:], *how)


def _padded(queries: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, (row, token)."""
    longest = max(map(len, queries))
    if not min(map(len, queries)):
        raise SelectKVRuntimeError("a query without tokens: nothing follows nothing")
    ids = [[*query, *[0] * (longest - len(query))] for query in queries]
    mask = [[1] * len(query) + [0] * (longest - len(query)) for query in queries]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _numbers(output: Any) -> Tensor:
    """Logits (row, vocab), float32 on the CPU."""
    logits: Tensor = output.logits[:, -1].float().cpu()
    if bool(logits.isnan().any()):
        raise SelectKVRuntimeError(
            "logits are not numbers (NaN); with fp16 or bf16 weights take float32 (runtime.torch_dtype)"
        )
    return logits


def _attentions(output: Any, n_layers: int) -> Sequence[Tensor]:
    found: Sequence[Tensor] = output.attentions or ()
    if len(found) != n_layers or any(one is None for one in found):
        raise SelectKVRuntimeError(
            f"expected attentions of {n_layers} layers, found {sum(one is not None for one in found)}: this attention "
            "implementation says nothing of what it attends to; use eager"
        )
    return found
