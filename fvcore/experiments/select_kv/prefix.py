"""The prefix a query stands on: a sink, null slots, and the keys and values of selected tokens of a demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fvcore.experiments.select_kv.runtime import KV, Layers, Runtime

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2


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


class PrefixBuilder:
    """Prefixes of one model and one run.

    kv_source, positioning_mode: as resolved (`auto` never stands here)
    Raises UnsupportedPositioning when made, where the model's keys cannot be carried as the settings ask.
    """

    kv_source: str
    positioning_mode: str
    warnings: tuple[str, ...]

    def __init__(self, runtime: Runtime, settings: Phase2, sink: Sequence[int] = ()) -> None:
        raise NotImplementedError

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
        """demo: of sink and demo together     selected: indices into the demo, in the order of positions"""
        raise NotImplementedError

    def full(self, demo: KV, demo_ids: Sequence[int], *, kv_source: str | None = None) -> Prefix:
        raise NotImplementedError

    def null(self, prefix_len: int | None = None) -> Prefix:
        """The sink and null slots alone."""
        raise NotImplementedError

    def self_test(self) -> float:
        """Largest relative error of rotated keys against keys computed there; 0.0 where nothing is rotated."""
        raise NotImplementedError
