from __future__ import annotations

from importlib.util import find_spec

# `pytest -m parity` comes by here with what a plain install brings; the tool that makes the damage is one of development.
collect_ignore_glob = [] if find_spec("hypothesis") else ["*.py"]
