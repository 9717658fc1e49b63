from __future__ import annotations

from importlib.util import find_spec

import pytest

# `pytest -m parity` comes by here with what a plain install brings; the tool that makes the damage is one of development.
collect_ignore_glob = [] if find_spec("hypothesis") else ["*.py"]


@pytest.fixture(params=[pytest.param(6, id="part"), pytest.param(1, id="whole", marks=pytest.mark.slow)])
def part(request: pytest.FixtureRequest) -> int:
    """What the number of a campaign's inputs is divided by; the whole of it is slow."""
    return int(request.param)
