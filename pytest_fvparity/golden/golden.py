"""Goldens: recordings of the reference on disk, and the only way they come to be.

`<golden>/<dataset>/<fixed_trials_id>/<reference profile>/` holds `manifest.json` and one artifact a check key. The
manifest says what was recorded, with what, and the sha256 of every file; a file that does not match is never used.
"""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fvcore import artifacts, escapes, names, shipped
from fvcore.artifacts import Artifact, Leaf
from fvcore.formats import FormatError, make_folder, read_safetensors, sha256_file
from fvcore.gates import Refused, StageError, Status
from fvcore.profile import Profile
from pytest_fvparity.golden import manifest as manifests
from pytest_fvparity.golden.diff import KeyDiff, differences
from pytest_fvparity.golden.manifest import FULL, MANIFEST, SCHEMA_VERSION, DamagedGolden, Manifest, Provenance, Slice
from pytest_fvparity.golden.part import WHOLE, Part, taken
from pytest_fvparity.parity.implementation import CHECK_KEYS, Answers
from pytest_fvparity.parity.noise import Noise
from pytest_fvparity.reference.reference import Recording

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel

# What a recording is staged in, and what waits while it takes its place; a killed process leaves them behind.
STAGING = ".recording-"
PREVIOUS, COMING = ".previous", ".coming"


class NoGolden(StageError):
    """There is no golden for these trials."""

    status = Status.NO_GOLDEN


class StaleGolden(Refused):
    """The golden is of these trials and this model by name, and no longer by content."""

    status = Status.STALE_GOLDEN


@dataclass(frozen=True)
class Golden(Answers):
    """A golden directory, as an Implementation that reads. Opening it checks every file's hash."""

    path: Path
    manifest: Manifest
    artifacts: dict[str, Artifact]
    # What is here of a recording: all of it, unless its full tier lies elsewhere or it was imported.
    part: Part = WHOLE

    def __repr__(self) -> str:
        return f"Golden({self.path})"

    @classmethod
    def open(cls, path: Path) -> Golden:
        manifest = manifests.read(path)
        full = manifest.full.files if manifest.full else {}
        here = [key for key in full if (path / f"{key}{FULL}").is_file()]
        digests = manifest.files | {f"{key}{FULL}": full[key].sha256 for key in here}
        needed = {f"{key}.json" for key in CHECK_KEYS if key not in manifest.incomplete}
        if unlisted := sorted((needed | {file.name for file in path.glob("*.safetensors")}) - digests.keys()):
            raise DamagedGolden(f"{path}: the manifest says nothing of {', '.join(unlisted)}")
        for name, expected in digests.items():
            if not (file := path / name).is_file():
                raise DamagedGolden(f"{file}: missing, the manifest lists it")
            if (actual := sha256_file(file)) != expected:
                raise DamagedGolden(f"{file}: damaged: sha256 {expected[:12]}... expected, {actual[:12]}... found")
        # Read now, before any candidate is asked: what it writes over the files later is not compared with.
        held: dict[str, Artifact]
        held = {key: artifacts.load(path / key) if f"{key}.json" in digests else {} for key in CHECK_KEYS}
        slices = manifest.full.slices if manifest.full else {}
        held |= {key: _with_slices(path, key, held[key], pieces, key in here) for key, pieces in slices.items()}
        part = Part({key: pieces for key, pieces in slices.items() if key not in here}, manifest.incomplete)
        return cls(path, manifest, held, part)

    @property
    def profile(self) -> Profile:
        return self.manifest.profile

    def is_of(self, lm: LanguageModel) -> bool:
        """Whether it was recorded from this model; by its name too, since weights that changed make it stale, not another's."""
        return self.profile.identity.weights_sha == lm.weights_sha or self.profile.conditions.model == lm.name

    @property
    def noise(self) -> Noise:
        return Noise(tuple(self.manifest.variations), self.manifest.noise)


def _with_slices(path: Path, key: str, held: Artifact, pieces: Mapping[str, Slice], is_here: bool) -> dict[str, Leaf]:
    """A key's leaves, whole where the full tier `is_here`; raises DamagedGolden where the two tiers are not of one."""
    whole = read_safetensors(path / f"{key}{FULL}") if is_here else {}
    for leaf, piece in pieces.items():
        core, full = held.get(leaf), whole.get(leaf)
        found = list(getattr(core, "shape", []))
        wanted = [len(piece.indices) if axis == piece.axis else size for axis, size in enumerate(piece.shape)]
        fits = found == wanted and (not is_here or (full is not None and list(full.shape) == piece.shape))
        if not fits or (full is not None and not taken(piece, full).equal(artifacts.tensor_leaf(held, leaf))):
            raise DamagedGolden(f"{path}: the core's slice of {key} {leaf!r} is none of the recorded tensor")
    return {leaf: whole.get(leaf, value) for leaf, value in held.items()}


