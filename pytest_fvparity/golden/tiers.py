"""Two tiers of one golden: a core that fits git, and the full tensors elsewhere, fetched by URL and checked.

The core holds every leaf; of the few large tensors it holds a slice, and the manifest says which, with digest and size
of the files that hold the whole. Those are stored under their digest, so that a golden that is recorded again takes
nothing away from an older commit. With them beside the core a golden is what it was before it was split.
"""

import tempfile
from pathlib import Path
from typing import cast

from torch import Tensor

from fvcore import artifacts
from fvcore.artifacts import Artifact
from fvcore.formats import read_bytes, sha256, sha256_file, write_bytes, write_safetensors
from pytest_fvparity.golden import manifest as manifests
from pytest_fvparity.golden import stores
from pytest_fvparity.golden.golden import STAGING, Golden, swap
from pytest_fvparity.golden.manifest import FULL, Full, Slice, Stored
from pytest_fvparity.golden.part import taken
from pytest_fvparity.golden.stores import TierError
from pytest_fvparity.parity.implementation import CHECK_KEYS

N_LARGEST = 64
"""How many logits a core holds beside the target's: the largest, where a difference would be seen first."""

CORE_LIMIT = 2**20


def slices_of(key: str, artifact: Artifact) -> dict[str, Slice]:
    """The leaves of a key that the core holds a slice of, and which.

    Mean activations: the last slot, all that the effect of the last token and the function vector are made of. Logits:
    the target's and the largest; with the log-probabilities, which the core holds, they tell the partition function.
    """
    import torch

    tensors = {leaf: value for leaf, value in artifact.items() if isinstance(value, torch.Tensor)}
    found = {leaf: _slice(key, leaf, artifact, value) for leaf, value in tensors.items()}
    return {leaf: piece for leaf, piece in found.items() if piece and len(piece.indices) < piece.shape[piece.axis]}


def _slice(key: str, leaf: str, artifact: Artifact, value: Tensor) -> Slice | None:
    trial, _, name = leaf.rpartition("/")
    if (key, name) == ("mean_activations", "mean_activations"):
        return Slice(axis=2, indices=[value.shape[2] - 1], shape=list(value.shape))
    if key == "injection_output" and name in {"base_logits", "with_logits"}:
        largest = value.topk(min(N_LARGEST, len(value))).indices.tolist()
        target = cast("int", artifact[f"{trial}/target_id"])
        return Slice(axis=0, indices=sorted({*largest, target}), shape=list(value.shape))
    return None


def split(path: Path, full_to: str, url: str | None = None) -> tuple[int, int]:
    """Store the full tier at `full_to`, a folder or URL, and leave the core in the golden's place; return their bytes,
    those of the core first.

    `url` is what the core says of where the full tier lies (by default `full_to`, if it is a URL). The full files are
    read back before the golden is changed.
    """
    told = url or (full_to if stores.is_url(full_to) else None)
    stores.require_no_secret(told)
    golden = Golden.open(path)
    if golden.manifest.full is not None:
        raise TierError(f"{path}: is split already; fetch its full tier and record it again to split it anew")
    if not (slices := {key: found for key in CHECK_KEYS if (found := slices_of(key, golden.stored(key)))}):
        raise TierError(f"{path}: has no tensor that is large enough to lie elsewhere")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=STAGING) as scratch:
        core, files = Path(scratch) / "core", dict[str, Stored]()
        core.mkdir()
        for key, pieces in slices.items():
            file, whole = Path(scratch) / f"{key}{FULL}", golden.stored(key)
            write_safetensors(file, {leaf: artifacts.tensor_leaf(whole, leaf) for leaf in pieces})
            files[key] = Stored(sha256=sha256_file(file), n_bytes=file.stat().st_size)
            _store(file, files[key], full_to)
        for key in (key for key in CHECK_KEYS if f"{key}.json" in golden.manifest.files):
            cut = {leaf: taken(piece, golden.stored(key)[leaf]) for leaf, piece in slices.get(key, {}).items()}
            artifacts.save({**golden.stored(key), **cut}, core / key, compact=True)
        full = Full(url=told, files=files, slices=slices)
        manifests.write(golden.manifest.model_copy(update={"files": manifests.digests(core), "full": full}), core)
        in_core = sum(file.stat().st_size for file in core.iterdir())
        swap(core, path)
    return in_core, sum(stored.n_bytes for stored in files.values())


def _place(base: str, stored: Stored) -> str:
    return stores.below(base, f"{stored.sha256}.safetensors")


def _store(file: Path, stored: Stored, base: str) -> None:
    """Copy a file to where it is kept, and read it back."""
    where = _place(base, stored)
    stores.write(where, read_bytes(file))
    _read(where, stored)


def fetch(path: Path, url: str | None = None) -> list[Path]:
    """Bring the full tier beside the core: every file that is not here yet, none that is not what the manifest says.

    Returns the files it wrote; a golden of one tier has none.
    """
    manifest = manifests.read(path)
    if manifest.full is None:
        return []
    base, fetched = url or manifest.full.url, []
    for key, stored in manifest.full.files.items():
        if (file := path / f"{key}{FULL}").is_file() and sha256_file(file) == stored.sha256:
            continue
        if base is None:
            raise TierError(f"{path}: its manifest does not say where the full tier lies; name it with --url")
        write_bytes(file, _read(_place(base, stored), stored))
        fetched.append(file)
    return fetched


def _read(where: str, stored: Stored) -> bytes:
    """The bytes that are stored; raises TierError where there are others."""
    data, place = stores.read(where, stored.n_bytes), stores.shown(where)
    if len(data) != stored.n_bytes:
        size = f"{len(data)}" if len(data) < stored.n_bytes else f"more than {stored.n_bytes}"
        raise TierError(f"{place}: expected {stored.n_bytes} bytes, found {size}; nothing was kept")
    if (found := sha256(data)) != stored.sha256:
        raise TierError(f"{place}: sha256 {stored.sha256:.12}... expected, {found:.12}... found; nothing was kept")
    return data
