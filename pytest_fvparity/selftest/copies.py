"""Changed copies of a bed's model, and beds on them: the bed's own model stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from fvcore.embedded.random_models import random_model
from fvcore.model.model import LanguageModel
from pytest_fvparity.selftest.bed import Bed, bed, bed_of


def changed(lm: LanguageModel, change: Callable[[Any], Any]) -> LanguageModel:
    """A copy whose Hugging Face model `change` has had in hand."""
    hf = copy.deepcopy(lm.hf)
    change(hf)
    return LanguageModel.wrap(hf, lm.tokenizer, lm.name)


def bed_on(old: Bed, lm: LanguageModel, **settings: Any) -> Bed:
    """The same trials, with other settings if given, on another model; its golden is recorded anew."""
    return bed_of(old.family, lm, old.trials, replace(old.settings, **settings))


def bed_in(old: Bed, dtype: torch.dtype) -> Bed:
    return bed_on(old, changed(old.lm, lambda hf: hf.to(dtype)))


@cache
def deep_bed(family: str) -> Bed:
    """24 heads, all of them ranked: enough for some to be equal to four decimals."""
    shallow = bed(family)
    tokenizer = shallow.lm.tokenizer
    lm = LanguageModel.wrap(random_model(family, len(tokenizer), n_layers=6), tokenizer, shallow.lm.name)
    return bed_on(shallow, lm, n_top_heads=lm.n_layers * lm.n_heads)