def require_comparable(golden: Profile, candidate: Profile) -> None:
    """Refuse, naming the fields, when the two are not the same experiment; StaleGolden when they were once."""
    if not (different := golden.diff_identity(candidate)):
        return
    shown = {name: [_shown(name, value) for value in pair] for name, pair in different.items()}
    fields = "; ".join(f"{name}: golden {want}, this run {have}" for name, (want, have) in shown.items())
    if changed := _changed_content(golden, candidate, set(different)):
        raise StaleGolden(
            f"stale golden, nothing was compared. {' and '.join(changed)} changed since it was recorded. {fields}. "
            f"Restore what changed, or record again: {command(golden)}"
        )
    raise Refused(
        f"profile mismatch, nothing was compared. {fields}. Use the golden's settings, or record a golden of these: "
        f"`{command(candidate)}`, PATH a checkout of the reference"
    )


def _shown(name: str, value: object) -> str:
    """Of a digest its head is enough to tell two apart."""
    return f"{value:.12}..." if name in DIGESTS else repr(value)


DIGESTS = {"weights_sha", "tokenizer_sha", "trials_sha256"}

# What a trials file says of itself: a new content may change these too.
WITH_TRIALS = {"dataset", "seed", "n_shots", "n_trials", "template"}


def _changed_content(golden: Profile, candidate: Profile, different: set[str]) -> list[str]:
    """What is known under the golden's name and is no longer what it was; empty if anything else differs beside it."""
    model, found = golden.conditions.model, list[str]()
    if "trials_sha256" in different and golden.identity.fixed_trials_id == candidate.identity.fixed_trials_id:
        found.append(f"the trials file {golden.identity.fixed_trials_id}")
        different = different - {"trials_sha256", *WITH_TRIALS}
    if model == candidate.conditions.model:
        named = {"weights_sha": f"the weights of {model}", "tokenizer_sha": f"the tokenizer of {model}"}
        found += [words for field, words in named.items() if field in different]
        different = different - named.keys()
    return [] if different else found


def relative_path(dataset: str, fixed_trials_id: str, reference_profile: str) -> Path:
    parts = {"dataset": dataset, "trials": fixed_trials_id, "reference profile": reference_profile}
    return Path(*(names.part(name, f"a golden's {what}") for what, name in parts.items()))


def own_place(relative: Path, weights_sha: str) -> Path:
    """Where a golden lies beside one of another model: two directories of one name can share trials of one name."""
    return relative.with_name(f"{relative.name}-{weights_sha[:8]}")


def place_for(root: Path, relative: Path, weights_sha: str) -> Path:
    """Where a model's golden is recorded: no other model's is replaced."""
    own = own_place(relative, weights_sha)
    if (root / own / MANIFEST).is_file():
        return own
    restore(root / relative)
    return own if _is_of_another(root / relative, weights_sha) else relative


def _is_of_another(path: Path, weights_sha: str) -> bool:
    """Whether a golden was recorded from other weights; not so where these are not known, and where none is there or none that
    anybody could compare with."""
    try:
        return weights_sha not in ("", manifests.read(path).profile.identity.weights_sha)
    except (StageError, FormatError):
        return False


def locate(roots: Iterable[Path], relative: Path, weights_sha: str = "", named: Iterable[str] = ()) -> Path:
    """The golden's directory in the first root that has it; raises NoGolden with the places tried and the command.

    weights_sha: of the model, whose own golden, wherever it lies, comes before another's
    named: the options of this run that say which model and which trials
    """
    relatives = [own_place(relative, weights_sha), relative] if weights_sha else [relative]
    found = [root / name for name in relatives for root in roots]
    tried = [path for path in found if path.name == relative.name]
    for path in found:
        restore(path)
    if held := [path for path in found if (path / MANIFEST).is_file()]:
        return next((path for path in held if not _is_of_another(path, weights_sha)), held[0])
    places = " or ".join(str(path) for path in tried)
    words = escapes.shell(["pytest", "-m", "parity", "--fv-regen-golden", "--fv-src=PATH", *named])
    raise NoGolden(
        f"no golden at {places}. Record one with `{words}`, PATH a checkout of the reference, or compare with a run of it "
        "made now: --fv-live in place of --fv-regen-golden"
    )


def has_own(roots: Iterable[Path], relative: Path, weights_sha: str) -> bool:
    """Whether a model has a golden there, or one that nobody could compare with: a run says what is wrong with it."""
    try:
        return not _is_of_another(locate(roots, relative, weights_sha), weights_sha)
    except NoGolden:
        return False


