"""What a candidate may not leave on the model that all share: it is told at the key that did it, and put back.

A model that cannot be put back is spoilt: nothing more is judged on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fvcore.gates import Finding, StageError
from pytest_fvparity.parity.implementation import Answers

if TYPE_CHECKING:
    from torch import nn

    from fvcore.model.leftovers import Leftover
    from fvcore.model.model import LanguageModel
    from pytest_fvparity.parity.checks import ParityRun

_SPOILT: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def require_unspoilt(model: nn.Module | None) -> None:
    """Raise StageError on a model that a candidate changed for good."""
    if why := _SPOILT.get(model) if model is not None else None:
        raise StageError(f"nothing is judged on a model that was changed: {why}; start anew, and mend that first")


@contextmanager
def left_by_candidate(run: ParityRun, key: str) -> Iterator[None]:
    """While the candidate is asked for a key; what it leaves behind is put back, and joins what the run's memory holds."""
    from fvcore.model.leftovers import left_behind

    if isinstance(run.candidate, Answers):  # who looks up what is recorded has no model in hand
        yield
        return
    left: list[Leftover] = []
    try:
        with left_behind(run.model, run.tokenizer) as left:
            yield
    finally:
        for one in left:
            how = "put back" if one.put_back else "it cannot be put back, and nothing more is judged on this model"
            run.memory.left.append(Finding(key, f"at {key} the candidate left {one.what}; {how}"))
            if not one.put_back and run.model is not None:
                _SPOILT[run.model] = f"at {key} the candidate left {one.what}"


@contextmanager
def nothing_left_by_factory(lm: LanguageModel) -> Iterator[None]:
    """While a candidate is made; raises StageError if that changes the model. Hooks and wrappers are the candidate's way in."""
    from fvcore.model.leftovers import left_behind

    with left_behind(lm.hf, lm.tokenizer, wiring=False) as left:
        yield
    if left:
        what = "; ".join(one.what for one in left)
        raise StageError(f"making the candidate left {what}; hand it a copy of the model (copy.deepcopy(lm.hf))")
