"""Amounts of memory have one way to be written, on every command line and in every file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies

from fvcore import sizes
from fvcore.experiments.antonym.config import AntonymConfig
from fvcore.experiments.config import ConfigError, resolve
from fvcore.experiments.evaluation.config import EvaluationConfig
from fvcore.experiments.select_kv.config import SelectKVConfig


@given(strategies.integers(1, 2**50))
def test_what_is_written_is_read_as_the_same_amount(amount: int) -> None:
    assert sizes.n_bytes(sizes.exact(amount)) == amount


@pytest.mark.parametrize(("text", "amount"), [("8GiB", 8 * 2**30), (" 1.5 MiB ", 3 * 2**19), ("1B", 1)])
def test_a_unit_is_part_of_the_amount(text: str, amount: int) -> None:
    assert sizes.n_bytes(text) == amount


@pytest.mark.parametrize(
    "text", ["8", "8589934592", "8GB", "8g", "-1GiB", "0GiB", "0.1B", "", "GiB", "1e3GiB", "9" * 400 + "TiB"]
)
def test_without_a_unit_it_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="such as 8GiB"):
        sizes.n_bytes(text)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(AntonymConfig, "max_memory"), (EvaluationConfig, "max_memory"), (SelectKVConfig, "phase2.eval.max_memory")],
)
def test_every_setting_of_memory_takes_it_and_nothing_else(kind: type, name: str, tmp_path: Path) -> None:
    given = {"dataset": "a.json", "what": "all"} if kind is EvaluationConfig else {}
    found = resolve(kind, given, sets=[f"{name}=8GiB"])
    for part in name.split("."):
        found = getattr(found, part)
    assert found == 8 * 2**30
    with pytest.raises(ConfigError, match=rf"{name}: expected an amount with its unit.*found 8589934592"):
        resolve(kind, given, sets=[f"{name}=8589934592"])
