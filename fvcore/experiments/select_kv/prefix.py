"""The prefix a query stands on: a sink, null slots, and the keys and values of selected tokens of a demo.

Where keys and values come from (`gather`: as they are in the demo's cache; `recompute`: the selected tokens read anew, alone)
and where they stand (`compact`: directly behind the sink; `absolute`: where they stood in the demo) are two questions.
Gathered keys that move are rotated by as far as they move. The query comes after both, and null slots take no position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.errors import SelectionError, SelectKVRuntimeError, UnsupportedPositioning
from fvcore.experiments.select_kv.runtime import KV, Layers, Runtime, RuntimeInfo
from fvcore.model.positions import LENGTH_DEPENDENT, rotated

NULL_PAD = "null_pad"
SAME_TOKENS_MAX = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
"""Largest relative difference of a token's values in the first layer, read among others or alone."""
ROTATION_MAX = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
"""Largest relative error of rotated keys; a wrong layout or wrong frequencies give about 1."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Slots in the order sink, null, selected; a null slot is zero, hidden, and has no position."""

    layers: Layers  # each (1, kv_heads, sink_len + null_len + selected, d_head)
    mask: tuple[int, ...]  # slot -> 1, or 0 where it is hidden
    next_position: int  # of the first token of a query
    sink_len: int
    null_len: int
    selected: tuple[int, ...]  # indices into the demo, in the order of positions
    selected_positions: tuple[int, ...]
    positioning_mode: str
    padding_mode: str
    kv_source: str
    visible_layers: tuple[int, ...] | None = None  # where queries see null and selected slots; None: everywhere

    @property
    def n_slots(self) -> int:
        return len(self.mask)


def side_by_side(prefixes: Sequence[Prefix]) -> tuple[Layers, Tensor]:
    """Keys and values of several prefixes, a row each, and their mask (row, slot); one row where all are the same.

    Shorter ones are padded by null slots in front, which changes none of them.
    """
    first, longest = prefixes[0], max(one.n_slots for one in prefixes)
    if all(one is first for one in prefixes):
        return first.layers, torch.tensor([first.mask], dtype=torch.long)
    mask = [[*[0] * (longest - one.n_slots), *one.mask] for one in prefixes]
    layers = tuple(
        (_rows([one.layers[at][0] for one in prefixes]), _rows([one.layers[at][1] for one in prefixes]))
        for at in range(len(first.layers))
    )
    return layers, torch.tensor(mask, dtype=torch.long)


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """(1, kv_heads, slot, d_head) each -> (row, kv_heads, longest, d_head)"""
    longest = max(part.shape[2] for part in parts)
    rows = parts[0].new_zeros(len(parts), parts[0].shape[1], longest, parts[0].shape[3])
    for row, part in zip(rows, parts, strict=True):
        row[:, longest - part.shape[2] :] = part[0]
    return rows


def hidden_slots(prefixes: Sequence[Prefix], n_layers: int, n_slots: int) -> dict[int, Tensor]:
    """Layer -> (row, slot), true where the layer does not see the slot of a row; the sink is seen everywhere."""
    behind = torch.tensor([n_slots - one.n_slots + one.sink_len for one in prefixes])
    past_sink = torch.arange(n_slots) >= behind[:, None]
    visible = [range(n_layers) if one.visible_layers is None else one.visible_layers for one in prefixes]
    blind = {at: [at not in layers for layers in visible] for at in range(n_layers)}
    return {at: past_sink & torch.tensor(rows)[:, None] for at, rows in blind.items() if any(rows)}


