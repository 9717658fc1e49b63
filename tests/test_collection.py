"""Collection is quick: it brings neither torch nor the catalogue of faults, and makes no crowd of items of one test."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "ray", "pytest_fvparity.selftest.catalogue", "pytest_fvparity.selftest.run")
MOST = 40
"""Items of one test in `make test`; more are seeds or a product of parameters, which one test can go through."""

COLLECTED = f"""
import sys

import pytest

status = pytest.main(["--collect-only", "-q", "-m", "not slow", "-p", "no:cacheprovider", "tests"])
print("imported:", *[name for name in {HEAVY} if name in sys.modules])
sys.exit(status)
"""


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """What a collection of all quick tests prints, in a process of its own."""
    result = subprocess.run([sys.executable, "-c", COLLECTED], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def test_collection_brings_neither_torch_nor_the_catalogue(collected: list[str]) -> None:
    assert collected[-1] == "imported:"


def test_no_test_is_a_crowd(collected: list[str]) -> None:
    items = Counter(line.partition("[")[0] for line in collected if "::" in line)
    assert {test: n for test, n in items.items() if n > MOST} == {}
