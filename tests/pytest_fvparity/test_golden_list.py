"""`fvparity golden list`: what it says of every golden under a folder, and that it touches none."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore.formats import read_json, write_json
from pytest_fvparity import cli
from pytest_fvparity.golden.manifest import MANIFEST, sealed
from tests.late import RUNNING

if RUNNING:
    from pytest_fvparity.golden import golden
    from tests.pytest_fvparity.stand_in import digests
    from tests.pytest_fvparity.worlds import World


Listing = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def root(world: World, tmp_path: Path) -> Path:
    """A copy of the golden and, beside it, its trials file."""
    (tmp_path / "trials").mkdir()
    shutil.copy(world.trials[0], tmp_path / "trials")
    return Path(shutil.copytree(world.golden, tmp_path / "golden"))


@pytest.fixture
def place(root: Path) -> Path:
    (manifest,) = root.rglob(MANIFEST)
    return manifest.parent


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fvparity", "golden", "list", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def listing(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Listing:
    """The listing as JSON, with the exit status it had; every file is as it was."""

    def listed(*words: str, status: int = 0) -> list[dict[str, Any]]:
        before = digests(root.parent)
        found = run(monkeypatch, "--root", str(root), "--trials", str(root.parent / "trials"), "--json", *words)
        assert found == status
        assert digests(root.parent) == before
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return rows

    return listed


def test_a_golden_of_its_trials_file_is_current(place: Path, listing: Listing) -> None:
    (row,) = listing("--strict")

    assert (row["path"], row["state"], row["what"], row["remove"]) == (str(place), "current", "", None)
    assert (row["model"], row["reference_profile"], row["schema_version"]) == ("random-llama", "src", 3)
    assert row["core_bytes"] == sum(file.stat().st_size for file in place.iterdir())
    assert (row["full_bytes"], row["full_bytes_here"]) == (0, 0)


def test_a_golden_whose_trials_file_changed_is_stale_and_says_how_to_record_it(
    root: Path, place: Path, listing: Listing
) -> None:
    (trials,) = (root.parent / "trials").iterdir()
    was = read_json(place / MANIFEST)["profile"]["identity"]["trials_sha256"]
    trials.write_bytes(trials.read_bytes() + b"\n")

    (row,) = listing("--strict", status=1)

    assert row["state"] == "stale"
    assert row["what"].startswith(f"recorded from trials {was[:12]}..., the file is now ")
    assert "record again: pytest -m parity --fv-regen-golden" in row["what"]
    assert row["remove"] is None
    assert listing()[0]["state"] == "stale"


def test_a_damaged_file_is_named(place: Path, listing: Listing) -> None:
    (place / "slot_map.json").write_text("{}")

    (row,) = listing("--strict", status=1)

    assert row["state"] == "damaged"
    assert str(place / "slot_map.json") in row["what"]
    assert row["remove"] is None


def test_an_edited_manifest_and_a_missing_one_are_damage(place: Path, listing: Listing) -> None:
    manifest = read_json(place / MANIFEST)
    write_json(place / MANIFEST, {**manifest, "noise": {"fv_vector": {"norm": 1.0}}})
    (edited,) = listing()
    (place / MANIFEST).unlink()
    (missing,) = listing()

    assert (edited["state"], missing["state"]) == ("damaged", "damaged")
    assert "manifest.json: edited" in edited["what"]
    assert "manifest.json: no such file" in missing["what"]


def test_a_golden_of_an_older_schema_is_stale_and_its_age_is_told(
    place: Path, listing: Listing, monkeypatch: pytest.MonkeyPatch, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_json(place / MANIFEST)
    write_json(place / MANIFEST, {**manifest, "schema_version": 1})

    (row,) = listing("--strict", status=1)

    assert (row["state"], row["schema_version"]) == ("stale", 1)
    assert row["what"] == "manifest schema 1, this version reads 3"
    run(monkeypatch, "--root", str(root), "--trials", str(root.parent / "trials"))
    assert "(2" in capsys.readouterr().out


def test_a_golden_without_a_trials_file_is_unused_and_only_a_person_removes_it(
    root: Path, place: Path, listing: Listing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (trials,) = (root.parent / "trials").iterdir()
    trials.unlink()

    (row,) = listing("--strict")

    assert row["state"] == "unused"
    assert row["what"] == f"there is no trials file {trials.name}"
    assert row["remove"] == f"rm -r -- {place}"
    assert run(monkeypatch, "--root", str(root), "--trials", str(root.parent / "trials")) == 0
    assert f"  rm -r -- {place}\n" in capsys.readouterr().out


def test_trials_in_any_of_the_folders_count(root: Path, listing: Listing, tmp_path: Path) -> None:
    (trials,) = (root.parent / "trials").iterdir()
    (tmp_path / "more" / "deep").mkdir(parents=True)
    trials.rename(tmp_path / "more" / "deep" / trials.name)

    assert listing("--trials", str(tmp_path / "more"))[0]["state"] == "current"


def test_a_golden_that_lies_under_another_name_is_damaged(place: Path, listing: Listing) -> None:
    place.rename(place.with_name("todd_upstream"))

    (row,) = listing()

    assert row["state"] == "damaged"
    assert row["what"] == f"it was recorded as {'/'.join(place.parts[-3:])}, and lies elsewhere"


def test_what_killed_recordings_left_is_listed_and_the_only_copy_is_never_to_be_removed(
    root: Path, place: Path, listing: Listing
) -> None:
    staging = root / f"{golden.STAGING}abc"
    shutil.copytree(place, staging / "first")
    shutil.copytree(place, golden.previous(place))
    both = {row["path"]: row for row in listing("--strict")}
    place.rename(golden.coming(place))
    alone = {row["path"]: row for row in listing("--strict")}

    assert {path: row["state"] for path, row in both.items()} == {
        str(staging): "leftover",
        str(golden.previous(place)): "leftover",
        str(place): "current",
    }
    assert both[str(staging)]["remove"] == f"rm -r -- {staging}"
    assert both[str(golden.previous(place))]["remove"] == f"rm -r -- {golden.previous(place)}"
    assert set(alone) == {str(staging), str(golden.previous(place)), str(golden.coming(place))}
    assert alone[str(golden.previous(place))]["remove"] is None
    assert "gives it back its name" in alone[str(golden.previous(place))]["what"]


def test_what_the_ini_file_names_need_not_be_named_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (trials,) = (root.parent / "trials").iterdir()
    ini = f"[tool.pytest.ini_options]\nfv_trials = ['trials/{trials.name}']\nfv_golden = 'kept'\n"
    (root.parent / "pyproject.toml").write_text(ini)
    root.rename(root.parent / "kept")
    monkeypatch.chdir(root.parent)

    assert run(monkeypatch, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], Path(row["path"]).is_relative_to(root.parent / "kept")) == ("current", True)


@pytest.mark.parametrize("missing", ["--root", "--trials"])
def test_a_folder_that_is_none_is_an_error_and_no_empty_listing(
    missing: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--root": str(root), "--trials": str(root.parent / "trials"), missing: "no/such/folder"}

    assert run(monkeypatch, *[word for pair in words.items() for word in pair]) == 2
    assert f"no/such/folder: no such folder of {missing[2:].replace('root', 'goldens')}" in capsys.readouterr().err


def test_the_shipped_goldens_are_current(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])

    assert run(monkeypatch, "--strict", "--json") == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {"current"}


def test_a_manifest_sealed_by_hand_is_no_proof_of_its_files(place: Path, listing: Listing) -> None:
    manifest = read_json(place / MANIFEST)
    del manifest["files"]["slot_map.json"]
    write_json(place / MANIFEST, sealed(manifest))

    assert listing()[0]["what"].startswith(f"{place}: the manifest says nothing of slot_map.json")
