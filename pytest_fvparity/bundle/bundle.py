"""The file of a failure: what was compared at the earliest key that failed, and what it takes to compare it again.

It is safetensors with one JSON text in its header: no code, no archive, nothing packed. It is read as from a stranger:
bounded in size, no field that is not known, each tensor described by the text; no path and no pattern in it is used.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from fvcore import artifacts
from fvcore.artifacts import Artifact
from fvcore.formats import FormatError, json_value, read_safetensors, safetensors_metadata, validated, write_safetensors
from fvcore.gates import StageError
from fvcore.profile import Profile, Strict
from fvcore.trials.fixed import FixedTrials, Trial, TrialsFile
from pytest_fvparity.golden.manifest import CheckKey, Slice
from pytest_fvparity.golden.part import Part
from pytest_fvparity.parity.asking import require_leaves
from pytest_fvparity.parity.implementation import CHECK_KEYS, Answers
from pytest_fvparity.parity.noise import Noise
from pytest_fvparity.parity.tolerances import Rule, Tolerances

SCHEMA_VERSION = 1
MOST_BYTES, MOST_TEXT = 2**29, 2**24
"""Of a bundle, and of the JSON in it."""

GOLDEN, CANDIDATE, MODEL = "golden", "candidate", "model"
"""Who said a leaf. What the model at hand said are the logits after generated ids, by which near ties are told."""

Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4000)]


class First(Strict):
    """The first thing that was found wrong, as the run told it."""

    where: Text
    message: Text
    expected: Any
    actual: Any
    coordinate: dict[str, int | str]


class Allowed(Strict):
    """What a leaf of some name was compared with."""

    leaf: Text
    rule: Text
    atol: Size
    rtol: Size
    of_max: Size
    of_norm: Size


class Bundle(Strict):
    """`leaves` are named `<side>/<key>/<leaf>`. `first` is None where the stage raised, which `message` says."""

    schema_version: Literal[1]
    written_at: Text
    key: CheckKey
    first: First | None
    message: Text
    signature: Text | None
    fault: Text | None
    mismatch_count: int
    compared: int
    candidate: Text
    effects: Text | None
    profile: Profile
    golden_profile: Profile
    target_regime: Literal["clean", "corrupted"]
    trials: TrialsFile
    places: list[int]  # of these trials in their file
    allowed: list[Allowed]
    noise: dict[str, Size]
    slices: dict[CheckKey, dict[str, Slice]]
    incomplete: list[CheckKey]
    left_out: list[Text]
    leaves: dict[str, Any]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.places) != len(self.trials.trials):
            raise ValueError(f"{len(self.places)} places of {len(self.trials.trials)} trials")
        for name in self.leaves:
            side, key, *rest = name.split("/", 2)
            if not rest or side not in {GOLDEN, CANDIDATE, MODEL} or key not in CHECK_KEYS:
                raise ValueError(f"leaf {name!r:.80} is of no side and key")
        return self

    def of(self, side: str, key: str) -> dict[str, Any]:
        prefix = f"{side}/{key}/"
        return {name.removeprefix(prefix): value for name, value in self.leaves.items() if name.startswith(prefix)}

    @property
    def tolerances(self) -> Tolerances:
        """Those that were in force at the key, by the very names of its leaves."""
        rules = (
            (row.rule, row.model_dump(exclude={"leaf", "rule"}) | {"leaf": re.escape(row.leaf)}) for row in self.allowed
        )
        conditions, noise = self.profile.conditions, Noise((), {self.key: self.noise})
        named = tuple((name, Rule(key=self.key, **row)) for name, row in rules)
        return Tolerances(named, self.profile.identity.dtype, conditions.device, noise=noise)

    @property
    def fixed_trials(self) -> FixedTrials:
        identity = self.profile.identity
        known = identity.fixed_trials_id, identity.trials_sha256, self.trials
        return SomeTrials(*known, target_regime=self.target_regime, places=tuple(self.places))

    def continuation(self, trial: str, mode: str, _: object) -> Tensor:
        """The logits that the run was told by its model; raises StageError for others."""
        found: Tensor | None = self.of(MODEL, self.key).get(f"{trial}/{mode}")
        if found is None:
            raise StageError(f"{self.key}: whether trial {trial} parts at a near tie takes the model: give --model")
        return found


@dataclass(frozen=True)
class SomeTrials(FixedTrials):
    """Trials of a file, each by its place in it."""

    places: tuple[int, ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        records = zip(self.file.trials, self.places, strict=True)
        return tuple(Trial.of(one, at, one.demos_clean, one.demos_corrupted, one.query) for one, at in records)


@dataclass(frozen=True)
class Recorded(Answers):
    """One side of a bundle, as an implementation that reads."""

    bundle: Bundle
    side: str

    def stored(self, key: str) -> Artifact:
        found = self.bundle.of(self.side, key)
        if self.side == CANDIDATE and not found:
            raise StageError(self.bundle.message or f"the bundle holds nothing that the candidate said at {key}")
        return found

    @property
    def part(self) -> Part:
        return Part(self.bundle.slices, self.bundle.incomplete)

    @property
    def effects(self) -> str | None:
        return self.bundle.effects


def place(folder: Path, key: str) -> Path:
    """Where the failure of a key lies in the folder of its trials."""
    return folder / f"failure-{key}.safetensors"


def write(path: Path, bundle: Bundle) -> None:
    """Raises FormatError where it would be too large to be read."""
    tensors = {name: value for name, value in bundle.leaves.items() if artifacts.is_dense(value)}
    fields = bundle.model_dump(mode="json", exclude={"leaves"}) | {"leaves": artifacts.described(bundle.leaves)}
    text = json.dumps(fields, separators=(",", ":"))
    n_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if len(text) > MOST_TEXT or n_bytes + MOST_TEXT > MOST_BYTES:
        raise FormatError(f"{path}: {n_bytes} bytes of numbers and {len(text)} of text are more than a bundle may hold")
    write_safetensors(path, tensors, {"bundle": text})


def read(path: Path) -> Bundle:
    """Raises FormatError for whatever is no bundle of this version, in one sentence."""
    tensors = read_safetensors(path, MOST_BYTES)
    text = safetensors_metadata(path).get("bundle", "")
    if not text or len(text) > MOST_TEXT:
        raise FormatError(f"{path}: not a bundle (its JSON text has {len(text)} characters, expected 1 to {MOST_TEXT})")
    value = json_value(text, f"{path}: its JSON text", strict=False)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise FormatError(f"{path}: a bundle of schema version {version!r:.40}, this version reads {SCHEMA_VERSION}")
    bundle = validated(Bundle, value, path, "a bundle")
    if bundle.trials.model_dump(mode="json") != value["trials"]:  # that format leaves alone what it does not know
        raise FormatError(f"{path}: its trials hold what no trials file of ours does")
    leaves = artifacts.joined(bundle.leaves, tensors, str(path))
    try:
        require_leaves(bundle.key, leaves)
    except StageError as error:
        raise FormatError(f"{path}: {error}") from None
    return bundle.model_copy(update={"leaves": leaves})
