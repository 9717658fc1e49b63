"""What stops a production step, and why a unit failed: one of six causes, read off the exception and its origins."""

import errno
from collections.abc import Iterator
from typing import Literal, TypeAlias

from fvcore.formats import FormatError


class StepError(Exception):
    """A target id, a shape, a prompt or a number is not what the step's own files say."""


class TrialMismatch(StepError):
    """A trial's prompts are not what its words give."""


class TokensError(StepError):
    """The tokenizer gives the prompts other ends, or other slots, than the steps build on."""


class TargetError(StepError):
    """A stored target is not what the tokenizer gives at the boundary."""


class NotFinite(StepError):
    """A score, a mean or a vector is not a finite number."""


class OtherSettings(StepError):
    """A folder holds results of other settings; they are never mixed."""


class FolderInUse(StepError):
    """Another process writes in the folder."""


Cause: TypeAlias = Literal["data", "tokenizer", "target boundary", "memory", "numeric", "code"]

FULL = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


def cause_of(error: BaseException) -> Cause:
    """The first that fits the exception or one that it came from; what fits none is the code's fault."""
    chain = list(_chain(error))
    if any(_no_room(one) for one in chain):
        return "memory"
    return next((cause for cause, types in _causes() if any(isinstance(one, types) for one in chain)), "code")


def _causes() -> tuple[tuple[Cause, tuple[type[BaseException], ...]], ...]:
    from fvcore.prompts import BosError, BoundaryError
    from fvcore.slots import SlotError

    return (
        ("numeric", (NotFinite, ArithmeticError)),
        ("target boundary", (BoundaryError, TargetError)),
        ("tokenizer", (BosError, SlotError, TokensError, UnicodeError)),
        ("data", (TrialMismatch, FormatError, OSError)),
    )


def _no_room(error: BaseException) -> bool:
    """A full disk, or a full memory."""
    from fvcore.model.memory import is_out_of_memory

    return error.errno in FULL if isinstance(error, OSError) else is_out_of_memory(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was made from; a message that was said better keeps its origin."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
