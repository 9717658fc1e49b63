"""What stops a production step, and why a unit failed: one of six causes, read off the exception and its origins."""

import errno
from typing import Literal, TypeAlias

from fvcore.exits import FAILED, USAGE, Expected
from fvcore.formats import FormatError


class StepError(Expected):
    """A target id, a shape, a prompt or a number is not what the step's own files say."""

    status = FAILED


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

    status = USAGE


class FolderInUse(StepError):
    """Another process writes in the folder."""

    status = USAGE


Cause: TypeAlias = Literal["data", "tokenizer", "target boundary", "memory", "numeric", "code"]

FULL = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


def cause_of(error: BaseException) -> Cause:
    """The first that fits the exception or one that it came from; what fits none is the code's fault."""
    from fvcore.model.memory import is_out_of_memory
    from fvcore.prompts import BosError, BoundaryError
    from fvcore.slots import SlotError

    # The exception and those that it was made from; a message that was said better keeps its origin.
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    if any(one.errno in FULL if isinstance(one, OSError) else is_out_of_memory(one) for one in chain):
        return "memory"
    causes: dict[Cause, tuple[type[BaseException], ...]] = {
        "numeric": (NotFinite, ArithmeticError),
        "target boundary": (BoundaryError, TargetError),
        "tokenizer": (BosError, SlotError, TokensError, UnicodeError),
        "data": (TrialMismatch, FormatError, OSError),
    }
    return next((cause for cause, types in causes.items() if any(isinstance(one, types) for one in chain)), "code")