def write(recording: Recording, path: Path, how: str = "", complete: Collection[str] = CHECK_KEYS) -> None:
    """Write a recording as a golden directory; its bytes depend on nothing but what was recorded.

    `how` is the command that makes it again, if not `command`'s; of other keys than `complete` there are more leaves.
    """
    for key, artifact in recording.artifacts.items():
        artifacts.save(artifact, path / key)
    known = recording.provenance
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        profile=recording.profile,
        reference=Provenance.model_validate({name: known[name] for name in Provenance.model_fields if name in known}),
        command=how or command(recording.profile),
        variations=list(recording.noise.variations),
        noise={key: dict(leaves) for key, leaves in recording.noise.largest.items()},
        files=manifests.digests(path),
        incomplete=[key for key in CHECK_KEYS if key not in recording.artifacts or key not in complete],
    )
    manifests.write(manifest, path)


def command(profile: Profile) -> str:
    """How to record this golden again; paths are left to the reader."""
    attention = escapes.shell([f"--fv-attn={profile.conditions.attn_implementation}"])
    return f"pytest -m parity --fv-regen-golden --fv-src=PATH {manifests.settings(profile, '--fv-')} {attention}"


# Runs the reference; told whether to measure its noise too.
Record = Callable[[bool], Recording]


def regenerate(record: Record, path: Path) -> dict[str, KeyDiff]:
    """Record twice, demand equal bytes, then take the old golden's place in one step.

    Returns how each check key and the manifest changed.
    """
    nearest = next(folder for folder in path.parents if folder.is_dir())  # a refusal leaves not even a folder
    with tempfile.TemporaryDirectory(dir=nearest, prefix=STAGING) as scratch:
        staged = recorded_twice(record, Path(scratch))
        restore(path)
        changes = differences(path, staged)
        make_folder(path.parent)
        swap(staged, path)
    return changes


def rehearse(record: Record, path: Path) -> dict[str, KeyDiff]:
    """What `regenerate` would change; everything is recorded elsewhere, and nothing near `path` is touched."""
    with tempfile.TemporaryDirectory(prefix="fvparity-rehearsal-") as scratch:
        # An old golden that waits for its name is what `restore` would give it back before recording.
        return differences(previous(path) if waits(path) else path, recorded_twice(record, Path(scratch)))


def recorded_twice(record: Record, scratch: Path) -> Path:
    """The folder in `scratch` of a recording that came out the same a second time.

    Noise is measured once: that is most of the work, and it says nothing of whether the recorded run can be repeated.
    """
    first = record(True)
    again = replace(record(False), noise=first.noise)
    staged = [scratch / name for name in ("first", "second")]
    for directory, recording in zip(staged, (first, again), strict=True):
        directory.mkdir()
        write(recording, directory)
    if different := differing_files(*staged):
        raise Refused(f"two recordings of the same reference differ in {', '.join(different)}; nothing was changed")
    return staged[0]


def differing_files(one: Path, other: Path) -> list[str]:
    """The names of files that two folders do not hold with the same bytes."""
    names = {file.name for folder in (one, other) for file in folder.iterdir()}
    _, different, lacking = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted([*different, *lacking])


def swap(new: Path, target: Path) -> None:
    """`new` takes `target`'s name. If anything fails the old directory is put back, now or by `restore`."""
    old, following = previous(target), coming(target)
    for stale in (old, following):
        shutil.rmtree(stale, ignore_errors=True)
    new.rename(following)
    try:
        if target.exists():
            target.rename(old)
        following.rename(target)
    except BaseException:
        restore(target)
        shutil.rmtree(following, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def previous(target: Path) -> Path:
    """Where the old directory waits while the new one takes its name."""
    return target.with_name(f".{target.name}{PREVIOUS}")


def coming(target: Path) -> Path:
    """Where the new directory waits: as long as it does, the old one may have to go back."""
    return target.with_name(f".{target.name}{COMING}")


def waits(target: Path) -> bool:
    """Whether a process was killed between the two renames of `swap`. Without the new directory beside it the old one is
    only not removed yet: where there is no golden then, its owner wants none."""
    return not target.exists() and coming(target).exists() and previous(target).exists()


def restore(target: Path) -> None:
    """Finish what a process that was killed between the two renames of `swap` left undone."""
    if waits(target):
        with suppress(FileNotFoundError):  # another process just did
            previous(target).rename(target)


def search_roots(explicit: Path | None, rootdir: Path) -> list[Path]:
    """--fv-golden alone if given; else the project's own, then the shipped ones."""
    return [explicit] if explicit else list(dict.fromkeys(root / "golden" for root in (rootdir, shipped.root())))
