"""What enters and what leaves each module on one prompt, and how far two models are apart there."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from fvcore.model.hooks import watch_modules
from fvcore.model.model import LanguageModel

INPUT, OUTPUT = "input", "output"


class Point(NamedTuple):
    """A side of a module, and which of its calls in one forward pass."""

    module: str
    side: str
    nth: int = 0


Values = dict[Point, Tensor]
"""Point -> (token, ...), in order of execution."""


def values_until(lm: LanguageModel, ids: Sequence[int], layer: int) -> Values:
    """What the model computes on one prompt, up to the heads of `layer`: nothing behind them can have changed them."""
    last = Point(lm.spec.out_proj_path(layer), INPUT)
    values: Values = {}
    seen: Counter[tuple[str, str]] = Counter()

    def see(name: str, side: str, tensor: Tensor | None, named: Mapping[str, Any]) -> None:
        if last in values or not by_token(tensor, (1, len(ids))):
            return
        values[Point(name, side, seen[name, side])] = tensor[0].detach().clone()
        seen[name, side] += 1

    with torch.inference_mode(), watch_modules(lm.hf, see):
        lm.logits(lm.ids(ids))
    return values


def by_token(tensor: Tensor | None, size: tuple[int, ...]) -> TypeGuard[Tensor]:
    """Whether a tensor holds numbers for every token of a batch of this (row, token) size.

    Ids are no such numbers, and what is made of positions alone has one row for all.
    """
    return tensor is not None and tensor.is_floating_point() and tensor.ndim > 2 and tuple(tensor.shape[:2]) == size


@dataclass(frozen=True)
class Difference:
    """How far the candidate is from the reference at one point; the place is that of the largest difference."""

    point: Point
    largest: float
    allowed: float  # at that place
    beyond: bool
    equal: bool  # bit for bit
    place: tuple[int, ...] = ()
    expected: float = math.nan
    actual: float = math.nan
    other_form: str = ""  # dtype or shape, where they are not the reference's

    @property
    def coordinate(self) -> dict[str, int | str]:
        """The place in words: token position first, then the dimension, or head and dimension."""
        names = {1: ("position",), 2: ("position", "dim"), 3: ("position", "head", "dim")}
        axes = names.get(len(self.place), tuple(f"axis{i}" for i in range(len(self.place))))
        return dict(zip(axes, self.place, strict=True))


def difference(point: Point, want: Tensor, have: Tensor, share: float) -> Difference:
    """Compare two tensors (token, ...). At each position `share` of the reference's largest magnitude is allowed.

    Modules write on scales of their own, and some positions (the first above all) on one far above the others', so that
    neither one bound for all modules nor one for a whole tensor would see a fault at the small ones.
    """
    if want.shape != have.shape:
        form = f"shape {list(have.shape)} in place of {list(want.shape)}"
        return Difference(point, math.inf, 0.0, True, False, other_form=form)
    have = have.to(want.device)
    same_dtype = want.dtype == have.dtype
    form = "" if same_dtype else f"{have.dtype} in place of {want.dtype}"
    equal = same_dtype and torch.equal(want, have)
    want, have = (x.detach().double().cpu() for x in (want, have))
    off = torch.where(want == have, torch.zeros_like(want), (have - want).abs())
    off = torch.where(want.isnan() & have.isnan(), torch.zeros_like(off), off).nan_to_num(nan=math.inf)
    size = torch.where(want.isfinite(), want.abs(), torch.zeros_like(want))
    allowed = (share * size.flatten(1).amax(dim=1)).reshape(-1, *[1] * (want.ndim - 1)).expand_as(want)
    wrong = off > allowed
    shown = torch.where(wrong, off, torch.zeros_like(off)) if wrong.any() else off
    place = tuple(int(i) for i in torch.unravel_index(shown.argmax(), shown.shape))
    largest, bound, expected, actual = (float(x[place]) for x in (off, allowed, want, have))
    return Difference(point, largest, bound, bool(wrong.any()), equal, place, expected, actual, form)
