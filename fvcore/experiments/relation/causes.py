"""Why a q_id failed: one of six causes, read off the exception and those it came from."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fvcore.experiments.errors import NotFinite, TargetError, TokensError, TrialMismatch
from fvcore.experiments.relation.data import RelationError
from fvcore.formats import FormatError
from fvcore.model.memory import is_out_of_memory
from fvcore.prompts import BosError, BoundaryError
from fvcore.slots import SlotError

Cause: TypeAlias = Literal["data", "tokenizer", "target boundary", "memory", "numeric", "code"]

CAUSES: tuple[tuple[Cause, tuple[type[BaseException], ...]], ...] = (
    ("numeric", (NotFinite, ArithmeticError)),
    ("target boundary", (BoundaryError, TargetError)),
    ("tokenizer", (BosError, SlotError, TokensError, UnicodeError)),
    ("data", (RelationError, TrialMismatch, FormatError, OSError)),
)
"""The first that fits counts; what fits none is the code's fault."""

FULL = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failure report says of one q_id. `step` is the stage that was at work."""

    q_id: str
    cause: Cause
    step: str
    error: str
    message: str
    traceback: str

    @classmethod
    def of(cls, q_id: str, step: str, error: BaseException) -> Failure:
        text = "".join(traceback.format_exception(error))
        return cls(q_id, cause_of(error), step, type(error).__name__, " ".join(str(error).split()), text)


def cause_of(error: BaseException) -> Cause:
    chain = list(_chain(error))
    if any(_no_room(one) for one in chain):
        return "memory"
    for cause, types in CAUSES:
        if any(isinstance(one, types) for one in chain):
            return cause
    return "code"


def _no_room(error: BaseException) -> bool:
    """A full disk, or a full memory."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return is_out_of_memory(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was made from; a message that was said better keeps its origin."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
