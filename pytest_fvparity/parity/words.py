"""What is said of a run and of a stage beside their numbers: conditions in words, whose fault it is, what the drill found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fvcore.gates import Verdict
from pytest_fvparity.drill.conclusion import lines as drill_lines

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel

FAULTS = {
    "own": "on the reference's inputs this key differs too: the fault is its own",
    "inherited": "on the reference's inputs this key agrees: the fault is inherited from an earlier key",
    "accumulated": "on the reference's inputs this key agrees: what differs adds up from earlier keys, each within tolerance",
    "unsteady": "the candidate answers another thing to the very same inputs: it does not say the same twice",
}


def lines(verdict: Verdict) -> Sequence[str]:
    """Whose fault it is, and what the drill found."""
    fault, drill = FAULTS.get(verdict.details.get("fault", "")), verdict.details.get("drill")
    pattern = verdict.details.get("signature")
    return [*filter(None, (pattern, fault)), *(drill_lines(drill) if drill else [])]


def generation_conditions(lm: LanguageModel) -> dict[str, list[str]]:
    """What a report says of generation settings that a model ships with, and that neither side uses."""
    from fvcore.model.generation import set_aside

    said = ", ".join(f"{name} {value}" for name, value in set_aside(lm.hf).items())
    return {"generation_config": ["end tokens alone", f"end tokens alone, set aside: {said}"]} if said else {}


def spec_conditions(lm: LanguageModel) -> dict[str, list[str]]:
    """What a report says of a spec that is not the one of the model's type: condition -> golden's, this run's."""
    if lm.spec.found_by == "model_type":
        return {}
    said = {"spec": ["not recorded", f"{lm.spec.name} ({lm.spec.found_by}): {' / '.join(lm.spec.paths)}"]}
    if ignored := ", ".join(f"{name} {value}" for name, value in lm.spec.defaults.items()):
        said["spec_defaults"] = ["not recorded", f"{ignored}; ignored, the options decide"]
    return said
