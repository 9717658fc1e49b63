"""What a piece of work takes is seen, and what was there before is not."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.model.memory import KEPT, M_TRIM_THRESHOLD, free_memory, keep_freed_memory, peak_memory


MIB = 2**20


def test_the_peak_is_seen_though_the_memory_was_given_back() -> None:
    with peak_memory() as peak:
        torch.ones(64 * MIB // 4)  # freed at once

    assert 60 * MIB < peak.n_bytes < 100 * MIB


def test_what_was_there_before_does_not_count() -> None:
    weights = torch.ones(64 * MIB // 4)

    with peak_memory() as peak:
        weights.sum()

    assert peak.n_bytes < 16 * MIB


def test_the_peak_is_known_behind_an_error_too() -> None:
    try:
        with peak_memory() as peak:
            torch.ones(64 * MIB // 4)
            raise ValueError
    except ValueError:
        pass

    assert peak.n_bytes > 60 * MIB


def test_free_memory_is_not_more_than_there_is() -> None:
    import psutil

    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


@pytest.mark.parametrize("own", [False, True])
def test_freed_memory_is_kept_in_bounds_unless_somebody_said_otherwise(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[int, int] = {}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=asked.__setitem__))
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")

    keep_freed_memory.__wrapped__()

    assert asked.get(M_TRIM_THRESHOLD) == (None if own else KEPT)
