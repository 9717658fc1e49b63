"""What stops a production step, and why a unit failed: one of seven causes, read off the exception and its origins."""

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


class DeviceLost(StepError):
    """A process cannot use its GPU any more, and nothing but another process can go on."""


class FolderInUse(StepError):
    """Another process writes in the folder."""

    status = USAGE


Cause: TypeAlias = Literal["data", "tokenizer", "target boundary", "memory", "device", "numeric", "code"]

DEVICE = (
    *("CUDA error", "CUDA driver error", "CUDA unknown error", "CUDA-capable device", "No CUDA GPUs", "NVIDIA driver"),
    *("HIP error", "cuDNN error", "NCCL", "AcceleratorError"),
)
"""In what is said of a GPU that is lost, busy or not there. A kernel's own assertion is among it: it tells neither whose
fault it was nor where, and leaves the process without the GPU, as a fault of the GPU does."""

OF_THE_CALL = ("invalid argument", "invalid configuration", "INVALID_VALUE", "BAD_PARAM", "NOT_SUPPORTED")
"""In what the same libraries say of what was asked of them."""

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
    if any(_is_of_device(one) for one in chain):
        return "device"
    causes: dict[Cause, tuple[type[BaseException], ...]] = {
        "numeric": (NotFinite, ArithmeticError),
        "target boundary": (BoundaryError, TargetError),
        "tokenizer": (BosError, SlotError, TokensError, UnicodeError),
        "data": (TrialMismatch, FormatError, OSError),
    }
    return next((cause for cause, types in causes.items() if any(isinstance(one, types) for one in chain)), "code")


def _is_of_device(error: BaseException) -> bool:
    said = f"{type(error).__name__}: {error}"
    named = isinstance(error, RuntimeError) and any(words in said for words in DEVICE)
    return isinstance(error, DeviceLost) or (named and not any(words in said for words in OF_THE_CALL))
