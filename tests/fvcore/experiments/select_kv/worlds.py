"""Tiny random models of every family as runtimes, with settings for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fvcore.embedded.random_models import random_lm
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.model_runtime import ModelRuntime
from fvcore.experiments.select_kv.prefix import PrefixBuilder
from fvcore.experiments.select_kv.runtime import KV

SINK = 1
DEMO = tuple(int(i) for i in torch.randint(4, 60, (24,), generator=torch.Generator().manual_seed(5)))
QUERY = tuple(int(i) for i in torch.randint(4, 60, (7,), generator=torch.Generator().manual_seed(6)))
SELECTED = (2, 3, 4, 9, 10, 17, 21)
CLOSE = 2e-5
"""Logits of one model by two ways of computing in fp32, at a range of some units."""


def fresh(family: str, attn: str = "eager") -> ModelRuntime:
    lm = random_lm(family)
    lm.hf.set_attn_implementation(attn)
    return ModelRuntime(lm)


def runtime(family: str, attn: str = "eager") -> ModelRuntime:
    """The same object for the whole session."""
    return _made(family, attn)


_made = cache(fresh)


def settings(**changes: Any) -> Phase2:
    """The defaults, with others for keys written with `__` for the dot."""
    return Phase2().changed({name.replace("__", "."): value for name, value in changes.items()})


def builder(
    family: str, source: str, mode: str, sink: bool = False, attn: str = "eager", **changes: Any
) -> PrefixBuilder:
    asked = settings(injection__kv_source=source, injection__positioning_mode=mode, **changes)
    return PrefixBuilder(runtime(family, attn), asked, (SINK,) if sink else ())


def read(family: str, sink: bool = False, attn: str = "eager") -> KV:
    return runtime(family, attn).prefill([SINK] * sink + list(DEMO), sink_len=int(sink))


@torch.inference_mode()
def forward(family: str, ids: Any, positions: Any = None, attn: str = "eager") -> Tensor:
    """What follows some ids in one pass of the model itself, without any cache: (vocab,)"""
    row = torch.tensor([list(ids)])
    at = torch.arange(len(ids)) if positions is None else torch.tensor(list(positions))
    hf = runtime(family, attn).lm.hf
    logits: Tensor = hf(row, position_ids=at[None], attention_mask=torch.ones_like(row), use_cache=False).logits
    return logits[0, -1]


def furthest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def divergence(p: Tensor, q: Tensor) -> float:
    """KL(p || q) of logits, in nats."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum())
