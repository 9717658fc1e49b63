"""The plan's name of phase 2's numbers."""

from fvcore.experiments.select_kv.metrics import *  # noqa: F403
