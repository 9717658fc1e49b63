"""How a candidate is asked: copies are handed out, what comes back is brought into one form, and nothing that it has in
hand may change behind the comparison's back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fvcore.gates import Finding, StageError
from pytest_fvparity.parity.implementation import INPUTS, copied

if TYPE_CHECKING:
    from fvcore.artifacts import Artifact

MAX_DEPTH = 100
"""Lists that stand deeper in one another hold nothing of the method, or themselves."""

Axes = Callable[[str], Sequence[str]]


class InHand:
    """What a candidate has in hand, inputs that it was handed and answers that it gave, each beside a copy it has not.

    In its author's own chain the next station is given the very same objects: whoever edits one edits what comes after.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Artifact, Artifact]] = {}

    def handed(self, key: str, inputs: Sequence[Artifact]) -> list[Artifact]:
        """Copies of the inputs of a key. An earlier answer to it is let go: who is asked again may use its buffer again."""
        self._kept.pop(_answer(key), None)
        given = [copied(artifact) for artifact in inputs]
        for name, artifact, kept in zip(INPUTS[key], given, inputs, strict=False):
            self._kept[f"{name}, which it was handed for {key}"] = artifact, kept
        return given

    def took(self, key: str, artifact: Artifact) -> Artifact:
        """A copy of the candidate's answer."""
        kept = copied(artifact)
        self._kept[_answer(key)] = artifact, kept
        return kept

    def changed(self, key: str, axes: Axes) -> list[Finding]:
        """What is no longer as it was after the candidate was asked for a key, one finding a thing; each is told once."""
        from fvcore.compare import compare, unchanged

        found = []
        for what, (held, kept) in self._kept.items():
            known = {leaf: held[leaf] for leaf in kept if leaf in held}
            if not unchanged(kept, known) and (first := compare(kept, known, axes=axes).first_mismatch):
                message = f"while it was asked for {key} the candidate changed {what}; it must edit a copy (.clone())"
                found.append(replace(first, message=message))
                with suppress(TypeError, RuntimeError):  # what it made of it need not be an artifact
                    self._kept[what] = held, copied(known)
        return found


def _answer(key: str) -> str:
    return f"its own answer to {key}"


def formed(key: str, artifact: Any, like: Artifact) -> Artifact:
    """A candidate's answer in the one form that is compared and handed on; raises StageError naming the leaf that has none.

    Maps of slots may be objects, their keys text as JSON writes them; leaves, and the rows of a map, may stand in any
    order: they are put into the golden's. Numbers in a list are a tensor where the golden has one.
    """
    if not isinstance(artifact, Mapping):
        raise StageError(
            f"{key}: expected a mapping from leaf to value, the candidate gave a {type(artifact).__name__}"
        )
    leaves = dict(artifact)
    if key == "slot_map":
        leaves = {leaf: _as_rows(value, like.get(leaf)) for leaf, value in leaves.items()}
    leaves = {leaf: _as_tensor(value, like.get(leaf)) for leaf, value in leaves.items()}
    require_leaves(key, leaves)
    return {leaf: leaves[leaf] for leaf in (*(leaf for leaf in like if leaf in leaves), *leaves)}


def _as_rows(value: Any, like: Any) -> Any:
    """A map as the pairs (or rows) that a slot map is written in, in the order of the golden's where it has the same keys."""
    if isinstance(value, dict):
        rows = [(int(key) if str(key).isdecimal() else key, entry) for key, entry in value.items()]
        value = [[key, *entry] if isinstance(entry, list | tuple) else [key, entry] for key, entry in rows]
    if not (_is_rows(value) and _is_rows(like)):
        return value
    places = {row[0]: place for place, row in enumerate(like)}
    return sorted(value, key=lambda row: places.get(row[0], len(places)))


def _as_tensor(value: Any, like: Any) -> Any:
    """A list of plain numbers as the golden's tensor of them."""
    from fvcore.artifacts import is_dense

    numbers = isinstance(value, list) and value and all(type(one) in {int, float} for one in value)
    if not (numbers and is_dense(like)):
        return value
    import torch

    return torch.tensor(value, dtype=like.dtype)


def _is_rows(value: Any) -> bool:
    """Whether this is a list of rows that each begin with a key."""
    return isinstance(value, list) and all(
        isinstance(row, list) and row and type(row[0]) in {int, str} for row in value
    )


def require_leaves(key: str, leaves: Mapping[Any, Any]) -> None:
    from fvcore.artifacts import is_dense

    for leaf, value in leaves.items():
        if type(leaf) is not str:
            raise StageError(f"{key}: a leaf's name is text, the candidate gave {leaf!r:.80} ({type(leaf).__name__})")
        if (foreign := None if is_dense(value) else next(_foreign(value), None)) is not None:
            raise StageError(
                f"{key}: leaf {leaf!r:.80} holds {foreign}; expected a dense torch tensor, int, float, str, bool, None, or "
                "a list of such plain values (convert with .item() or .tolist())"
            )


def _foreign(value: Any, depth: int = 0) -> Iterator[str]:
    """What a value holds that is no plain value, in words."""
    if isinstance(value, list):
        if depth == MAX_DEPTH:
            yield f"lists more than {MAX_DEPTH} deep, or one that holds itself"
        for item in value if depth < MAX_DEPTH else ():
            yield from _foreign(item, depth + 1)
    elif type(value) not in {int, float, str, bool, type(None)}:
        yield f"a {type(value).__module__}.{type(value).__qualname__}"
    elif type(value) is int and value.bit_length() > 63:
        yield f"an integer of {value.bit_length()} bits, of which 63 are taken"
