"""The plan's name of what runs phase 2."""

from fvcore.experiments.select_kv.run import run_phase2 as run_phase2
