"""The steps by their names: which are asked for, each as a command of its own, and the heat map, which needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fvcore.experiments.config import ConfigError
from fvcore.experiments.steps.settings import STEPS

STEP_COMMANDS: dict[str, tuple[Mapping[str, Any], str]] = {
    "stepd": ({"steps": ("sample", "stepd")}, "Sample the trials and compute the indirect effect of every head."),
    "heatmap": ({"steps": ("heatmap",)}, "Draw the scores; the model is not needed."),
    "stepe": ({"steps": ("stepe",)}, "Choose the top heads and make the function vector."),
    "zeroshot": ({"steps": ("zeroshot",)}, "Write the sampled trials' queries without demonstrations."),
    "step6": ({"steps": ("step6",)}, "Add the vector behind a layer, or behind each, and evaluate."),
}
"""`run --steps ...` under the plans' names: what each sets, and its help."""


def chosen_steps(asked: Sequence[str], pictures: bool) -> list[str]:
    """In their order; without `pictures` the heat map is drawn only where it is asked for by name."""
    if unknown := [step for step in asked if step not in STEPS]:
        raise ConfigError(f"--steps: no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    return [step for step in STEPS if step in (asked or (STEPS if pictures else set(STEPS) - {"heatmap"}))]


def draw(console: Console, root: Path, metric: str, top_heads: int, name: str) -> None:
    """The heat map of a folder's scores, under `aie_heatmap_<name>.png`, however much of that is given."""
    from fvcore.experiments.folder import Folder
    from fvcore.experiments.steps import heatmap

    name = Path(name).name.removesuffix(".png").removeprefix("aie_heatmap_")
    for path in heatmap.run(Folder(root), metric, top_heads, name=name):
        console.print(f"wrote {path}", soft_wrap=True, markup=False)
