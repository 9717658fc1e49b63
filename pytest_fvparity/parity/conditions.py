"""In which conditions two sides are compared that are the same experiment: condition -> what the golden says, this run's."""

from collections.abc import Sequence

from fvcore import escapes
from fvcore.model.generation import set_aside
from fvcore.model.model import LanguageModel, doubts, untested_in
from fvcore.profile import NOT_RECORDED, Profile
from pytest_fvparity.golden.golden import require_comparable


def conditions(
    golden: Profile, here: Profile, lm: LanguageModel, named: Sequence[str], **paths: str
) -> dict[str, list[str]]:
    """What differs, and what of the model a reader must know. Raises Refused where they are two experiments.

    named: the words by which a command finds this model     paths: where its `trials` lie, if in a file
    """
    require_comparable(golden, here, model=named[0], **paths)
    pairs = golden.diff_conditions(here).items()
    different = {name: [NOT_RECORDED if side is None else side for side in pair] for name, pair in pairs}
    return different | _untested(lm, named) | _doubtful(lm) | _of_spec(lm) | _of_generation(lm)


def _untested(lm: LanguageModel, named: Sequence[str]) -> dict[str, list[str]]:
    """Of a family or a library that the project has not run: what it has, and how to see whether the engines agree."""
    compare = f"`{escapes.shell(['fvcore', 'spec', 'engines', *named])}` compares both engines"
    return {name: [was, f"{now}; {compare}"] for name, (was, now) in untested_in(lm).items()}


def _doubtful(lm: LanguageModel) -> dict[str, list[str]]:
    said = "; ".join(doubts(lm))
    return {"model in doubt": [NOT_RECORDED, said]} if said else {}


def _of_generation(lm: LanguageModel) -> dict[str, list[str]]:
    """Of generation settings that a model ships with, and that neither side uses."""
    said = ", ".join(f"{name} {value}" for name, value in set_aside(lm.hf).items())
    return {"generation_config": ["end tokens alone", f"end tokens alone, set aside: {said}"]} if said else {}


def _of_spec(lm: LanguageModel) -> dict[str, list[str]]:
    """Of a spec that is not the one of the model's type."""
    if lm.spec.found_by == "model_type":
        return {}
    said = {"spec": [NOT_RECORDED, f"{lm.spec.name} ({lm.spec.found_by}): {' / '.join(lm.spec.paths)}"]}
    if ignored := ", ".join(f"{name} {value}" for name, value in lm.spec.defaults.items()):
        said["spec_defaults"] = [NOT_RECORDED, f"{ignored}; ignored, the options decide"]
    return said
