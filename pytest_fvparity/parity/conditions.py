"""In which conditions two sides are compared that are the same experiment: condition -> what the golden says, this run's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fvcore.model.generation import set_aside
from pytest_fvparity.golden.golden import require_comparable

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.profile import Profile


def conditions(golden: Profile, here: Profile, lm: LanguageModel) -> dict[str, list[str]]:
    """What differs, and what of the model a reader must know. Raises Refused where they are two experiments."""
    require_comparable(golden, here)
    different = {name: list(pair) for name, pair in golden.diff_conditions(here).items()}
    return different | _of_spec(lm) | _of_generation(lm)


def _of_generation(lm: LanguageModel) -> dict[str, list[str]]:
    """Of generation settings that a model ships with, and that neither side uses."""
    said = ", ".join(f"{name} {value}" for name, value in set_aside(lm.hf).items())
    return {"generation_config": ["end tokens alone", f"end tokens alone, set aside: {said}"]} if said else {}


def _of_spec(lm: LanguageModel) -> dict[str, list[str]]:
    """Of a spec that is not the one of the model's type."""
    if lm.spec.found_by == "model_type":
        return {}
    said = {"spec": ["not recorded", f"{lm.spec.name} ({lm.spec.found_by}): {' / '.join(lm.spec.paths)}"]}
    if ignored := ", ".join(f"{name} {value}" for name, value in lm.spec.defaults.items()):
        said["spec_defaults"] = ["not recorded", f"{ignored}; ignored, the options decide"]
    return said
