"""How many CPU threads compute: one for a small model, whose products are too short to be worth sharing.

Threads that wait for one another on cores that others need too made a run over the shipped file five times as long. And a
small model's numbers then depend on no machine's number of cores.
"""

from __future__ import annotations

import torch

from fvcore.model.model import LanguageModel

SMALL = 10_000_000  # parameters


def settle(lm: LanguageModel, threads: int | None = None) -> int:
    """Set this process's threads as asked for, else by the model's size; returns how many there are."""
    if threads is None and lm.device.type == "cpu" and sum(p.numel() for p in lm.hf.parameters()) < SMALL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
