"""Ways to carry a state wrongly, each planted into the real builder or runtime, and the gate or check that must see it.

A plant is a context in which something is done as it has been done wrongly before. The run itself is never touched: its
gates are asked, and the first rule that fails is what caught the fault. What is refused before a gate can be asked is
caught by the error that refuses it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fvcore.exits import in_one_line
from fvcore.experiments import fault_table
from fvcore.experiments.fault_table import FaultRow
from fvcore.experiments.select_kv import gates, model_runtime, selection
from fvcore.experiments.select_kv.bench import Bench
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.errors import SelectKVError
from fvcore.experiments.select_kv.model_runtime import ModelRuntime, load_runtime
from fvcore.experiments.select_kv.prefix import Prefix, PrefixBuilder
from fvcore.experiments.select_kv.runtime import KV
from fvcore.formats import read_yaml

NOTHING = "nothing"


@dataclass(frozen=True)
class Rig:
    """A small run that passes without a fault: what a reader is told of it, and its settings by dotted key."""

    said: str
    settings: Mapping[str, Any]


RIGS = {name: Rig(**rig) for name, rig in read_yaml(Path(__file__).with_name("faults.yaml")).items()}


@dataclass(frozen=True, slots=True)
class Seen:
    """What caught a fault: a rule of the gates or an error, the number that it stands on, and what is allowed there."""

    caught_by: str
    check: str = ""
    value: float | None = None
    allowed: str = ""
    clean: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Fault:
    """expected: the rule or the error that must catch it     plant: the context in which it is there"""

    id: str
    hazard: str
    planted: str
    rig: str
    expected: str
    plant: Callable[[], AbstractContextManager[None]]

    def seen(self) -> Seen:
        """What catches it; the number of the same check without it stands beside."""
        clean = measured(self.rig)
        try:
            with self.plant():
                found = _measure(self.rig)
        except SelectKVError as error:
            return Seen(type(error).__name__, message=in_one_line(error))
        return _first(found, clean)


def _first(found: gates.Measured, clean: gates.Measured) -> Seen:
    """The first rule that fails, by the check of it that fails."""
    for rule in gates.RULES:
        for check, before in zip(rule.checks(found), rule.checks(clean), strict=True):
            if not check.passed:
                return Seen(rule.key, check.name, check.value, f"{check.op} {check.threshold:.3g}", before.value)
    return Seen(NOTHING)


@cache
def measured(rig: str) -> gates.Measured:
    """A rig without a fault. Raises RuntimeError where it does not pass: then it could not show one."""
    found = _measure(rig)
    if not gates.Judged.of(found).passed:
        raise RuntimeError(f"rig {rig!r} fails by itself: {gates.Judged.of(found).failure_reason}")
    return found


@cache
def _runtime(rig: str) -> ModelRuntime:
    return load_runtime(settings_of(rig))


@cache
def settings_of(rig: str) -> Phase2:
    return Phase2().changed(RIGS[rig].settings)


def _measure(rig: str) -> gates.Measured:
    """Both sides of a small run, in memory."""
    from fvcore.experiments.select_kv.compute import on_rows, rotation_checks
    from fvcore.experiments.select_kv.data import off_samples, on_samples
    from fvcore.experiments.select_kv.off import off_rows
    from fvcore.experiments.select_kv.summary import Summary

    settings, runtime = settings_of(rig), _runtime(rig)
    bench = Bench.of(runtime, settings)
    on, off = on_samples(settings, runtime.tokenizer), off_samples(settings, runtime.tokenizer)
    rows = on_rows(bench, on)
    rotation = rotation_checks(bench, on[0])
    return Summary(settings, rows, off_rows(bench, on, rows, off), rotation).measured()


# What is done wrongly.


def _built(change: Callable[[Prefix], Prefix]) -> AbstractContextManager[None]:
    """Every prefix is another one than was built."""
    build = PrefixBuilder.build

    def instead(self: PrefixBuilder, *args: Any, **how: Any) -> Prefix:
        return change(build(self, *args, **how))

    return _patched(PrefixBuilder, "build", instead)


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    with patch.object(owner, name, value):
        yield


def _reused_cache() -> AbstractContextManager[None]:
    """One cache a prefix, which keeps the tokens of every query; the mask is as long as if it did not."""
    from transformers.cache_utils import Cache, DynamicLayer

    kept: dict[int, tuple[Any, Cache]] = {}

    def grown(layers: Sequence[tuple[torch.Tensor, torch.Tensor]], n_rows: int = 1) -> Cache:
        first = layers[0][0]
        before = kept.get(first.data_ptr())
        held = layers if before is None else [(one.keys[:1], one.values[:1]) for one in before[1].layers]
        own = Cache(layers=[DynamicLayer() for _ in held])
        for at, (keys, values) in enumerate(held):
            own.update(keys.expand(n_rows, -1, -1, -1), values.expand(n_rows, -1, -1, -1), at)
        kept[first.data_ptr()] = layers, own
        return own

    return _patched(model_runtime, "prefix_cache", grown)


def _unrotated_keys() -> AbstractContextManager[None]:
    from fvcore.experiments.select_kv.prefix import _slots

    def gathered(self: PrefixBuilder, demo: KV, chosen: Sequence[int], places: Sequence[int]) -> Any:
        n = len(self.sink)
        return _slots(demo.layers, [*range(n), *(n + at for at in chosen)])

    return _patched(PrefixBuilder, "_gathered", gathered)


def _unmasked_pads() -> AbstractContextManager[None]:
    return _built(lambda prefix: replace(prefix, mask=(1,) * prefix.n_slots))


def _counted_pads() -> AbstractContextManager[None]:
    return _built(lambda prefix: replace(prefix, next_position=prefix.next_position + prefix.null_len))


def _missing_sink() -> AbstractContextManager[None]:
    def without(prefix: Prefix) -> Prefix:
        n = prefix.sink_len
        layers = tuple((keys[:, :, n:], values[:, :, n:]) for keys, values in prefix.layers)
        return replace(prefix, layers=layers, mask=prefix.mask[n:], sink_len=0)

    return _built(without)


def _other_episode() -> AbstractContextManager[None]:
    """Every state is made of the demo that was read first."""
    build, first = PrefixBuilder.build, dict[int, KV]()

    def instead(self: PrefixBuilder, demo: KV, demo_ids: Sequence[int], *args: Any, **how: Any) -> Prefix:
        if len(demo_ids):
            demo = first.setdefault(len(demo_ids), demo)
        return build(self, demo, demo_ids, *args, **how)

    return _patched(PrefixBuilder, "build", instead)


def _retokenised() -> AbstractContextManager[None]:
    """The chosen tokens become text, and the text tokens again: other ones, where a word was cut."""
    prefill = ModelRuntime.prefill

    def instead(self: ModelRuntime, ids: Sequence[int], positions: Any = None, *, sink_len: int = 0) -> KV:
        if positions is not None and sink_len:
            text = self.tokenizer.decode(list(ids[sink_len:])).strip()
            read = self.tokenizer(text, add_special_tokens=False).input_ids
            ids = [*ids[:sink_len], *(read * len(ids))[: len(ids) - sink_len]]
        return prefill(self, ids, positions, sink_len=sink_len)

    return _patched(ModelRuntime, "prefill", instead)


def _cut_by_position() -> AbstractContextManager[None]:
    made = selection._selection

    def instead(mode: str, chosen: Sequence[Any], prefix_len: int, budget: int) -> selection.Selection:
        whole = made(mode, chosen, sum(end - start for (start, end), *_ in chosen), budget)
        return replace(whole, indices=whole.indices[:prefix_len], truncated=len(whole.indices) > prefix_len)

    return _patched(selection, "_selection", instead)


def _stale_mask() -> AbstractContextManager[None]:
    """A mask is as long as the first of its kind; what is behind its end is hidden."""
    called, first = ModelRuntime._called, dict[str, int]()

    def instead(
        self: ModelRuntime, name: str, module: Any, ids: Any, at: Any, mask: Any, cache: Any, **more: Any
    ) -> Any:
        if cache is not None and name != "prefill":
            mask = mask[:, : first.setdefault(name, mask.shape[1])]
        return called(self, name, module, ids, at, mask, cache, **more)

    return _patched(ModelRuntime, "_called", instead)


def _scores_of_sdpa() -> AbstractContextManager[None]:
    @contextmanager
    def as_it_is(self: ModelRuntime) -> Iterator[None]:
        yield

    return _patched(ModelRuntime, "_eager", as_it_is)


FAULTS = (
    Fault("reused_cache", "a cache that was asked is asked again, with what it was asked in it",
          "every query's tokens stay in its prefix's cache, and the mask is as long as if they did not",
          "rotary", "a1_null_effect", _reused_cache),
    Fault("unrotated_keys", "keys that move keep the rotation of where they stood",
          "gathered keys are put at compact positions as they are", "wired", "a5_rotation", _unrotated_keys),
    Fault("unmasked_pads", "null slots take part in the attention",
          "the mask of every prefix is all ones", "rotary", "a1_null_effect", _unmasked_pads),
    Fault("counted_pads", "null slots count as positions",
          "the query stands as many positions later as there are null slots", "learned", "a1_null_effect",
          _counted_pads),
    Fault("missing_sink", "base stands on a BOS, and the student does not",
          "the sink's slots are taken out of every prefix", "rotary", "a1_null_effect", _missing_sink),
    Fault("other_episode", "the state of another episode is asked",
          "every prefix is built from the cache of the demo that was read first", "wired", "a3_roundtrip",
          _other_episode),
    Fault("retokenised", "chosen tokens are decoded and read again, as other tokens",
          "recompute prefills the tokens of the text of the chosen tokens", "recomputed", "SelectKVRuntimeError",
          _retokenised),
    Fault("cut_by_position", "what does not fit is cut from the end, and not by rank",
          "chosen spans are put in the order of positions before they are cut to prefix_len", "wired",
          "b_on_gain", _cut_by_position),
    Fault("stale_mask", "the mask is as long as an earlier query needed it",
          "every mask is cut to the length of the first of its kind", "rotary", "a0_teacher_cache", _stale_mask),
    Fault("sdpa_scores", "attention is asked of an implementation that returns none",
          "the pass that scores stays on sdpa", "sdpa", "SelectKVRuntimeError", _scores_of_sdpa),
)  # fmt: skip


class Row(FaultRow):
    @property
    def number(self) -> str:
        """What the fault is caught on: the check's number, or the words of the error."""
        return f"{self.seen.check} {rounded(self.seen.value)}" if self.seen.check else self.seen.message

    @property
    def clean(self) -> str:
        return rounded(self.seen.clean)


rounded = partial(fault_table.rounded, least=1e-6)


def rows(chosen: Sequence[Fault] = FAULTS) -> list[Row]:
    """Each fault with what caught it."""
    return [Row(fault, fault.seen()) for fault in chosen]


def write(path: Path, found: Sequence[Row]) -> Path:
    """The table as Markdown."""
    return fault_table.write(path, "fvcore.experiments.select_kv", found, rigs=RIGS)
