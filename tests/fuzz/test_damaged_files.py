"""Damaged trials files and goldens: each is one clear error, none is taken for what it was, and no file is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvcore import shipped
from fvcore.formats import sha256
from fvcore.prompts import require_verified
from fvcore.trials import fixed as trials
from pytest_fvparity.golden.manifest import sealed
from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import artifacts, pipeline
    from fvcore.compare import compare
    from fvcore.model import model as models
    from pytest_fvparity.golden import golden
    from tests.fuzz.damage import Campaign, byte_damage, contents, drawn, json_damage, tell


ROOT = Path(__file__).parents[2]
TRIALS = ROOT / shipped.TRIALS["tiny-llama"]
FIXED = trials.read(TRIALS)

if RUNNING:
    PLACE = golden.relative_path(FIXED.dataset, FIXED.id, "src")
    GOLDEN = ROOT / "golden" / PLACE
    SETTINGS = pipeline.Settings(edit_layer=1)  # named by the run: by default they are read from the golden

# How many distinct damaged inputs each campaign must have tried.
N = {
    "trials, structure": 300,
    "trials, bytes": 250,
    "golden, any file": 250,
    "manifest, structure": 200,
    "artifact, structure": 200,
    "tensors, bytes": 250,
}


def test_enough_inputs_are_damaged() -> None:
    assert sum(N.values()) >= 1400


@pytest.fixture(scope="module")
def lm() -> Iterator[models.LanguageModel]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield models.load("tiny-llama")
    torch.set_num_threads(before)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A copy of the golden under a root of its own; each damage is undone before the next."""
    shutil.copytree(GOLDEN, tmp_path / "golden" / PLACE)
    return tmp_path


def judged(lm: models.LanguageModel, path: Path, root: Path) -> trials.FixedTrials:
    """What a parity run does with its files before it computes a number."""
    fixed = trials.read(path)
    require_verified(fixed, lm.tokenizer)
    recorded = golden.Golden.open(golden.locate([root], golden.relative_path(fixed.dataset, fixed.id, "src")))
    golden.require_comparable(recorded.profile, pipeline.profile_of(lm, fixed, SETTINGS))
    return fixed


def test_the_undamaged_files_are_accepted(lm: models.LanguageModel) -> None:
    assert judged(lm, TRIALS, ROOT / "golden") == FIXED


@pytest.mark.parametrize("kind", ["structure", "bytes"])
def test_damaged_trials(lm: models.LanguageModel, scratch: Path, kind: str, part: int) -> None:
    sound, name = TRIALS.read_bytes(), f"trials, {kind}"
    campaign, path = Campaign(), scratch / TRIALS.name
    damages = json_damage(sound.decode()) if kind == "structure" else byte_damage(sound)

    @drawn(N[name] // part)
    @given(damages)
    def one(data: bytes) -> None:
        campaign.hurt(data, sound)
        path.write_bytes(data)
        before = contents(scratch)
        campaign.refused(lambda: judged(lm, path, scratch / "golden"), path)
        assert contents(scratch) == before

    one()
    tell(name, campaign, N[name] // part)


def test_a_golden_with_any_file_damaged(lm: models.LanguageModel, scratch: Path, part: int) -> None:
    campaign, folder, name = Campaign(), scratch / "golden" / PLACE, "golden, any file"
    whole = contents(folder)

    @drawn(N[name] // part)
    @given(st.sampled_from([file for file in whole if file.name != golden.MANIFEST]), st.data())
    def one(file: Path, data: st.DataObject) -> None:
        damaged = data.draw(byte_damage(whole[file]))
        campaign.hurt(damaged, whole[file], means=lambda data: data)
        file.write_bytes(damaged)
        before = contents(scratch)
        campaign.refused(lambda: judged(lm, TRIALS, scratch / "golden"), file)
        assert contents(scratch) == before
        file.write_bytes(whole[file])

    one()
    tell(name, campaign, N[name] // part)


def test_a_damaged_manifest(lm: models.LanguageModel, scratch: Path, part: int) -> None:
    """All of a manifest counts, what it tells of where a golden came from as much as what is compared."""
    campaign, path, name = Campaign(), scratch / "golden" / PLACE / golden.MANIFEST, "manifest, structure"
    written = path.read_bytes()

    @drawn(N[name] // part)
    @given(json_damage(written.decode()))
    def one(data: bytes) -> None:
        campaign.hurt(data, written)
        path.write_bytes(data)
        before = contents(scratch)
        campaign.refused(lambda: judged(lm, TRIALS, scratch / "golden"), path)
        assert contents(scratch) == before

    one()
    tell(name, campaign, N[name] // part)


@pytest.mark.parametrize("kind", ["artifact, structure", "tensors, bytes"])
def test_a_damaged_golden_whose_manifest_was_sealed_again(scratch: Path, kind: str, part: int) -> None:
    """With the right digests the files cannot be told from a recording: they are refused, or found to differ."""
    campaign, folder = Campaign(), scratch / "golden" / PLACE
    whole = contents(folder)
    suffix = ".json" if kind == "artifact, structure" else ".safetensors"
    sound = {key: artifacts.load(folder / key) for key in CHECK_KEYS}
    manifest = json.loads(whole[folder / golden.MANIFEST])
    files = [file for file in whole if file.suffix == suffix and file.name != golden.MANIFEST]

    @drawn(N[kind] // part)
    @given(st.sampled_from(files), st.data())
    def one(file: Path, data: st.DataObject) -> None:
        damage = json_damage(whole[file].decode()) if suffix == ".json" else byte_damage(whole[file])
        damaged = data.draw(damage)
        campaign.hurt(damaged, whole[file])
        file.write_bytes(damaged)
        again = sealed({**manifest, "files": {**manifest["files"], file.name: sha256(damaged)}})
        (folder / golden.MANIFEST).write_text(json.dumps(again))
        before = contents(scratch)

        def judge() -> None:
            opened = golden.Golden.open(folder)
            verdict = compare(sound[file.stem], opened.stored(file.stem))
            if not verdict.passed:
                raise golden.Refused("found to differ")

        campaign.refused(judge, file)
        assert contents(scratch) == before
        file.write_bytes(whole[file])

    one()
    tell(kind, campaign, N[kind] // part)
