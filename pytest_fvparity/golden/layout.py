"""Goldens to and from the reference's own results: `results/<dataset>/<fixed_trials_id>/` of the milestone plans.

Those files hold the numbers a run of the reference ends with, not what led to them: a golden that is imported knows the
rest of no key, and a run against it is PARTIAL at best.
"""

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvcore.artifacts import Artifact
from fvcore.effects import TOKEN_CLASSES, average_indirect_effect
from fvcore.experiments.plan_files import ReferenceFiles
from fvcore.formats import (
    FormatError,
    json_text,
    make_folder,
    pt_bytes,
    read_bytes,
    read_json,
    read_pt,
    sha256_file,
    write_bytes,
)
from fvcore.model.model import DTYPES, LanguageModel
from fvcore.pipeline import Pipeline, Settings, profile_of
from fvcore.profile import Conditions, Profile
from fvcore.prompts import require_verified
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity.golden import manifest as manifests
from pytest_fvparity.golden.golden import STAGING, Golden, relative_path, swap, write
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.reference.reference import Recording

UNKNOWN = "unknown"


class LayoutError(FormatError):
    """Results that are not of this model and these trials, or a golden that cannot be written as results."""


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
            raise LayoutError(f"{file}: holds something else already; remove it, or export to another folder")
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


def import_results(folder: Path, lm: LanguageModel, trials: FixedTrials, settings: Settings, root: Path) -> Path:
    """A golden under `root` of the results in `folder`, read with `weights_only` and checked against model and trials.

    Means, labels and effects must be there, vector and heads may be. Raises LayoutError naming file and reason.
    """
    settings.require_fit(lm)
    require_verified(trials, lm.tokenizer)
    if (target := root / relative_path(trials.dataset, trials.id, settings.reference_profile)).exists():
        raise LayoutError(f"{target}: there is a golden already; import under another --root, or move it away")
    results = _Results(folder, lm, trials, settings)
    held = results.artifacts()
    # Of what computed them nothing is known.
    unknown = dict.fromkeys(("device", "attn_implementation", "engine"), UNKNOWN)
    conditions = Conditions.model_validate({"model": lm.name, **unknown, "threads": 0, "versions": {}})
    profile = Profile(identity=profile_of(lm, trials, settings).identity, conditions=conditions)
    sources = {file.name: sha256_file(file) for file in results.read}
    nothing = {"repository": UNKNOWN, "commit": UNKNOWN, "normalisations": {}, "versions": {}}
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=STAGING) as scratch:
        staged = Path(scratch) / "imported"
        # Of the means there is one leaf; of the effects all are told once the heads are; of other keys there are more.
        ranked = results.folder / results.names.heads in results.read
        complete = ["mean_activations", *(["top_heads"] if ranked else [])]
        how = f"fvparity golden import PATH {manifests.settings(profile, '--')}"
        write(Recording(held, nothing | {"origin": "imported", "sources": sources}, profile), staged, how, complete)
        Golden.open(staged)
        swap(staged, target)
    return target


class _Results:
    """A folder of results, read for one model and its trials."""

    def __init__(self, folder: Path, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> None:
        self.folder, self.lm, self.trials, self.settings = folder, lm, trials, settings
        self.names = ReferenceFiles.of(trials.dataset)
        self.read: list[Path] = []
        self.sizes = {"trial": len(trials.trials), "layer": lm.n_layers, "head": lm.n_heads, "d_head": lm.d_head}
        self.sizes |= {"token class": len(TOKEN_CLASSES), "one": 1, "d_model": lm.d_model}

    def artifacts(self) -> dict[str, Artifact]:
        """Check key -> the leaves that the files hold."""
        labels, token_class = self._labels(), self.settings.token_class_idx
        self.sizes["slot"] = len(labels)
        means = self._tensor(self.names.means, ["layer", "head", "slot", "d_head"])
        cie = self._tensor(self.names.effect, ["trial", "layer", "head", *(["token class"] * (token_class != -1))])
        # What the reference itself does with the file before it ranks the heads.
        aie = average_indirect_effect(cie, token_class)
        found: dict[str, Artifact] = {
            "slot_map": {"dummy_labels": labels},
            "mean_activations": {"mean_activations": means},
            "top_heads": {"cie": cie, "aie": aie, **self._heads()},
        }
        if (self.folder / self.names.vector).is_file():
            vector = self._tensor(self.names.vector, ["one", "d_model"], DTYPES[self.lm.dtype]).reshape(-1)
            found["fv_vector"] = {"function_vector": vector, "norm": float(vector.float().norm())}
        return found

    def _heads(self) -> Artifact:
        if not (file := self.folder / self.names.heads).is_file():
            return {}
        rows, n, lm = self._value(file.name, read_json), self.settings.n_top_heads, self.lm
        if not isinstance(rows, list) or len(rows) != n or not all(_is_head(row, lm) for row in rows):
            found = f"{len(rows)} rows" if isinstance(rows, list) else type(rows).__name__
            wanted = f"[layer < {lm.n_layers}, head < {lm.n_heads}, score]"
            raise LayoutError(f"{file}: expected {n} rows {wanted} (--top-heads), found {found}")
        scores = torch.tensor([float(score) for _, _, score in rows], dtype=torch.float64)
        return {"heads": [[layer, head] for layer, head, _ in rows], "scores": scores}

    def _labels(self) -> list[list[Any]]:
        file, value = self.folder / self.names.labels, self._value(self.names.labels, read_json)
        found = value.get("labels") if isinstance(value, dict) else None
        ours = [[i, label] for i, label in enumerate(Pipeline(self.lm, self.trials, self.settings).dummy_labels)]
        if not isinstance(found, list):
            raise LayoutError(f'{file}: expected {{"labels": [[slot, label], ...]}}, found {type(value).__name__}')
        if repr(found) != repr(ours):
            differ = [f"{a!r:.80}, here {b!r}" for a, b in zip(found, ours, strict=False) if repr(a) != repr(b)]
            first = differ[0] if differ else f"{len(found)} labels, {len(ours)} here"
            raise LayoutError(f"{file}: not the slots of this model and these trials: {first}")
        return ours

    def _value(self, name: str, reader: Callable[[Path], Any]) -> Any:
        if not (file := self.folder / name).is_file():
            raise LayoutError(
                f"{self.folder}: no {name}; expected results/<dataset>/<fixed_trials_id> of a run on these trials"
            )
        self.read.append(file)
        return reader(file)

    def _tensor(self, name: str, axes: Sequence[str], dtype: torch.dtype = torch.float32) -> Tensor:
        """A bare tensor of that shape and dtype whose numbers are finite."""
        file, shape, value = self.folder / name, [self.sizes[axis] for axis in axes], self._value(name, read_pt)
        wanted = f"{str(dtype).removeprefix('torch.')} {shape} ({', '.join(axes)})"
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise LayoutError(f"{file}: expected a tensor {wanted}, found a {type(value).__name__}")
        if (value.dtype, list(value.shape)) != (dtype, shape):
            found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            raise LayoutError(f"{file}: expected {wanted}, found {found}: another model, other trials or settings")
        if not bool(value.isfinite().all()):
            raise LayoutError(f"{file}: holds a number that is not finite")
        return value.detach().contiguous()


def _is_head(row: Any, lm: LanguageModel) -> bool:
    if not (isinstance(row, list) and [type(i) for i in row[:2]] == [int, int] and len(row) == 3):
        return False
    return 0 <= row[0] < lm.n_layers and 0 <= row[1] < lm.n_heads and type(row[2]) in {int, float}
