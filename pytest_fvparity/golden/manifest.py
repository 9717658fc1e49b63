"""The manifest of a golden: what was recorded, with what, and the sha256 of every file, its own digest among them.

Whoever edits a manifest by hand, its noise or its settings as much as its hashes, damages the golden.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from fvcore import escapes
from fvcore.exits import in_one_line
from fvcore.formats import FormatError, read_json, sentence, sha256, sha256_file, write_json
from fvcore.gates import Refused
from fvcore.profile import Conditions, Part, Profile, Strict
from pytest_fvparity.parity.implementation import CHECK_KEYS

MANIFEST = "manifest.json"
# How the names of files of the full tier end.
FULL = ".full.safetensors"
DIGEST = "digest"
# 2: the golden's own noise stands beside what was recorded. 3: the manifest has a digest of its own.
SCHEMA_VERSION = 3

AGAIN = "restore it from version control, or record it again with --fv-regen-golden --fv-src PATH"


class DamagedGolden(Refused):
    """A golden's files are not what its manifest says; the message ends with the way out."""

    def __init__(self, told: str) -> None:
        super().__init__(f"{told}; {AGAIN}")


class OtherSchema(DamagedGolden):
    """Another version of this project wrote the manifest; `found` is its version, if that is a number."""

    def __init__(self, path: Path, found: object) -> None:
        told = f"manifest schema {found!r:.40}, this version reads {SCHEMA_VERSION}"
        super().__init__(f"{path}: {told}: another version of pytest-fvparity recorded it")
        self.found = found if type(found) is int else None


def _known(key: str) -> str:
    if key not in CHECK_KEYS:
        raise ValueError(f"unknown check key: {key!r:.40}")
    return key


CheckKey = Annotated[str, AfterValidator(_known)]


class Provenance(Strict):
    """What was run to record a golden. `applied` normalisations changed the checkout's behaviour, `already` were so.

    Of an imported golden `sources` are the files it was read from, and nothing is known of what wrote them.
    """

    origin: Literal["recorded", "imported"] = "recorded"
    repository: str
    commit: str
    sources: dict[str, str]
    normalisations: dict[str, list[str]]
    versions: dict[str, str]


class Slice(Strict):
    """The part of a tensor that a golden's core holds: some `indices` along one `axis` of its `shape`."""

    axis: int = Field(ge=0)
    indices: list[int] = Field(min_length=1)
    shape: list[int]

    @model_validator(mode="after")
    def _lies_inside(self) -> Self:
        if self.axis >= len(self.shape) or len(set(self.indices)) < len(self.indices):
            raise ValueError(f"axis {self.axis} of {self.shape}, or an index that stands twice")
        if not all(0 <= index < self.shape[self.axis] for index in self.indices):
            raise ValueError(f"an index outside axis {self.axis} of {self.shape}")
        return self


class Stored(Strict):
    """A file that lies elsewhere."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    n_bytes: int = Field(ge=0)


class Full(Strict):
    """The tier that need not be here: whole tensors, one file a check key, and what the core holds in their place."""

    url: str | None = None
    files: dict[CheckKey, Stored]
    slices: dict[CheckKey, dict[str, Slice]]

    @model_validator(mode="after")
    def _covers_its_slices(self) -> Self:
        if self.files.keys() != self.slices.keys():
            raise ValueError(f"full tier of {sorted(self.files)}, slices of {sorted(self.slices)}")
        return self


class Added(Strict):
    """Leaves that were recorded later than the others, by a run of the same checkout that met those within tolerance; that
    run's conditions and the variations under which their noise was measured."""

    leaves: dict[CheckKey, list[str]]
    conditions: Conditions
    variations: list[str]


class Manifest(Strict):
    schema_version: int
    profile: Profile
    reference: Provenance
    command: str
    # What the reference's legal variations change, at most: check key -> leaf name -> absolute difference.
    variations: list[str]
    noise: dict[CheckKey, dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]]
    files: dict[Part, str]
    # Check keys of which not every leaf is known: what a candidate says beside them is not compared.
    incomplete: list[CheckKey] = Field(default=[])
    full: Full | None = None
    added: Added | None = None
    digest: str = ""


def digests(folder: Path) -> dict[str, str]:
    """File name -> sha256, of every file in a folder."""
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}


def settings(profile: Profile, prefix: str, **paths: str) -> str:
    """What a golden was recorded with, as options: `--fv-` of pytest, `--` of `fvparity golden import`.

    paths: where model and trials lie, if that is known; a profile knows their names alone
    """
    identity = profile.identity
    named = {
        "model": profile.conditions.model,
        "trials": f"{identity.fixed_trials_id}.json",
        "edit-layer": identity.edit_layer,
        "top-heads": identity.n_top_heads,
        "token-class": identity.token_class_idx,
        "reference-profile": identity.reference_profile,
        "dtype": identity.dtype,
    }
    return escapes.shell(f"{prefix}{name}={value}" for name, value in (named | paths).items())


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest with the digest of all the others, whatever their order."""
    rest = {name: value for name, value in fields.items() if name != DIGEST}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**rest, DIGEST: sha256(canonical.encode())}


def write(manifest: Manifest, path: Path) -> None:
    """Write it into the golden's folder, sealed."""
    write_json(path / MANIFEST, sealed(manifest.model_dump(mode="json", exclude_defaults=True)))


def read(path: Path) -> Manifest:
    """The manifest in a golden's folder; raises DamagedGolden with the reason and the way out."""
    try:
        written = read_json(path / MANIFEST)
        # Asked first: a manifest of another schema has other fields.
        found = written.get("schema_version", SCHEMA_VERSION) if isinstance(written, dict) else SCHEMA_VERSION
        if found != SCHEMA_VERSION:
            raise OtherSchema(path, found)
        manifest = Manifest.model_validate(written)
    except (FormatError, ValidationError) as error:
        reason = in_one_line(error)[:300] if isinstance(error, FormatError) else sentence(error)
        raise DamagedGolden(f"{path}: the golden's manifest cannot be read: {reason}") from None
    if (actual := sealed(written)[DIGEST]) != manifest.digest:
        raise DamagedGolden(
            f"{path / MANIFEST}: edited: digest {manifest.digest:.12}... expected, {actual:.12}... found"
        )
    return manifest