def last_quarter(n_layers: int) -> tuple[int, ...]:
    """The `top25` layers: those next to the output, one at least."""
    return tuple(range(n_layers - max(1, n_layers // 4), n_layers))


class PrefixBuilder:
    """Prefixes of one model and one run.

    kv_source, positioning_mode: as resolved (`auto` never stands here)     sink: ids in front of every demo and query
    Raises UnsupportedPositioning when made, where the model's keys cannot be carried as the settings ask.
    """

    def __init__(self, runtime: Runtime, settings: Phase2, sink: Sequence[int] = ()) -> None:
        self.runtime, self.sink = runtime, tuple(sink)
        self.prefix_len, self.padding_mode = settings.prefix_len, settings.prefix.padding_mode
        asked, mode = settings.injection.kv_source, settings.injection.positioning_mode
        self.warnings: tuple[str, ...] = ()
        self.kv_source = "gather" if asked == "auto" else asked
        self.positioning_mode = mode
        self.visible_layers = _visible(settings.layer_scope.injection, runtime.info.n_layers)
        if (self.kv_source, mode) == ("gather", "compact") and (reason := self._fixed_in_place):
            if asked != "auto":
                raise UnsupportedPositioning(f"{runtime.info.model_id}: {reason}; {WAY_OUT}")
            self.positioning_mode = "absolute"
            self.warnings = (f"{reason}: kv_source auto gathers at absolute positions instead of compact ones",)

    def build(
        self,
        demo: KV,
        demo_ids: Sequence[int],
        selected: Sequence[int],
        *,
        prefix_len: int | None = None,
        kv_source: str | None = None,
        positioning_mode: str | None = None,
    ) -> Prefix:
        """demo: of sink and demo together     selected: indices into the demo, in the order of positions

        prefix_len, kv_source, positioning_mode: in place of the settings'
        Raises SelectionError for tokens the demo does not have or more than the prefix holds; UnsupportedPositioning.
        """
        chosen, size = tuple(selected), self.prefix_len if prefix_len is None else prefix_len
        source, mode = kv_source or self.kv_source, positioning_mode or self.positioning_mode
        self._require(demo, demo_ids, chosen, size)
        n, places = len(self.sink), self._places(chosen, mode)
        if not chosen:
            layers = _slots(demo.layers, range(n))
        elif source == "recompute":
            ids = [*self.sink, *(demo_ids[at] for at in chosen)]
            layers = self.runtime.prefill(ids, [*range(n), *places], sink_len=n).layers
            self._require_same_tokens(layers, _slots(demo.layers, [*range(n), *(n + at for at in chosen)]))
        else:
            layers = self._gathered(demo, chosen, places)
        null_len = max(0, size - len(chosen)) if self.padding_mode == NULL_PAD else 0
        # With nothing selected there is nothing to stay away from, and the query stands where it stands without a demo.
        behind = n + (len(demo_ids) if mode == "absolute" and chosen else len(chosen))
        mask, how = (1,) * n + (0,) * null_len + (1,) * len(chosen), (mode, self.padding_mode, source)
        layers = tuple((_with_null(keys, n, null_len), _with_null(values, n, null_len)) for keys, values in layers)
        return Prefix(layers, mask, behind, n, null_len, chosen, places, *how, self.visible_layers)

    def full(self, demo: KV, demo_ids: Sequence[int], **instead: str) -> Prefix:
        """The whole demo through the same path; the prefix is as long as it must be."""
        size, every = max(self.prefix_len, len(demo_ids)), range(len(demo_ids))
        return self.build(demo, demo_ids, every, prefix_len=size, **instead)

    def null(self, prefix_len: int | None = None) -> Prefix:
        """The sink and null slots alone."""
        return self.build(self._sink_alone, (), (), prefix_len=prefix_len)

    def self_test(self) -> float:
        """Largest relative error, over layers, of rotated keys against keys computed where they were rotated to.

        0.0 where nothing is rotated: no gathering, or none that moves.
        """
        if (self.kv_source, self.positioning_mode) != ("gather", "compact"):
            return 0.0
        return self._rotation_error

    def _places(self, chosen: Sequence[int], mode: str) -> tuple[int, ...]:
        """Positions of selected tokens."""
        return tuple(len(self.sink) + (at if mode == "absolute" else rank) for rank, at in enumerate(chosen))

    def _gathered(self, demo: KV, chosen: Sequence[int], places: Sequence[int]) -> Layers:
        """The sink's slots and the selected ones out of a demo's; keys are rotated where they move."""
        n = len(self.sink)
        layers = _slots(demo.layers, [*range(n), *(n + at for at in chosen)])
        shift = [0] * n + [to - demo.positions[n + at] for at, to in zip(chosen, places, strict=True)]
        if not any(shift):
            return layers
        if reason := self._fixed_in_place:
            raise UnsupportedPositioning(f"{self.runtime.info.model_id}: {reason}; {WAY_OUT}")
        assert self.runtime.inv_freq is not None
        keys = rotated([keys for keys, _ in layers], torch.tensor(shift), self.runtime.inv_freq)
        return tuple((key, values) for key, (_, values) in zip(keys, layers, strict=True))

    def _require(self, demo: KV, demo_ids: Sequence[int], chosen: Sequence[int], size: int) -> None:
        n = len(self.sink)
        if (demo.sink_len, len(demo.positions)) != (n, n + len(demo_ids)):
            raise SelectionError(
                f"expected keys and values of {n} sink and {len(demo_ids)} demo tokens, found {demo.sink_len} and "
                f"{len(demo.positions) - demo.sink_len}; was the demo read with sink_len={n}?"
            )
        if list(chosen) != sorted(set(chosen)) or (chosen and not 0 <= chosen[0] <= chosen[-1] < len(demo_ids)):
            raise SelectionError(
                f"expected indices of a demo of {len(demo_ids)} tokens in ascending order, found {list(chosen)}"
            )
        if len(chosen) > size:
            raise SelectionError(
                f"{len(chosen)} tokens selected, and the prefix holds {size} (prefix_len); cut the selection, or give "
                "a longer prefix"
            )

    def _require_same_tokens(self, read: Layers, gathered: Layers) -> None:
        """The first layer's values say which tokens were read, where no position is in them, and nothing of their context."""
        if self.runtime.info.position_scheme != "rope" or not read:
            return
        (_, found), (_, expected) = read[0], gathered[0]
        error = _relative(found, expected) if found.shape == expected.shape else math.inf
        if error > (most := SAME_TOKENS_MAX.get(self.runtime.info.dtype, SAME_TOKENS_MAX["fp32"])):
            raise SelectKVRuntimeError(
                f"what was read anew are not the selected tokens: the first layer's values differ by {error:.2g} of the "
                f"largest, at most {most:g}; were they turned into text in between?"
            )

    @cached_property
    def _sink_alone(self) -> KV:
        if self.sink:
            return self.runtime.prefill(self.sink, sink_len=len(self.sink))
        # Shapes and dtype are those of any token's keys and values.
        some = self.runtime.prefill([0])
        return KV(_slots(some.layers, []), ())

    @cached_property
    def _fixed_in_place(self) -> str:
        """Why gathered keys cannot move, or nothing."""
        if reason := _unrotatable(self.runtime.info, self.runtime.inv_freq):
            return reason
        error, most = self._rotation_error, ROTATION_MAX.get(self.runtime.info.dtype, ROTATION_MAX["fp32"])
        if error <= most:
            return ""
        return (
            f"keys rotated by the model's own frequencies are not the keys it computes there (relative error {error:.2g}, "
            f"at most {most:g}): it lays out its rotary pairs in another way"
        )

    @cached_property
    def _rotation_error(self) -> float:
        """Some tokens read at two places; the keys of one reading, rotated to the other."""
        frequencies, vocab = self.runtime.inv_freq, self.runtime.info.vocab
        assert frequencies is not None
        drawn = torch.randint(vocab, (TEST_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
        here = self.runtime.prefill(drawn)
        there = self.runtime.prefill(drawn, range(TEST_SHIFT, TEST_SHIFT + TEST_TOKENS))
        back = torch.full((TEST_TOKENS,), -TEST_SHIFT)
        moved = rotated([keys for keys, _ in there.layers], back, frequencies)
        return max(_relative(key, wanted) for key, (wanted, _) in zip(moved, here.layers, strict=True))


WAY_OUT = "take injection.positioning_mode absolute, or injection.kv_source recompute"
TEST_TOKENS, TEST_SHIFT = 8, 5


def _unrotatable(info: RuntimeInfo, inv_freq: Tensor | None) -> str:
    """Why no rotation carries the keys of such a model to another position, or nothing."""
    if info.position_scheme == "learned":
        return "positions are learned and mixed into everything a layer reads, so that gathered keys cannot be compact"
    if info.rope_type is not None and any(kind in info.rope_type for kind in LENGTH_DEPENDENT):
        return f"the frequencies of rope type {info.rope_type} depend on the length read, so that gathered keys cannot be compact"
    if inv_freq is None:
        return (
            "there is no one set of rotary frequencies in the model (inv_freq), so that gathered keys cannot be compact"
        )
    return ""


def _visible(scope: str | tuple[int, ...], n_layers: int) -> tuple[int, ...] | None:
    if scope == "all":
        return None
    layers = last_quarter(n_layers) if isinstance(scope, str) else tuple(scope)
    if beyond := [at for at in layers if not 0 <= at < n_layers]:
        raise UnsupportedPositioning(
            f"layer_scope.injection names layer {', '.join(map(str, beyond))}; this model has layers 0 to {n_layers - 1}"
        )
    return layers


def _slots(layers: Layers, slots: Sequence[int]) -> Layers:
    """Some slots of all layers."""
    if not layers:
        return layers
    at = torch.tensor(list(slots), dtype=torch.long)
    moved = {device: at.to(device) for device in {keys.device for keys, _ in layers}}
    return tuple(
        (keys.index_select(2, moved[keys.device]), values.index_select(2, moved[values.device]))
        for keys, values in layers
    )


def _with_null(slots: Tensor, sink_len: int, null_len: int) -> Tensor:
    """Null slots between the sink and what is selected."""
    if not null_len:
        return slots
    null = slots.new_zeros(*slots.shape[:2], null_len, slots.shape[3])
    return torch.cat([slots[:, :, :sink_len], null, slots[:, :, sink_len:]], dim=2)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
