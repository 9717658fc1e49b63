"""Goldens to and from the reference's own results: `results/<dataset>/<fixed_trials_id>/` of the milestone plans.

Those files hold the numbers a run of the reference ends with, not what led to them: a golden that is imported knows the
rest of no key, and a run against it is PARTIAL at best.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fvcore import artifacts
from fvcore.artifacts import Artifact
from fvcore.effects import TOKEN_CLASSES, average_indirect_effect
from fvcore.experiments.plan_files import ReferenceFiles
from fvcore.formats import FormatError, json_text, pt_bytes, read_bytes, read_json, read_pt, sha256_file, write_bytes
from fvcore.model.model import DTYPES
from fvcore.pipeline import Pipeline, Settings, profile_of
from fvcore.profile import Conditions, Profile
from fvcore.prompts import require_verified
from pytest_fvparity.golden import manifest as manifests
from pytest_fvparity.golden.golden import STAGING, Golden, relative_path, swap
from pytest_fvparity.golden.manifest import SCHEMA_VERSION, Manifest, Provenance
from pytest_fvparity.parity.implementation import CHECK_KEYS

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.trials import FixedTrials

UNKNOWN = "unknown"


class LayoutError(FormatError):
    """Results that are not of this model and these trials, or a golden that cannot be written as results."""


# ---------------------------------------------------------------- export


def export(path: Path, results: Path, names: Collection[str] | None = None) -> list[Path]:
    """Write a golden's numbers under `results`, all files or those of some names; a file that is there already and holds
    anything else is left alone."""
    golden = Golden.open(path)
    identity = golden.profile.identity
    folder = results / identity.dataset / identity.fixed_trials_id
    exported = _exported(golden, ReferenceFiles.of(identity.dataset))
    files = {folder / name: data for name, data in exported.items() if names is None or name in names}
    for file, data in files.items():
        if file.exists() and read_bytes(file) != data:
            raise LayoutError(f"{file}: holds something else already; export to another folder")
    for file, data in files.items():
        write_bytes(file, data)
    return list(files)


def _exported(golden: Golden, names: ReferenceFiles) -> dict[str, bytes]:
    if golden.part.slices:
        raise LayoutError(f"{golden.path}: its full tier is not here; `fvparity golden fetch` brings it")
    leaves = {leaf: value for key in CHECK_KEYS[1:5] for leaf, value in golden.stored(key).items()}
    files: dict[str, bytes] = {}
    for name, leaf in ((names.means, "mean_activations"), (names.effect, "cie"), (names.vector, "function_vector")):
        if isinstance(value := leaves.get(leaf), Tensor):
            files[name] = pt_bytes(value.reshape(1, -1) if leaf == "function_vector" else value)
    files[names.labels] = json_text({"labels": leaves["dummy_labels"]}).encode()
    heads, scores = leaves.get("heads"), leaves.get("scores")
    if isinstance(heads, list) and isinstance(scores, Tensor):
        rows = [[*head, score] for head, score in zip(heads, scores.tolist(), strict=True)]
        files[names.heads] = json_text(rows).encode()
    return files


# ---------------------------------------------------------------- import


def import_results(folder: Path, lm: LanguageModel, trials: FixedTrials, settings: Settings, root: Path) -> Path:
    """A golden under `root` of the results in `folder`, read with `weights_only` and checked against model and trials.

    Means, labels and effects must be there, vector and heads may be. Raises LayoutError naming file and reason.
    """
    settings.require_fit(lm)
    require_verified(trials, lm.tokenizer)
    target = root / relative_path(trials.dataset, trials.id, settings.reference_profile)
    if target.exists():
        raise LayoutError(f"{target}: there is a golden already; import under another --root, or move it away")
    results = _Results(folder, lm, trials, settings)
    held = results.artifacts()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=STAGING) as scratch:
        staged = Path(scratch) / "imported"
        for key, artifact in held.items():
            artifacts.save(artifact, staged / key)
        manifests.write(_manifest(results, staged), staged)
        Golden.open(staged)
        swap(staged, target)
    return target


def _manifest(results: _Results, staged: Path) -> Manifest:
    """Of what computed the results nothing is known."""
    identity = profile_of(results.lm, results.trials, results.settings).identity
    unknown = dict.fromkeys(("device", "attn_implementation", "engine"), UNKNOWN)
    conditions = Conditions.model_validate({"model": results.lm.name, **unknown, "threads": 0, "versions": {}})
    profile = Profile(identity=identity, conditions=conditions)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        profile=profile,
        reference=Provenance(
            origin="imported",
            repository=UNKNOWN,
            commit=UNKNOWN,
            sources={file.name: sha256_file(file) for file in results.read},
            normalisations={},
            versions={},
        ),
        command=f"fvparity golden import PATH {manifests.settings(profile, '--')}",
        variations=[],
        noise={},
        files=manifests.digests(staged),
        incomplete=[key for key in CHECK_KEYS if not results.is_complete(key)],
    )


class _Results:
    """A folder of results, read for one model and its trials."""

    def __init__(self, folder: Path, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> None:
        self.folder, self.lm, self.trials, self.settings = folder, lm, trials, settings
        self.names = ReferenceFiles.of(trials.dataset)
        self.read: list[Path] = []

    def artifacts(self) -> dict[str, Artifact]:
        """Check key -> the leaves that the files hold."""
        labels = self._labels()
        found: dict[str, Artifact] = {
            "slot_map": {"dummy_labels": labels},
            "mean_activations": self._means(len(labels)),
            "top_heads": {**self._effects(), **self._heads()},
        }
        return found | ({"fv_vector": vector} if (vector := self._vector()) else {})

    def is_complete(self, key: str) -> bool:
        """Of the means there is one leaf; of the effects all are told once the heads are; of other keys there are more."""
        heads = self.folder / self.names.heads
        return key == "mean_activations" or (key == "top_heads" and heads in self.read)

    def _means(self, n_slots: int) -> Artifact:
        lm = self.lm
        shape = {"layer": lm.n_layers, "head": lm.n_heads, "slot": n_slots, "d_head": lm.d_head}
        return {"mean_activations": self._tensor(self._file(self.names.means), shape, torch.float32)}

    def _effects(self) -> Artifact:
        token_class, lm = self.settings.token_class_idx, self.lm
        shape = {"trial": len(self.trials.trials), "layer": lm.n_layers, "head": lm.n_heads}
        shape |= {} if token_class == -1 else {"token class": len(TOKEN_CLASSES)}
        cie = self._tensor(self._file(self.names.effect), shape, torch.float32)
        # What the reference itself does with the file before it ranks the heads.
        return {"cie": cie, "aie": average_indirect_effect(cie, token_class)}

    def _vector(self) -> Artifact:
        if not (file := self.folder / self.names.vector).is_file():
            return {}
        vector = self._tensor(file, {"one": 1, "d_model": self.lm.d_model}, DTYPES[self.lm.dtype]).reshape(-1)
        return {"function_vector": vector, "norm": float(vector.float().norm())}

    def _heads(self) -> Artifact:
        if not (file := self.folder / self.names.heads).is_file():
            return {}
        rows, n, lm = self._json(file), self.settings.n_top_heads, self.lm
        if not isinstance(rows, list) or len(rows) != n or not all(_is_head(row, lm) for row in rows):
            found = f"{len(rows)} rows" if isinstance(rows, list) else type(rows).__name__
            wanted = f"[layer < {lm.n_layers}, head < {lm.n_heads}, score]"
            raise LayoutError(f"{file}: expected {n} rows {wanted} (--top-heads), found {found}")
        scores = torch.tensor([float(score) for _, _, score in rows], dtype=torch.float64)
        return {"heads": [[layer, head] for layer, head, _ in rows], "scores": scores}

    def _labels(self) -> list[list[Any]]:
        file = self._file(self.names.labels)
        value = self._json(file)
        found = value.get("labels") if isinstance(value, dict) else None
        ours = [[i, label] for i, label in enumerate(Pipeline(self.lm, self.trials, self.settings).dummy_labels)]
        if not isinstance(found, list):
            raise LayoutError(f'{file}: expected {{"labels": [[slot, label], ...]}}, found {type(value).__name__}')
        if repr(found) != repr(ours):
            at = next(
                (i for i, pair in enumerate(zip(found, ours, strict=False)) if repr(pair[0]) != repr(pair[1])), None
            )
            pairs = f"{len(found)} labels, {len(ours)} here" if at is None else f"{found[at]!r:.80}, here {ours[at]!r}"
            raise LayoutError(f"{file}: not the slots of this model and these trials: {pairs}")
        return ours

    def _file(self, name: str) -> Path:
        if not (self.folder / name).is_file():
            raise LayoutError(
                f"{self.folder}: no {name}; expected results/<dataset>/<fixed_trials_id> of a run on these trials"
            )
        return self.folder / name

    def _json(self, file: Path) -> Any:
        self.read.append(file)
        return read_json(file)

    def _tensor(self, file: Path, shape: Mapping[str, int], dtype: torch.dtype) -> Tensor:
        """A bare tensor of that shape and dtype whose numbers are finite."""
        self.read.append(file)
        value = read_pt(file)
        wanted = f"{str(dtype).removeprefix('torch.')} {list(shape.values())} ({', '.join(shape)})"
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise LayoutError(f"{file}: expected a tensor {wanted}, found a {type(value).__name__}")
        if (value.dtype, list(value.shape)) != (dtype, list(shape.values())):
            found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            raise LayoutError(f"{file}: expected {wanted}, found {found}: another model, other trials or settings")
        if not bool(value.isfinite().all()):
            raise LayoutError(f"{file}: holds a number that is not finite")
        return value.detach().contiguous()


def _is_head(row: Any, lm: LanguageModel) -> bool:
    if not (isinstance(row, list) and [type(i) for i in row[:2]] == [int, int] and len(row) == 3):
        return False
    return 0 <= row[0] < lm.n_layers and 0 <= row[1] < lm.n_heads and type(row[2]) in {int, float}
