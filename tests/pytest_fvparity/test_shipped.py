"""The claim of the first page: on the shipped models fvcore says what the reference said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fvcore import shipped
from fvcore.embedded import EMBEDDED
from fvcore.profile import REFERENCE_PROFILES
from fvcore.trials import fixed as trials
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    from pytest_fvparity.golden.golden import Golden, relative_path


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("profile", slow_but(["src"], REFERENCE_PROFILES))
@pytest.mark.parametrize("model", slow_but(["tiny-gpt2"], EMBEDDED))
def test_all_six_keys_agree_with_the_recorded_reference(
    model: str, profile: str, tmp_path: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From the project's folder: what a person types, and `make parity` in a process of its own.
    monkeypatch.chdir(ROOT)
    options = [f"--fv-model={model}", f"--fv-reference-profile={profile}", f"--fv-report-dir={tmp_path}"]
    done = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-m", "parity", "datasets", *options)

    assert done.ret == 0, done.stdout.str() + done.stderr.str()
    (file,) = tmp_path.rglob("src_vs_fv_diff_report.json")
    report = json.loads(file.read_text())
    assert [check["status"] for check in report["checks"]] == ["PASS"] * 6
    assert report["reference"]["repository"] == "https://github.com/ericwtodd/function_vectors"
    exact = [check for check in report["checks"] if check["key"] in {"prompt_boundary", "slot_map"}]
    assert sum(check["mismatch_count"] for check in exact) == 0
    assert report["heads"]["heads_expected"] == report["heads"]["heads_actual"]


@pytest.mark.parametrize("profile", REFERENCE_PROFILES)
@pytest.mark.parametrize("model", EMBEDDED)
def test_goldens_were_recorded_from_the_public_reference_on_the_shipped_files(model: str, profile: str) -> None:
    fixed = trials.read(ROOT / shipped.TRIALS[model])
    golden = Golden.open(ROOT / "golden" / relative_path(fixed.dataset, fixed.id, profile))

    assert golden.profile.identity.trials_sha256 == fixed.sha256
    assert golden.profile.identity.reference_profile == profile
    assert golden.manifest.reference.commit.startswith("fb9eac7")
    assert "src/utils/extract_utils.py" in golden.manifest.reference.sources
    assert "injection_edits_bare_tensors" in golden.manifest.reference.normalisations["applied"]


def test_the_two_profiles_ask_different_questions_of_a_model_without_bos() -> None:
    fixed = trials.read(ROOT / shipped.TRIALS["tiny-gpt2"])
    n_slots = {
        profile: len(
            Golden.open(ROOT / "golden" / relative_path(fixed.dataset, fixed.id, profile)).slot_map()["dummy_labels"]  # type: ignore[arg-type]
        )
        for profile in REFERENCE_PROFILES
    }
    # Upstream writes a BOS text in front of every prompt: one more token, one more slot.
    assert n_slots["todd_upstream"] == n_slots["src"] + 1


def test_what_ships_is_asked_for_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fvcore.experiments.evaluation.data import find
    from fvcore.experiments.relation.data import read
    from fvcore.trials.fixed import portable, raw_file, read_pairs
    from fvcore.trials.sampled import read_trials

    monkeypatch.chdir(tmp_path)
    for model, path in shipped.TRIALS.items():
        assert read_trials(model).sha256 == trials.read(model).sha256 == trials.read(ROOT / path).sha256
        assert trials.read(path).id == path.stem
    assert read_pairs(Path("antonym")) == read_pairs(ROOT / "datasets/antonym/raw/antonym.json")
    assert find("tiny_antonym") == find("datasets/tiny_antonym/raw/tiny_antonym.json")
    assert read(Path("relationA_ex")).sha256 == read(Path("datasets/relation/relationA_ex.csv")).sha256
    # In a file that people exchange it has the same name on every machine.
    assert portable(raw_file("antonym")) == "datasets/antonym/raw/antonym.json"


def test_a_file_of_ones_own_comes_before_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("datasets/antonym/raw/antonym.json")
    assert shipped.file(mine) == ROOT / mine
    mine.parent.mkdir(parents=True)
    mine.write_text("[]")
    assert shipped.file(mine) == mine
    assert shipped.file("nothing") == Path("nothing")  # whoever reads it says that it is not there
    assert shipped.file("../golden") == Path("../golden")
