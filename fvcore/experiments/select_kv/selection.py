"""Which spans of a demo are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.data import Demo


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen spans [start, end) of a demo in the order of positions, and the tokens that are kept of them."""

    mode: str
    spans: tuple[tuple[int, int], ...]
    ranks: tuple[int, ...]  # of each span; 0 was chosen first
    scores: tuple[float, ...]  # of each span; none where nothing is scored
    anchors: tuple[int, ...]
    indices: tuple[int, ...]  # kept demo tokens, in the order of positions
    truncated: bool
    fewer: bool  # fewer spans than the budget


def candidates(settings: Phase2, demo: Demo) -> list[tuple[int, int]]:
    """All spans whose anchor may be chosen; these are what `causal_drop_span` scores, in this order."""
    raise NotImplementedError


def select(
    settings: Phase2,
    demo: Demo,
    scores: Tensor | None = None,
    drop_scores: Tensor | None = None,
    *,
    trial: int = -1,
    index: int = 0,
    mode: str | None = None,
    budget: int | None = None,
) -> Selection:
    """scores: of each token (token,)     drop_scores: of each of `candidates` (candidate,)     index: of the sample"""
    raise NotImplementedError


def recent(demo: Demo, k: int) -> Selection:
    """The last k tokens."""
    raise NotImplementedError
