"""Profile: the identity and the conditions of a run, which decide whether and how closely results can be compared.

A difference in identity means another experiment: comparison is refused. A difference in conditions means the same
experiment under other circumstances: it is reported and selects the tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fvcore import names

# How the processor of a recording stands to this one's.
SAME, OTHER, NOT_RECORDED = "same", "other", "not recorded"

# Reference profiles: `src` is the project copy of the reference, `todd_upstream` the public repository as it stands.
TARGET_RULES = {"src": "trial's target_first_token_id", "todd_upstream": "recomputed on the corrupted prompt"}
REFERENCE_PROFILES = tuple(TARGET_RULES)


def _part(name: str) -> str:
    if not names.is_part(name):
        raise ValueError(f"expected the name of a file or folder, without slashes, of at most {names.MOST_BYTES} bytes")
    return name


Part = Annotated[str, AfterValidator(_part)]
"""A name that becomes a part of a path."""


MOST_SEED = 2**32 - 1
"""The generators of the reference take no larger one."""

Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]


class Strict(BaseModel):
    """A part of a file of ours: nothing is converted, and nothing else may stand beside its fields."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Identity(Strict):
    """What is computed. Two profiles that differ here are not comparable."""

    weights_sha: str
    tokenizer_sha: str
    trials_sha256: str
    dataset: Part
    fixed_trials_id: Part
    seed: int
    n_shots: int
    n_trials: int
    template: str
    target_token_rule: str
    dtype: str
    quant: str
    reference_profile: str
    n_top_heads: int
    token_class_idx: int
    edit_layer: int
    alpha: float


class Processor(Strict):
    """What the arithmetic is done by.

    capability: of torch's own kernels (AVX2, AVX512, DEFAULT), or a GPU's (9.0)
    onednn: the greatest instruction set that oneDNN uses
    forced: what the environment forbids the libraries, by the names of its variables
    """

    vendor: str
    model: str
    capability: str
    onednn: str = ""
    forced: dict[str, str] = {}

    def __str__(self) -> str:
        onednn = [f"oneDNN {self.onednn}"] if self.onednn else []
        forced = [f"{name}={value}" for name, value in self.forced.items()]
        return f"{self.model} ({', '.join([self.capability, *onednn, *forced])})"


class Conditions(Strict):
    """Where and how it is computed. `processor` is None where a recording says nothing of it: before it was asked."""

    model: str
    device: str
    attn_implementation: str
    engine: str
    threads: int
    versions: dict[str, str]
    processor: Processor | None = None


class Profile(Strict):
    identity: Identity
    conditions: Conditions

    def diff_identity(self, other: Profile) -> dict[str, tuple[Any, Any]]:
        """Field -> (this, other), for the identity fields that differ."""
        from fvcore.compare import changes  # with torch, which a profile that is read does not need

        return changes(self.identity.model_dump(), other.identity.model_dump())

    def diff_conditions(self, other: Profile) -> dict[str, tuple[Any, Any]]:
        """The same of the conditions, and of versions each by its name; processors in words.

        A version's local part (`2.14.1+cu130`) names a build of it, and is no other version.
        """
        from fvcore.compare import changes

        return changes(*(flat(profile.conditions.model_dump()) for profile in (self, other)))

    def processor_against(self, other: Profile) -> str:
        """Whether the other's processor is the SAME, an OTHER, or NOT_RECORDED on one side."""
        ours, theirs = self.conditions.processor, other.conditions.processor
        if ours is None or theirs is None:
            return NOT_RECORDED
        return SAME if ours == theirs else OTHER

    def same_kernels(self, other: Profile) -> bool:
        """Whether both ran the same code on the same processor, so that equal work gives equal bits."""
        builds = self.conditions.versions == other.conditions.versions
        return builds and self.processor_against(other) == SAME and not self.diff_conditions(other).keys() - {"model"}


def flat(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions as read from a file, each by its name: a version without its build, a processor in words."""
    known, processor = conditions.get("versions", {}), conditions.get("processor")
    found = {name: value for name, value in conditions.items() if name != "versions"}
    found["processor"] = str(Processor(**processor)) if processor else NOT_RECORDED
    return found | {name: str(version).partition("+")[0] for name, version in known.items()}
