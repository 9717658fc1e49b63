"""Which tokens are on their way through a model, and where in them a prompt stands.

A candidate runs its prompts as it likes: one at a time or in a batch, padded on either side. A trial is found again by
its token ids.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, cast

from torch import Tensor, nn

from pytest_fvparity.drill.differences import INPUT, Point, by_token

UNREAD = "unread"


@dataclass(frozen=True)
class Batch:
    """What one forward pass was given. `mask` is None if there was none, and "unread" if it cannot be read as one.

    A mask of another form than (row, token) cannot, and no mask beside position ids neither: those may tell prompts apart
    that share a row.
    """

    ids: list[list[int]]
    mask: list[list[bool]] | str | None

    @property
    def size(self) -> tuple[int, int]:
        return len(self.ids), len(self.ids[0])

    def unmasked(self, row: int) -> list[int]:
        """The ids of a row that attention sees."""
        if not isinstance(self.mask, list):
            return self.ids[row]
        return [token for token, seen in zip(self.ids[row], self.mask[row], strict=True) if seen]


@dataclass(frozen=True)
class Window:
    """Where a prompt stands in a batch: its row, and the position of its first token there."""

    row: int
    first: int
    last: int

    def of(self, tensor: Tensor) -> Tensor:
        """(row, token, ...) -> (token, ...)"""
        return tensor[self.row, self.first : self.last]

    def fault(self, batch: Batch) -> str:
        """What attention would see beside the prompt, or not see of it; nothing if all is well."""
        if batch.mask == UNREAD:
            return ""
        seen = [True] * self.last if batch.mask is None else batch.mask[self.row]
        assert not isinstance(seen, str)
        before, hidden = sum(seen[: self.first]), self.last - self.first - sum(seen[self.first : self.last])
        if before:
            cover = "no attention mask was given" if batch.mask is None else "the attention mask does not hide them"
            return f"{before} token(s) stand before the prompt in its row, and {cover}"
        return f"the attention mask hides {hidden} of the prompt's own tokens" if hidden else ""


class Passes(ABC):
    """Follows a model from one forward pass to the next, told of every module's inputs and outputs."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        tokens: Any = root.get_input_embeddings()  # type: ignore[operator]
        self.embedding = next(name for name, module in root.named_modules() if module is tokens)
        self.batch: Batch | None = None
        self._mask: Any = None
        self._calls: Counter[tuple[str, str]] = Counter()  # of this pass

    @abstractmethod
    def begun(self, batch: Batch) -> None:
        """A new pass is under way, and this is what it was given."""

    @abstractmethod
    def computed(self, batch: Batch, point: Point, tensor: Tensor) -> None:
        """Numbers (row, token, ...) for every token of the pass under way."""

    def see(self, name: str, side: str, tensor: Tensor | None, named: Mapping[str, Any]) -> None:
        """What `watch_modules` tells. A pass begins when ids enter the embedding."""
        holds_embedding = not name or self.embedding.startswith(f"{name}.")
        if side == INPUT and "attention_mask" in named and holds_embedding:
            self._mask = named["attention_mask"]
            if self._mask is None and named.get("position_ids") is not None:
                self._mask = UNREAD
        if (name, side) == (self.embedding, INPUT) and tensor is not None and tensor.ndim == 2:
            self.batch = Batch(tensor.tolist(), _mask_of(self._mask, tensor))
            self._calls.clear()
            self.begun(self.batch)
        if self.batch is not None and by_token(tensor, self.batch.size):
            self.computed(self.batch, Point(name, side, self._calls[name, side]), tensor)
            self._calls[name, side] += 1


def _mask_of(mask: Any, ids: Tensor) -> list[list[bool]] | str | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        return UNREAD
    return cast("list[list[bool]]", mask.bool().tolist())


def window(batch: Batch, prompt: Sequence[int]) -> Window | None:
    """Where the prompt stands in a batch, one that attention sees rightly if there is one."""
    n, wanted = len(prompt), list(prompt)
    windows = [
        Window(row, first, first + n)
        for row, fed in enumerate(batch.ids)
        for first in range(len(fed) - n + 1)
        if fed[first : first + n] == wanted
    ]
    return min(windows, key=lambda place: bool(place.fault(batch)), default=None)


def nearest(batches: Sequence[Batch], prompt: Sequence[int]) -> list[int]:
    """The row that is most like the prompt, without its padding."""
    rows = [batch.unmasked(row) for batch in batches for row in range(len(batch.ids))]
    return max(rows, key=lambda fed: SequenceMatcher(None, list(prompt), fed, autojunk=False).ratio(), default=[])
